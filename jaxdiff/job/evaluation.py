"""Measuring a run: samples against its data, cell by cell, and its data's bits under it; all processes together."""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import track

from jaxdiff import pictures, samplers
from jaxdiff.assembly.recipe import open_data
from jaxdiff.config import Config, Sampling, make_conditioner, make_schedule, validate
from jaxdiff.config.files import read_run
from jaxdiff.data.sources import Source
from jaxdiff.errors import UserError
from jaxdiff.evaluation.chart import chart
from jaxdiff.evaluation.extractors import digest
from jaxdiff.evaluation.features import choose
from jaxdiff.evaluation.measure import METRICS, measure
from jaxdiff.evaluation.prompts import PROMPTED
from jaxdiff.evaluation.scores import DEFINITIONS, LIKELIHOODS, Bits, Reference, Score, bits_line, table
from jaxdiff.job.comparison import Comparison, check_num, parts
from jaxdiff.job.likelihood import build_bits
from jaxdiff.job.prompts import Judge
from jaxdiff.job.score_file import ScoreFile
from jaxdiff.job.trained import Trained, load
from jaxdiff.job.weak_model import weak_params
from jaxdiff.job.workdir import class_numbering
from jaxdiff.keys import purpose_key
from jaxdiff.parallel import make_mesh, processes
from jaxdiff.storage import check_writable, place
from jaxdiff.training.checkpoints import report
from jaxdiff.training.logs import shown


