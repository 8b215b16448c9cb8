"""The metrics of one set of images against a reference, by name."""

from collections.abc import Sequence

from jaxdiff.evaluation.collect import Collected
from jaxdiff.evaluation.frechet import frechet_distance
from jaxdiff.evaluation.kernel import kernel_distance
from jaxdiff.evaluation.neighbours import neighbours
from jaxdiff.evaluation.sliced_wasserstein import sliced_wasserstein

BLOCK = 1000
"""Features a block of the kernel distance."""


def measure(real: Collected, found: Collected, metrics: Sequence[str]) -> dict[str, float]:
    """The values of `metrics`, of `scores.METRICS`; with kid its standard error, kid_error."""
    values: dict[str, float] = {}
    if "fid" in metrics:
        values["fid"] = frechet_distance(real.gaussian, found.gaussian)
    if "kid" in metrics:
        kid = kernel_distance(real.features, found.features, BLOCK)
        values |= {"kid": kid.value, "kid_error": kid.standard_error}
    if {"precision", "recall", "density", "coverage"} & set(metrics):
        four = neighbours(real.features, found.features)._asdict()
        values |= {name: value for name, value in four.items() if name in metrics}
    if "is" in metrics:
        values["is"] = found.inception_score
    if "sw" in metrics:
        values["sw"] = sliced_wasserstein(real.projections, found.projections)
    return values
