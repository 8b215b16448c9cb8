"""What the experiments share: runs that train once, samples measured against one reference, a table and a plot each.

Every experiment is one command, which goes on where it stopped:

    uv run python -m benchmarks.experiments.NAME --data FOLDER [--runs FOLDER] [--run RUN] [--out FOLDER]

The first FOLDER has Fashion-MNIST's four idx files. --out, by default runs/experiments/results/NAME, gets results.json,
tables and plots; docs/experiments/NAME holds the published ones.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff import pictures, samplers
from jaxdiff.assembly.recipe import make_method, make_recipe
from jaxdiff.commands import exit_code, use_compilation_cache
from jaxdiff.config import Config, Sampling, validate
from jaxdiff.config.files import load, read_run
from jaxdiff.data.sources import Source, open_dataset
from jaxdiff.diffusion import make_draw
from jaxdiff.evaluation import frechet_distance, kernel_distance, neighbours
from jaxdiff.evaluation.chart import chart
from jaxdiff.evaluation.collect import Collected, Collector
from jaxdiff.evaluation.extractors import digest, fashion_mnist_classifier
from jaxdiff.evaluation.scores import Reference, Score
from jaxdiff.job import training as training_job
from jaxdiff.parallel import make_mesh
from jaxdiff.training.checkpoints import restore

ROOT = Path(__file__).parents[2]
BATCH = 250
SHAPE = (28, 28, 1)
Row = dict[str, Any]


class Place(NamedTuple):
    """Where an experiment finds the images, keeps its runs and writes its results."""

    data: str
    runs: Path
    out: Path
    run: Path | None = None
    slow: bool = False


def start(name: str, description: str | None, slow: str = "") -> Place:
    """Parses the command line; with `slow`, its help, there is an option --slow."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.experiments.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="folder of the four idx files")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "experiments", help="folder of the runs")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "experiments" / "results" / name, help="folder of the results"
    )
    parser.add_argument("--run", type=Path, help="sample from this run and not from fashion_mnist_small")
    if slow:
        parser.add_argument("--slow", action="store_true", help=slow)
    use_compilation_cache()
    return Place(**vars(parser.parse_args()))


def command(main: Callable[[], None]) -> None:
    """Runs an experiment; what cannot be is one line, and the exit code 2."""

    def body() -> tuple[int, str]:
        main()
        return 0, ""

    sys.exit(exit_code("experiment", body))


class Run(NamedTuple):
    """A trained network."""

    config: Config
    params: Any
    step: int
    workdir: Path


def base(place: Place) -> Config:
    """The config that all experiments change: fashion_mnist_small."""
    config = load("fashion_mnist_small", ROOT / "configs")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=place.data))


def change(config: Config, **values: Any) -> Config:
    """The config with fields of its groups replaced: change(config, train={"steps": 9}, seed=1)."""
    groups = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in values.items()
    }
    return dataclasses.replace(config, **groups)


def trained(place: Place, name: str, config: Config) -> Run:
    """The run NAME of the config, trained as far as it is not yet; sampled from its EMA."""
    workdir = place.runs / name
    config = validate(dataclasses.replace(config, workdir=str(workdir)))
    if _steps(workdir) < config.train.steps:
        code, line = training_job.train(config, time.time())
        print(line, file=sys.stderr)
        if code:
            raise SystemExit(code)
    state = restore(workdir, sharding=everywhere())
    return Run(config, state.ema_params, int(state.step), workdir)


def everywhere() -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(make_mesh(), PartitionSpec())


def _steps(workdir: Path) -> int:
    done = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    return max(done, default=0) if (workdir / "config.json").exists() else 0


def base_run(place: Place) -> Run:
    """The run which most experiments sample from: of `base`, or the one that was asked for."""
    if place.run is not None:
        state = restore(place.run, sharding=everywhere())
        return Run(read_run(place.run), state.ema_params, int(state.step), place.run)
    return trained(place, "fashion_mnist_small", base(place))


