"""How well a run's samples follow their prompts, split by split: judged beside real pictures and shuffled prompts."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import pictures
from jaxdiff.assembly.recipe import open_data
from jaxdiff.data.sources import Source
from jaxdiff.data.webdataset import WebdatasetRecords
from jaxdiff.errors import UserError
from jaxdiff.evaluation import prompts
from jaxdiff.evaluation.extractors import Extractor, digest
from jaxdiff.job.trained import load
from jaxdiff.storage import check_writable

BATCH = 256


class Judge:
    """A run of the objective contrastive, as a function of pictures and one of texts.

    Raises:
      UserError: the run is of another network.
    """

    def __init__(self, workdir: Any):
        self.trained = model = load(workdir)
        if model.config.model.draws:
            raise UserError(f"--judge {workdir} is no judge; train one with --model two_towers --objective contrastive")
        leaves = jax.tree_util.tree_leaves_with_path(model.params)
        self.digest = digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})

        @jax.jit
        def towers(params: Any, images: jax.Array, tokens: jax.Array) -> jax.Array:
            recipe = model.recipe
            cond = recipe.embed(recipe.frozen, {"tokens": tokens})
            return recipe.network.apply({"params": params}, recipe.encode({}, images), jnp.zeros(len(images)), cond)

        self._towers = towers

    def _each(self, tower: int, images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        vectors, n = [], max(len(images), len(tokens))
        for start in range(0, n, BATCH):
            rows = np.minimum(start + np.arange(BATCH), n - 1)
            batch = [x[rows] if len(x) == n else np.repeat(x, BATCH, axis=0) for x in (images, tokens)]
            vectors.append(np.asarray(self._towers(self.trained.params, *batch)[:, tower]))
        return np.concatenate(vectors)[:n]

    def images(self, images: np.ndarray) -> np.ndarray:
        """[n, features] of uint8 [n, h, w, c]."""
        return self._each(0, images, self._tokens([""]))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """[n, features]."""
        return self._each(1, np.zeros((1, *self.trained.image_shape), np.uint8), self._tokens(texts))

    def extractor(self) -> Extractor:
        """The picture's tower as features for FID and the like."""
        nothing = self._tokens([""])

        def apply(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            vectors = self._towers(params, images, jnp.repeat(nothing, len(images), axis=0))[:, 0]
            return vectors, jnp.zeros((len(images), 2))  # of no classes: the Inception score is 1

        return Extractor("judge", self.digest, "none", self.trained.image_shape, self.trained.params, apply)

    def _tokens(self, texts: Sequence[str]) -> np.ndarray:
        return self.trained.recipe.conditioner.parse(texts, len(texts))["tokens"]


@dataclasses.dataclass(frozen=True)
class Split:
    """The pictures of one split whose first captions are the prompts.

    Attributes:
      pool: the distinct first captions of the whole split.
      texts: of the pictures that are taken.
      real: those pictures.
      facts: what the data says of each beside its captions: style, colour.
    """

    pool: tuple[str, ...]
    texts: tuple[str, ...]
    real: np.ndarray
    facts: tuple[Mapping[str, Any], ...]


class PromptEvaluation:
    """One command: everything is checked when it is made, and measured by `run`."""

    def __init__(self, arguments: SimpleNamespace, metrics: Sequence[str]):
        self._arguments, self._metrics = arguments, metrics
        self._model = model = load(arguments.workdir, step=arguments.step)
        if model.recipe.conditioner.tokenize is None or not model.config.model.draws:
            raise UserError(f"--metrics {metrics[0]}: {arguments.workdir} draws nothing of a text")
        if not (arguments.steps or "1").isdigit() or "," in (arguments.sampler or ""):
            raise UserError(f"--metrics {metrics[0]} is of one --sampler and one number of --steps")
        if min(arguments.repeats, arguments.num) < 1:
            raise UserError(f"--repeats {arguments.repeats} and --num {arguments.num} must be at least 1")
        if not arguments.judge and {"prompt", "style"} & set(metrics):
            raise UserError(
                "--metrics prompt and style need --judge RUN, of --model two_towers --objective contrastive"
            )
        self._judge = Judge(arguments.judge) if arguments.judge else None
        if self._judge and self._judge.trained.image_shape != model.image_shape:
            raise UserError(
                f"--judge looks at images of {self._judge.trained.image_shape}; the run's are {model.image_shape}"
            )
        self._out = arguments.workdir / "evaluation" / "prompts.md"
        check_writable(self._out, "the file")
        self._splits = {name: self._split(name) for name in (arguments.splits or model.config.data.split).split(",")}
        self._known: np.ndarray | None = None  # the training pictures
        if "nearest" in metrics:
            trained = self._source(model.config.data.split)
            self._known = trained.gather(np.arange(len(trained)))["image"]

    def _source(self, split: str) -> Source:
        config = self._model.config
        return open_data(config, split=split, path=self._arguments.data_path or config.data.path)

    def _split(self, name: str) -> Split:
        source, data = self._source(name), self._model.config.data
        rows = np.random.Generator(np.random.Philox(0)).permutation(len(source))[: self._arguments.num]
        gathered, firsts = source.gather(rows), [texts[0] for texts in source.captions if texts]
        facts: list[Mapping[str, Any]] = [{}] * len(rows)
        if data.name == "webdataset" and data.on_error != "skip":
            records = WebdatasetRecords(self._arguments.data_path or data.path, name)
            facts = [records.facts(int(record)) for record in gathered["record"]]
        pool, texts = tuple(dict.fromkeys(firsts)), tuple(source.captions[record][0] for record in gathered["record"])
        if "prompt" in self._metrics and len(pool) < prompts.CANDIDATES:
            few = f"{len(pool)} different captions, and a prompt is to be found among {prompts.CANDIDATES}"
            raise UserError(f"--splits {name} has {few}")
        return Split(pool, texts, gathered["image"], tuple(facts))

    def run(self) -> str:
        """The table of all splits, which the run's folder gets too."""
        a, columns = self._arguments, list(self._columns())
        lines = ["| split | pictures | n | " + " | ".join(columns) + " |", "|---" * (3 + len(columns)) + "|"]
        seeds, sampling = range(a.seed, a.seed + a.repeats), self._sampling()
        for name, split in self._splits.items():
            each = [self._scores(split, self._drawn(split, seed, sampling)) for seed in seeds]
            mean = {key: float(np.mean([scores[key] for scores in each])) for key in each[0]}
            spread = {key: float(np.std([s[key] for s in each], ddof=1)) if len(each) > 1 else None for key in mean}
            shuffled = self._scores(split, np.roll(split.real, 1, axis=0))
            for what, scores, error in (
                ("drawn", mean, spread),
                ("real", self._scores(split, split.real), {}),
                ("real, shuffled", shuffled, {}),
            ):
                cells = [_cell(scores.get(key), error.get(key)) for key in columns]
                lines.append(f"| {name} | {what} | {len(split.texts)} | " + " | ".join(cells) + " |")
        lines += ["", self._about(seeds, sampling)]
        text = "\n".join(lines) + "\n"
        if jax.process_index() == 0:
            pictures.write_whole(self._out, text.encode())
        return text

    def _sampling(self) -> Mapping[str, Any]:
        a = self._arguments
        overrides = {"sampler": a.sampler, "steps": a.steps and int(a.steps), "guidance": a.guidance, "eta": a.eta}
        return {name: value for name, value in overrides.items() if value is not None}

    def _drawn(self, split: Split, seed: int, sampling: Mapping[str, Any]) -> np.ndarray:
        size = self._arguments.batch_size
        return self._model.draw(len(split.texts), split.texts, seed=seed, batch_size=size, **sampling)

    def _columns(self) -> Iterator[str]:
        for name in self._metrics:
            yield from ("prompt top-1", "top-5") if name == "prompt" else (name,)

    def _scores(self, split: Split, images: np.ndarray) -> dict[str, float]:
        scores = self._judged(self._judge, split, images) if self._judge else {}
        colours = {i: fact["colour"] for i, fact in enumerate(split.facts) if "colour" in fact}
        if "colour" in self._metrics and colours:
            scores["colour"] = float(prompts.coloured(images, colours).mean())
        if self._known is not None:
            scores["nearest"] = float(np.median(prompts.nearest(images, self._known)))
        return scores

    def _judged(self, judge: Judge, split: Split, images: np.ndarray) -> dict[str, float]:
        shares, vectors = {}, judge.images(images)
        if "prompt" in self._metrics:
            rows = prompts.candidates(split.texts, split.pool)
            place = prompts.ranks(vectors, judge.texts(split.pool), rows)
            shares |= {"prompt top-1": float((place < 1).mean()), "top-5": float((place < 5).mean())}
        named = [i for i, fact in enumerate(split.facts) if split.texts[i].endswith(f", {fact.get('style')}")]
        if "style" in self._metrics and named:
            styles = sorted({split.facts[i]["style"] for i in named})
            stems = [split.texts[i].removesuffix(split.facts[i]["style"]) for i in named]
            own = np.array([styles.index(split.facts[i]["style"]) for i in named])
            texts = judge.texts([stem + style for stem in stems for style in styles])
            scores = np.einsum("nd,nsd->ns", vectors[named], texts.reshape(len(named), len(styles), -1))
            shares["style"] = float((scores.argmax(1) == own).mean())
        return shares

    def _about(self, seeds: Sequence[int], overrides: Mapping[str, Any]) -> str:
        own = self._model.config.sampling
        how = {"sampler": own.sampler, "steps": own.steps, "guidance": own.guidance, **overrides}
        judge = f" Judge {self._judge.digest}, step {self._judge.trained.step}." if self._judge else ""
        drawn = f"{how['sampler']}, {how['steps']} steps, guidance {how['guidance']:g}"
        over = f"means over seeds {', '.join(map(str, seeds))} and their standard deviation"
        return f"Step {self._model.step}, {drawn}; {over}.{judge}"


def _cell(value: float | None, error: float | None) -> str:
    return "" if value is None else f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")