class Evaluation:
    """One command: everything is checked when it is made, and measured by `run`.

    Several processes make and run the same one; process 0 alone writes and speaks.
    """

    def __init__(self, arguments: SimpleNamespace):
        self._arguments = arguments
        config = read_run(arguments.workdir)
        other = {"name": arguments.data_name, "path": ""} if arguments.data_name else {}
        self._data = dataclasses.replace(config.data, **other)
        self._config = config = dataclasses.replace(config, data=self._data)
        names = _metrics(arguments.metrics)
        self._metrics = [name for name in names if name in METRICS.members]
        self._kinds = [name for name in names if name in LIKELIHOODS]
        self._cells = _cells(config, arguments)
        if arguments.batch_size < 1 or not 0 <= arguments.seed < 2**32:
            raise UserError(f"--batch-size must be at least 1, and --seed lie in 0..{2**32 - 1}")
        self._mesh = make_mesh()
        self._batch_size = -(-arguments.batch_size // self._mesh.size) * self._mesh.size
        if self._metrics:
            self._check_metrics()
        self._test = self._test_images()
        if self._kinds:
            self._check_likelihoods(self._test)
        self._out = arguments.workdir / "evaluation"
        if jax.process_index() == 0:
            for name in ("scores.json", "table.md", "fid.png"):
                check_writable(self._out / name, "the file")
        self._file = ScoreFile(self._out / "scores.json")
        words = {name: str(value) for name, value in vars(arguments).items()}
        processes.agree({**words, "scores.json": self._file.digest()})

    def _check_metrics(self) -> None:
        self._train = self._open("train", self._arguments.data_path)
        check_num(self._arguments.num, self._train, self._metrics, "--num")
        features = self._arguments.features
        is_judge = features and (place(features) / "config.json").exists()
        self._extractor = Judge(features).extractor() if is_judge else choose(features, self._train.shape)
        classes = self._config.model.num_classes
        if classes and classes != self._train.num_classes:
            report(
                f"the model has {classes} classes and the data {self._train.num_classes}: "
                "samples are of every class of the model, as often"
            )

    def _check_likelihoods(self, test: Source | None) -> None:
        kind, classes = self._kinds[0], self._config.model.num_classes
        if test is None:
            raise UserError(f"{kind} is of test images, and there are none: give --test-path")
        if self._arguments.bits_num is None:
            self._arguments.bits_num = min(1000, len(test))
        num = self._arguments.bits_num
        if not 2 <= num <= len(test):
            raise UserError(f"--bits-num {num} must lie in 2..{len(test)}, the test images")
        if make_conditioner(self._config.diffusion, classes).tokenize is not None:
            raise UserError(f"{kind}: of runs that are told by text it is not measured")
        if classes and classes != test.num_classes:
            raise UserError(f"{kind}: the model has {classes} classes, and the test images have {test.num_classes}")
        schedule = self._config.diffusion.schedule
        if "bpd" in self._kinds and make_schedule(self._config.diffusion).num_steps is None:
            raise UserError(f"bpd is the bound of a discrete schedule, and {schedule} is continuous; use bpd_flow")
        if "bpd_flow" in self._kinds and not importlib.util.find_spec("diffrax"):
            raise UserError("bpd_flow needs the package diffrax: uv sync --extra ode")

    def _open(self, split: str, path: str | None) -> Source:
        data, classes = self._data, self._config.model.num_classes
        numbering = class_numbering(self._arguments.workdir, data.name) if classes else "natural"
        return open_data(self._config, numbering, split=split, path=path or data.path)

    def _test_images(self) -> Source | None:
        """The test split, or what --test-path names; a folder has no splits."""
        given = self._arguments.test_path
        split = "train" if given and self._data.name == "folder" else "test"
        try:
            return self._open(split, given or self._arguments.data_path)
        except UserError as error:
            if given or self._kinds:
                raise
            report(f"no floor: {error}")
            return None

    def run(self) -> str:
        """Measures what is not yet in scores.json; returns the table, and a line for the bits."""
        copies = NamedSharding(self._mesh, PartitionSpec())
        model = load(self._arguments.workdir, step=self._arguments.step, sharding=copies)
        for source in (self._train if self._metrics else None, self._test):
            if source is not None and source.shape != model.image_shape:
                raise UserError(f"the run's images are {model.image_shape}, and the data's {source.shape}")
        leaves = jax.tree_util.tree_leaves_with_path(model.params)
        weights = digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})
        about = weights, model.step, self._config.train.ema_decay
        parts = [self._compare(model, about)] if self._metrics else []
        if self._test is not None:
            parts += [bits_line(self._likelihood(model, about, kind, self._test)) for kind in self._kinds]
        text = "\n".join(part.rstrip("\n") for part in parts)
        if jax.process_index() == 0:
            pictures.write_whole(self._out / "table.md", f"{text}\n".encode())
        return text

    def _compare(self, model: Trained, about: tuple[str, int, float]) -> str:
        """The table of samples against the reference."""
        reference, seed = self._reference(), self._arguments.seed
        how = self._extractor, self._arguments.num, self._batch_size, self._mesh, self._track
        comparison = Comparison(model.recipe, self._train, *how)
        copies = NamedSharding(self._mesh, PartitionSpec())

        def measured(score: Score, cell: Sampling | None) -> Score:
            known = self._file.find(score) or score
            missing = [name for name in self._metrics if name not in known.values]
            if missing:
                if cell:
                    weak = weak_params(cell, self._arguments.workdir, model.state, copies)
                    samples, speed = comparison.sampled(cell)(model.params, seed, weak)
                else:
                    assert self._test is not None
                    samples, speed = comparison.collect(self._test), 0.0
                values = {**known.values, **measure(comparison.real, samples, missing)}
                known = dataclasses.replace(score, images_per_s=speed, values=values)
                self._file.put(known)
            return known

        floor = self._floor(reference)
        floor = measured(floor, None) if floor else None
        scores = [measured(self._score(cell, about, reference), cell) for cell in self._cells]
        if "fid" in self._metrics and jax.process_index() == 0:
            pictures.write_png(self._out / "fid.png", _chart(scores, floor))
        return table(scores, floor)

    def _reference(self) -> Reference:
        extractor, data = self._extractor, self._data
        resize = f"data {data.resize or 'none'}, features {extractor.resize}"
        about = (data.name, "train", len(self._train), resize, f"{extractor.name} {extractor.digest}")
        return Reference(*about, _sha256(f"{self._train.fingerprint} {self._arguments.num} {about}"))

    def _floor(self, reference: Reference) -> Score | None:
        """The test images in the place of samples; None where there are too few for the same n."""
        if self._test is None:
            return None
        if len(self._test) < self._arguments.num:
            report(f"no floor: {len(self._test)} test images, fewer than --num {self._arguments.num}")
            return None
        return Score("test", 0, 0.0, "", 0, 0, 1.0, "", 0, self._arguments.num, reference, 0.0, {}, DEFINITIONS)

    def _score(self, sampling: Sampling, about: tuple[str, int, float], reference: Reference) -> Score:
        method = samplers.by_name(sampling.sampler)
        name = sampling.sampler + (f" eta={sampling.eta:g}" if sampling.eta is not None else "")
        name += " large" if sampling.variance == "large" else ""
        nfe = method.nfe * sampling.steps * (2 if sampling.guidance != 1 else 1)
        grid = f"{sampling.spacing} spacing, threshold {sampling.threshold}"
        how = (name, sampling.steps, nfe, sampling.guidance, grid)
        return Score(*about, *how, self._arguments.seed, self._arguments.num, reference, 0.0, {}, DEFINITIONS)

    def _likelihood(self, model: Trained, about: tuple[str, int, float], kind: str, source: Source) -> Bits:
        """The bits per dimension of the first of the test images, in random order."""
        n, data = self._arguments.bits_num, self._data
        resize = f"data {data.resize or 'none'}"
        what = (kind, self._config.diffusion.num_steps if kind == "bpd" else 0, data.name, "test", resize)
        rest = _sha256(f"{source.fingerprint} {what}"), self._arguments.seed, n
        bits = Bits(*about, *what, *rest, definitions=DEFINITIONS)
        if known := self._file.find(bits):
            return known
        measure_bits = build_bits(model.recipe, kind, self._batch_size, self._mesh)
        key, bits_of = purpose_key(self._arguments.seed, "bits"), []
        for part in self._track(parts(source, n, self._batch_size), kind):
            bits_of.append(measure_bits(model.params, key, sum(map(len, bits_of)), source.gather(part)))
        values = np.concatenate(bits_of).astype(np.float64)
        error = float(values.std(ddof=1) / np.sqrt(n))
        bits = dataclasses.replace(bits, value=float(values.mean()), error=error)
        self._file.put(bits)
        return bits

    def _track(self, parts: Sequence[Any], what: str) -> Any:
        return track(parts, what, console=Console(stderr=True), disable=jax.process_index() != 0 or not shown())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _chart(scores: list[Score], floor: Score | None) -> np.ndarray:
    lines: dict[str, list[tuple[float, float]]] = {}
    for score in scores:
        lines.setdefault(score.sampler, []).append((score.nfe, score.values["fid"]))
    about = f"FID of {scores[0].n} samples ({scores[0].reference.extractor}), step {scores[0].step}"
    return chart(lines, floor.values["fid"] if floor else None, about)


