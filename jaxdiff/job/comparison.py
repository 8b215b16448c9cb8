"""Samples of a network against a data set: its images collected once, and one program for samples of any weights."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxdiff import pictures
from jaxdiff.assembly.recipe import make_method
from jaxdiff.config import Sampling
from jaxdiff.data.sources import Source
from jaxdiff.diffusion import Recipe, make_draw
from jaxdiff.errors import UserError
from jaxdiff.evaluation.collect import Collected, Collector
from jaxdiff.evaluation.extractors import Extractor
from jaxdiff.evaluation.measure import BLOCK
from jaxdiff.keys import purpose_key

LEAST = 100
"""Samples of which distances are measured at all."""


def check_num(num: int, source: Source, metrics: Sequence[str], option: str) -> None:
    """Refuses numbers of samples that the metrics, names in METRICS, say nothing of.

    Raises:
      UserError: what `option` must lie in.
    """
    kid = "kid" in metrics
    least = 2 * BLOCK if kid else LEAST
    if not least <= num <= len(source):
        few = f"KID takes two blocks of {BLOCK}" if kid else "fewer say nothing"
        raise UserError(
            f"{option} {num} must lie in {least}..{len(source)}: {few}, "
            "and there are no more training images to compare with"
        )


def parts(source: Source, n: int, batch_size: int) -> list[np.ndarray]:
    """The numbers of n records in random order, the same every time, a batch each."""
    order = np.random.Generator(np.random.Philox(0)).permutation(len(source))[:n]
    return [order[i : i + batch_size] for i in range(0, n, batch_size)]


def quietly(parts: Sequence[Any], what: str) -> Sequence[Any]:
    """Shows no progress."""
    del what
    return parts


class Comparison:
    """What samples are compared with, and how; every process makes and uses the same one.

    Args:
      recipe: the model.
      source: the images to compare with, all of them in moments, `num` of them in what needs features.
      extractor: of the features.
      num: samples of a set.
      batch_size: at a time, rounded up to a multiple of the devices.
      mesh: the devices.
      track: (parts, what) -> parts, showing the progress.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        extractor: Extractor,
        num: int,
        batch_size: int,
        mesh: Mesh,
        track: Callable[[Sequence[Any], str], Any] = quietly,
    ):
        self.source, self._recipe, self._num = source, recipe, num
        self._mesh, self._track = mesh, track
        self._collector = Collector(extractor, source.shape, batch_size, mesh)
        self._size = self._collector.batch_size

    def collect(self, source: Source) -> Collected:
        """`num` images of another source, in the place of samples."""
        return self._collect(source, self._num, "floor", [])

    @functools.cached_property
    def _known(self) -> tuple[Collected, dict[str, np.ndarray]]:
        records: list[dict[str, np.ndarray]] = []
        real = self._collect(self.source, len(self.source), "reference", records)
        return real, {name: np.concatenate([part[name] for part in records])[: self._num] for name in records[0]}

    @property
    def real(self) -> Collected:
        """What is kept of the source; collected when first asked for."""
        return self._known[0]

    def _collect(self, source: Source, n: int, what: str, records: list[dict[str, np.ndarray]]) -> Collected:
        def batches() -> Iterator[np.ndarray]:
            for part in self._track(parts(source, n, self._size), what):
                batch = source.gather(part)
                records.append({name: batch[name] for name in ("label", "record")})
                yield batch["image"]

        return self._collector.collect(batches(), self._num)

    def sampled(self, sampling: Sampling) -> Callable[..., tuple[Collected, float]]:
        """(params, seed, weak=None) -> what is kept of samples drawn so, and how many came a second.

        Sample i is that of `jaxdiff sample --seed SEED`, of the class or first caption of the source's i-th image, and
        so drawn as often as in the data. The first batch, which compiles, does not count in the rate.

        Raises:
          UserError: the condition of samples cannot be made up.
        """
        recipe, num, size = self._recipe, self._num, self._size
        conditioner = recipe.conditioner
        draw = make_draw(recipe, make_method(recipe, sampling), size, self._mesh)
        try:
            everything = {} if conditioner.tokenize else conditioner.parse([], num)
        except ValueError as error:
            raise UserError(f"metrics of samples: {error}") from None

        def collect(params: Any, seed: int, weak: Any = None) -> tuple[Collected, float]:
            if "label" in everything and not conditioner.misfit(self.source.num_classes):
                everything["label"] = self._known[1]["label"]
            if conditioner.tokenize:
                texts = [self.source.captions[record][0] for record in self._known[1]["record"]]
                everything.update(conditioner.parse(texts, num))
            key, seconds = purpose_key(seed, "sample"), []

            def batches() -> Iterator[np.ndarray]:
                for start in self._track(range(0, num, size), f"{sampling.sampler} {sampling.steps} steps"):
                    n = min(size, num - start)
                    batch = {name: values[start : start + n] for name, values in everything.items()}
                    began = time.perf_counter()
                    images = pictures.to_uint8(draw(params, key, n, batch, start, weak=weak))
                    seconds.append(time.perf_counter() - began)
                    yield images

            found = self._collector.collect(batches(), num)
            warm = seconds[1:] or seconds
            return found, size * len(warm) / sum(warm)

        return collect
