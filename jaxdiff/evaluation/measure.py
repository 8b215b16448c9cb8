"""The metrics of one set of images against a reference, by name (`METRICS`)."""

import functools
from collections.abc import Sequence

from jaxdiff.evaluation.collect import Collected
from jaxdiff.evaluation.frechet import frechet_distance
from jaxdiff.evaluation.kernel import kernel_distance
from jaxdiff.evaluation.neighbours import Neighbours, neighbours
from jaxdiff.evaluation.sliced_wasserstein import sliced_wasserstein
from jaxdiff.family import Family

BLOCK = 1000
"""Features a block of the kernel distance."""


def fid(real: Collected, samples: Collected) -> float:
    """Frechet distance of the features."""
    return frechet_distance(real.gaussian, samples.gaussian)


def kid(real: Collected, samples: Collected) -> dict[str, float]:
    """Kernel distance of the features, and its standard error."""
    distance = kernel_distance(real.features, samples.features, BLOCK)
    return {"kid": distance.value, "kid_error": distance.standard_error}


@functools.lru_cache(maxsize=1)
def _neighbours(real: Collected, samples: Collected) -> Neighbours:
    """The four that cost no more than one."""
    return neighbours(real.features, samples.features)


def precision(real: Collected, samples: Collected) -> float:
    """Samples among the reference."""
    return _neighbours(real, samples).precision


def recall(real: Collected, samples: Collected) -> float:
    """The reference among samples."""
    return _neighbours(real, samples).recall


def density(real: Collected, samples: Collected) -> float:
    """As precision, counted by how many neighbourhoods a sample lies in."""
    return _neighbours(real, samples).density


def coverage(real: Collected, samples: Collected) -> float:
    """The reference's images that have a sample beside them."""
    return _neighbours(real, samples).coverage


def inception_score(real: Collected, samples: Collected) -> float:
    """Of the samples alone."""
    del real
    return samples.inception_score


def sw(real: Collected, samples: Collected) -> float:
    """Sliced Wasserstein distance of the pixels."""
    return sliced_wasserstein(real.projections, samples.projections)


METRICS = Family(
    "metric",
    {
        "fid": fid,
        "kid": kid,
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "is": inception_score,
        "sw": sw,
    },
)
"""Members take the reference and what was found, and give a number, or {name: number, name_error: its error}."""

MORE_IS_BETTER = frozenset({"precision", "recall", "density", "coverage", "is"})
"""Names of metrics; of the others less is better, among them the validation loss."""


def measure(real: Collected, samples: Collected, metrics: Sequence[str]) -> dict[str, float]:
    """The values of `metrics`, names in METRICS; with kid its standard error, kid_error."""
    values: dict[str, float] = {}
    for name in metrics:
        value = METRICS.build(name, {}, real, samples)
        values |= value if isinstance(value, dict) else {name: value}
    return values