def _metrics(text: str) -> list[str]:
    names = text.split(",")
    legal = [*METRICS.members, *LIKELIHOODS, *PROMPTED]
    unknown = [name for name in names if name not in legal]
    if unknown:
        raise UserError(f"--metrics {unknown[0]!r} is not one of {', '.join(legal)}")
    return names


def _cells(config: Config, arguments: SimpleNamespace) -> list[Sampling]:
    """How to sample for each cell, all of them valid."""
    own = config.sampling
    try:
        steps = [int(part) for part in arguments.steps.split(",")] if arguments.steps else [own.steps]
    except ValueError:
        raise UserError(f"--steps {arguments.steps!r} must be whole numbers, by commas") from None
    names = arguments.sampler.split(",") if arguments.sampler else [own.sampler]
    unknown = [name for name in names if name not in samplers.SAMPLERS.members]
    if unknown:
        raise UserError(f"--sampler {unknown[0]!r} is not one of {', '.join(samplers.SAMPLERS.members)}")
    cells = []
    for name in names:
        changes: dict[str, Any] = {"sampler": name}
        if name != own.sampler:  # eta and variance were the other sampler's
            changes |= {"eta": None, "variance": "small"}
        given = {"guidance": arguments.guidance, "eta": arguments.eta}
        changes |= {name: value for name, value in given.items() if value is not None}
        cells += [dataclasses.replace(own, **changes, steps=count) for count in steps]
    for cell in cells:
        validate(dataclasses.replace(config, sampling=cell))
    return cells
