"""How good a run's samples are: `python -m jaxdiff.evaluate WORKDIR [--metrics fid,kid] [--steps 5,10,20,50]`.

    python -m jaxdiff.evaluate runs/fashion_mnist --data-path FOLDER --sampler ddim,dpmpp_2m --steps 5,10,20,50

Draws --num samples for every sampler and number of steps, and measures them against the training images; the test
images, measured alike, are the floor. WORKDIR/evaluation gets scores.json, table.md and fid.png after every cell:
start the same command again to go on where it stopped. Other numbers of images, references or weights stay in
scores.json and out of the table.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import track

from jaxdiff import pictures, samplers
from jaxdiff.builders import build_model, build_sample
from jaxdiff.cli import use_compilation_cache
from jaxdiff.config import Config, Sampling, validate
from jaxdiff.config_files import read_run
from jaxdiff.errors import UserError
from jaxdiff.evaluation import frechet_distance, kernel_distance, neighbours, sliced_wasserstein
from jaxdiff.evaluation.chart import chart
from jaxdiff.evaluation.collect import Collected, Collector
from jaxdiff.evaluation.extractors import check_shape, digest, fashion_mnist_classifier
from jaxdiff.evaluation.scores import METRICS, Reference, Score, identity, table
from jaxdiff.schema import decode
from jaxdiff.training.checkpoints import CheckpointError, restore_with_meta
from jaxdiff.training.parallel import make_mesh
from jaxdiff.training.sources import Source, open_dataset

_BLOCK = 1000  # features a block of the kernel distance


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates; returns the exit code: 0 done, 1 no checkpoint can be read, 2 wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxdiff.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, help="the run")
    parser.add_argument("--metrics", default="fid,kid", help=f"of {', '.join(METRICS)}; default fid,kid")
    parser.add_argument("--sampler", help="methods, by commas; default the run's own")
    parser.add_argument("--steps", help="numbers of steps, by commas; default the run's own")
    parser.add_argument("--num", type=int, default=10_000, help="samples a cell; default 10000")
    parser.add_argument("--guidance", type=float, help="classifier-free scale; default the run's own")
    parser.add_argument("--eta", type=float, help="randomness of a method that has it")
    parser.add_argument("--seed", type=int, default=0, help="sample i depends on the seed and i alone")
    parser.add_argument("--batch-size", type=int, default=250, help="samples at a time")
    parser.add_argument("--data-path", help="where the data lies; default as the run was trained")
    arguments = parser.parse_args(argv)
    use_compilation_cache()
    try:
        print(Evaluation(arguments).run(), end="", flush=True)
    except UserError as error:
        print(f"evaluate: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except CheckpointError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


class Evaluation:
    """One command: everything is checked when it is made, and measured by `run`."""

    def __init__(self, arguments: argparse.Namespace):
        self._arguments = arguments
        self._config = config = read_run(arguments.workdir)
        self._metrics = _metrics(arguments.metrics)
        self._cells = _cells(config, arguments)
        if arguments.batch_size < 1 or not 0 <= arguments.seed < 2**32:
            raise UserError(f"--batch-size must be at least 1, and --seed lie in 0..{2**32 - 1}")
        least = 2 * _BLOCK if "kid" in self._metrics else 100
        self._train = self._open("train")
        if not least <= arguments.num <= len(self._train):
            raise UserError(
                f"--num {arguments.num} must lie in {least}..{len(self._train)}: KID takes {2 * _BLOCK} at least, "
                "and there are no more training images to compare with"
            )
        self._extractor = fashion_mnist_classifier()
        check_shape(self._extractor, self._train.shape)
        self._out = arguments.workdir / "evaluation"
        self._scores = _read_scores(self._out / "scores.json")

    def run(self) -> str:
        """Measures what is not yet in scores.json; returns the table."""
        mesh = make_mesh()
        state, _ = restore_with_meta(self._arguments.workdir, sharding=NamedSharding(mesh, PartitionSpec()))
        leaves = jax.tree_util.tree_leaves_with_path(state.ema_params)
        weights = digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})
        reference = self._reference()
        collector = Collector(self._extractor, self._train.shape, self._arguments.batch_size, mesh)
        step = int(state.step)
        empty = [self._score(cell, weights, step, reference) for cell in self._cells]
        floor = self._floor(reference)
        known = {identity(score): score for score in self._scores}
        wanted = [*([floor] if floor else []), *empty]
        real: Collected | None = None
        for i, score in enumerate(wanted):
            missing = _missing(known.get(identity(score)), self._metrics)
            if missing:
                real = real or self._collect(collector, self._train, len(self._train), "reference")
                if score is floor:
                    found = self._collect(collector, self._open("test"), score.n, "floor")
                    speed = 0.0
                else:
                    cell = self._cells[i - (floor is not None)]
                    found, speed = self._draw(collector, cell, state.ema_params, mesh)
                values = measure(real, found, missing)
                old = known.get(identity(score))
                values = {**(old.values if old else {}), **values}
                known[identity(score)] = dataclasses.replace(score, images_per_s=speed, values=values)
                self._write(list(known.values()))
        done = [known[identity(score)] for score in wanted]
        return self._report(done[len(done) - len(empty) :], done[0] if floor else None)

    def _open(self, split: str) -> Source:
        data = self._config.data
        path = self._arguments.data_path or data.path
        return open_dataset(data.name, path, split, data.resize, data.on_error)

    def _reference(self) -> Reference:
        extractor, data = self._extractor, self._config.data
        resize = f"data {data.resize or 'none'}, features {extractor.resize}"
        about = (data.name, "train", len(self._train), resize, f"{extractor.name} {extractor.digest}")
        text = f"{self._train.fingerprint} {self._arguments.num} {about}"
        return Reference(*about, hashlib.sha256(text.encode()).hexdigest()[:16])

    def _floor(self, reference: Reference) -> Score | None:
        """The test images in the place of samples; None where there are too few for the same n."""
        try:
            test = self._open("test")
        except UserError as error:
            print(f"no floor: {error}", file=sys.stderr)
            return None
        if len(test) < self._arguments.num:
            print(f"no floor: {len(test)} test images, fewer than --num {self._arguments.num}", file=sys.stderr)
            return None
        return Score("test", 0, 0.0, "", 0, 0, 1.0, "", 0, self._arguments.num, reference, 0.0, {})

    def _score(self, sampling: Sampling, weights: str, step: int, reference: Reference) -> Score:
        method = samplers.by_name(sampling.sampler)
        name = sampling.sampler + (f" eta={sampling.eta:g}" if sampling.eta is not None else "")
        name += " large" if sampling.variance == "large" else ""
        nfe = method.nfe * sampling.steps * (2 if sampling.guidance != 1 else 1)
        grid = f"{sampling.spacing} spacing, threshold {sampling.threshold}"
        about = (weights, step, self._config.train.ema_decay, name, sampling.steps, nfe, sampling.guidance, grid)
        return Score(*about, self._arguments.seed, self._arguments.num, reference, 0.0, {})

    def _collect(self, collector: Collector, source: Source, n: int, what: str) -> Collected:
        """n images of a source in random order, the same every time."""
        order = np.random.Generator(np.random.Philox(0)).permutation(len(source))[:n]
        parts = [order[i : i + collector.batch_size] for i in range(0, n, collector.batch_size)]
        batches = (source.gather(part)["image"] for part in _track(parts, what))
        return collector.collect(batches, self._arguments.num)

    def _draw(self, collector: Collector, sampling: Sampling, params: Any, mesh: Mesh) -> tuple[Collected, float]:
        """Samples of one cell, classes in turn, and how many a second (the first batch, which compiles, aside)."""
        config, num, shape = self._config, self._arguments.num, self._train.shape
        draw = build_sample(config, sampling, build_model(config, shape[-1]), shape, collector.batch_size, mesh)
        key = jax.random.key(self._arguments.seed, impl="threefry2x32")
        classes, seconds = config.model.num_classes, []

        def batches() -> Iterator[np.ndarray]:
            starts = range(0, num, collector.batch_size)
            for start in _track(starts, f"{sampling.sampler} {sampling.steps} steps"):
                n = min(collector.batch_size, num - start)
                labels = (start + np.arange(n, dtype=np.int32)) % classes if classes else None
                began = time.perf_counter()
                images = pictures.to_uint8(draw(params, key, n, labels, start))
                seconds.append(time.perf_counter() - began)
                yield images

        found = collector.collect(batches(), num)
        warm = seconds[1:] or seconds
        return found, collector.batch_size * len(warm) / sum(warm)

    def _write(self, scores: list[Score]) -> None:
        content = {"scores": [dataclasses.asdict(score) for score in scores]}
        pictures.write_whole(self._out / "scores.json", (json.dumps(content, indent=2) + "\n").encode())

    def _report(self, scores: list[Score], floor: Score | None) -> str:
        text = table(scores, floor)
        pictures.write_whole(self._out / "table.md", text.encode())
        if "fid" in self._metrics:
            lines: dict[str, list[tuple[float, float]]] = {}
            for score in scores:
                lines.setdefault(score.sampler, []).append((score.nfe, score.values["fid"]))
            level = floor.values["fid"] if floor else None
            about = f"FID of {scores[0].n} samples ({scores[0].reference.extractor}), step {scores[0].step}"
            pictures.write_png(self._out / "fid.png", chart(lines, level, about))
        return text


def measure(real: Collected, found: Collected, metrics: Sequence[str]) -> dict[str, float]:
    """The metrics of a set of images against a reference."""
    values: dict[str, float] = {}
    if "fid" in metrics:
        values["fid"] = frechet_distance(real.gaussian, found.gaussian)
    if "kid" in metrics:
        kid = kernel_distance(real.features, found.features, _BLOCK)
        values |= {"kid": kid.value, "kid_error": kid.standard_error}
    if {"precision", "recall", "density", "coverage"} & set(metrics):
        four = neighbours(real.features, found.features)._asdict()
        values |= {name: value for name, value in four.items() if name in metrics}
    if "is" in metrics:
        values["is"] = found.inception_score
    if "sw" in metrics:
        values["sw"] = sliced_wasserstein(real.projections, found.projections)
    return values


def _metrics(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(f"--metrics {unknown[0]!r} is not one of {', '.join(METRICS)}")
    return names


def _cells(config: Config, arguments: argparse.Namespace) -> list[Sampling]:
    """How to sample for each cell, all of them valid."""
    own = config.sampling
    try:
        steps = [int(part) for part in arguments.steps.split(",")] if arguments.steps else [own.steps]
    except ValueError:
        raise UserError(f"--steps {arguments.steps!r} must be whole numbers, by commas") from None
    names = arguments.sampler.split(",") if arguments.sampler else [own.sampler]
    unknown = [name for name in names if name not in samplers.METHODS]
    if unknown:
        raise UserError(f"--sampler {unknown[0]!r} is not one of {', '.join(samplers.METHODS)}")
    cells = []
    for name in names:
        changes: dict[str, Any] = {"sampler": name}
        if name != own.sampler:  # eta and variance were the other sampler's
            changes |= {"eta": None, "variance": "small"}
        asked = {"guidance": arguments.guidance, "eta": arguments.eta}
        changes |= {name: value for name, value in asked.items() if value is not None}
        cells += [dataclasses.replace(own, **changes, steps=count) for count in steps]
    for cell in cells:
        validate(dataclasses.replace(config, sampling=cell))
    return cells


def _missing(score: Score | None, metrics: Sequence[str]) -> list[str]:
    return [name for name in metrics if score is None or name not in score.values]


def _read_scores(path: Path) -> list[Score]:
    if not path.exists():
        return []
    try:
        return [decode(Score, entry, "scores.") for entry in json.loads(path.read_text())["scores"]]
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path} is not what evaluate wrote ({error}); move it away") from None


def _track(parts: Sequence[Any], what: str) -> Any:
    return track(parts, what, console=Console(stderr=True))


if __name__ == "__main__":
    sys.exit(main())
