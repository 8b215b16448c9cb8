"""How good samples are: distances between sets of images, streamed, and every number with what it depends on."""

from jaxdiff.evaluation.frechet import frechet_distance
from jaxdiff.evaluation.kernel import KernelDistance, kernel_distance
from jaxdiff.evaluation.moments import Gaussian, Moments
from jaxdiff.evaluation.neighbours import Neighbours, neighbours
from jaxdiff.evaluation.sliced_wasserstein import sliced_wasserstein

__all__ = [
    "Gaussian",
    "KernelDistance",
    "Moments",
    "Neighbours",
    "frechet_distance",
    "kernel_distance",
    "neighbours",
    "sliced_wasserstein",
]