class Ruler:
    """Measures n samples at a time against the training images; rows that are in FILE are not measured again.

    The reference is one pass over all training images, made when the first row needs it.
    """

    def __init__(self, place: Place, n: int, file: str = "results.json"):
        self.n, self._path = n, place.out / file
        self._train, self._test = (open_dataset("fashion_mnist", place.data, split) for split in ("train", "test"))
        self._mesh = make_mesh()
        self._extractor = fashion_mnist_classifier()
        self._collector = Collector(self._extractor, SHAPE, BATCH, self._mesh)
        about = (
            "fashion_mnist",
            "train",
            len(self._train),
            "none",
            f"fashion_mnist_classifier {self._extractor.digest}",
        )
        text = f"{self._train.fingerprint} {n} {about}"
        self._reference = Reference(*about, hashlib.sha256(text.encode()).hexdigest()[:16])
        self._real: Collected | None = None
        self.rows: list[Row] = json.loads(self._path.read_text())["rows"] if self._path.exists() else []

    def floor(self) -> Row:
        """The test images in the place of samples."""
        score = Score("test", 0, 0.0, "", 0, 0, 1.0, "", 0, self.n, self._reference, 0.0, {})
        return self._row({}, score, lambda: (self._collect(self._test, self.n), 0.0))

    def row(self, run: Run, sampling: Sampling, ema: float | None = None, **about: Any) -> Row:
        """One set of samples, seed 0.

        Args:
          run: the network.
          sampling: how to draw.
          ema: of the parameters, if they are not the run's own average.
          about: more that names the row.
        """
        validate(dataclasses.replace(run.config, sampling=sampling))
        name = sampling.sampler + (f" eta={sampling.eta:g}" if sampling.eta is not None else "")
        nfe = samplers.by_name(sampling.sampler).nfe * sampling.steps * (2 if sampling.guidance != 1 else 1)
        grid = f"{sampling.spacing} spacing, threshold {sampling.threshold}"
        leaves = jax.tree_util.tree_leaves_with_path(run.params)
        what = digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})
        kept = (what, run.step, run.config.train.ema_decay if ema is None else ema)
        how = (name, sampling.steps, nfe, sampling.guidance, grid, 0, self.n, self._reference)
        return self._row(about, Score(*kept, *how, 0.0, {}), lambda: self._draw(run, sampling))

    def _row(self, about: Row, score: Score, make: Callable[[], tuple[Collected, float]]) -> Row:
        key = json.loads(json.dumps({**about, **dataclasses.asdict(score)}))
        skip = ("images_per_s", "values")
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items() if name not in skip):
                return row
        if self._real is None:
            self._real = self._collect(self._train, len(self._train))
        found, speed = make()
        row = {**key, "images_per_s": speed, "values": _values(self._real, found, self.n)}
        self.rows.append(row)
        write_json(self._path, {"rows": self.rows})
        print({**about, "sampler": score.sampler, "steps": score.steps}, row["values"], flush=True)
        return row

    def _collect(self, source: Source, n: int) -> Collected:
        order = np.random.Generator(np.random.Philox(0)).permutation(len(source))[:n]
        parts = [order[i : i + BATCH] for i in range(0, n, BATCH)]
        return self._collector.collect((source.gather(part)["image"] for part in parts), self.n)

    def _draw(self, run: Run, sampling: Sampling) -> tuple[Collected, float]:
        """The samples, classes in turn, and how many a second of CPU time (the first batch, which compiles, aside)."""
        recipe = make_recipe(run.config, SHAPE)
        draw = make_draw(recipe, make_method(recipe, sampling), BATCH, self._mesh)
        key, seconds = jax.random.key(0, impl="threefry2x32"), []

        def batches() -> Iterator[np.ndarray]:
            for first in range(0, self.n, BATCH):
                labels = (first + np.arange(BATCH, dtype=np.int32)) % 10
                began = time.process_time()
                images = pictures.to_uint8(draw(run.params, key, BATCH, {"label": labels}, first))
                seconds.append(time.process_time() - began)
                yield images

        found = self._collector.collect(batches(), self.n)
        return found, BATCH / float(np.mean(seconds[1:]))


def _values(real: Collected, found: Collected, n: int) -> dict[str, float]:
    kid = kernel_distance(real.features, found.features, _kid_block(n))
    four = neighbours(real.features, found.features)
    values = {"fid": frechet_distance(real.gaussian, found.gaussian), "kid": kid.value, "kid_error": kid.standard_error}
    return {**values, "precision": four.precision, "recall": four.recall}


def _kid_block(n: int) -> int:
    """Images of a block: the error of KID comes from how blocks differ, and there are to be two at least."""
    return min(1000, n // 2)


def write_json(path: Path, content: Any) -> None:
    """The whole file or none of it."""
    pictures.write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def write_table(
    place: Place, head: Sequence[str], rows: Sequence[Sequence[Any]], notes: str, file: str = "table.md"
) -> None:
    """A table, and under it what all rows have in common."""
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join(f"| {' | '.join(_text(cell) for cell in line)} |" for line in lines)
    pictures.write_whole(place.out / file, f"{text}\n\n{notes}\n".encode())


def write_plot(
    place: Place,
    lines: dict[str, list[tuple[float, float]]],
    floor: float | None,
    title: str,
    x_title: str,
    file: str = "plot.png",
) -> None:
    """Points joined by lines, both axes logarithmic."""
    pictures.write_png(place.out / file, chart(lines, floor, title, x_title))


def quality(row: Row) -> list[str]:
    """The cells fid, kid, precision and recall."""
    v = row["values"]
    return [f"{v['fid']:.4g}", f"{v['kid']:.3g} ± {v['kid_error']:.1g}", f"{v['precision']:.3f}", f"{v['recall']:.3f}"]


QUALITY = ("FID", "KID", "precision", "recall")


def notes(row: Row, extra: str = "") -> str:
    """What numbers depend on."""
    reference = row["reference"]
    return (
        f"n = {row['n']}, sampling seed {row['seed']}, {row['grid']}; reference: {reference['n']} images of "
        f"{reference['data']}, split {reference['split']}, digest {reference['digest']}; features: "
        f"{reference['extractor']}; no resizing; KID in {row['n'] // _kid_block(row['n'])} blocks of "
        f"{_kid_block(row['n'])}, a rough error. {extra}"
    ).strip()


def mean_and_spread(values: Sequence[float]) -> str:
    """mean ± standard deviation over seeds."""
    return f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}"


def _text(cell: Any) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def read_metrics(workdir: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of every line of metrics.jsonl."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines]
