"""Objectives: what a training step minimises."""

from jaxdiff.family import Family
from jaxdiff.objectives.base import Objective, ObjectiveOptions, Setting, timed
from jaxdiff.objectives.consistency import Consistency
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.hybrid import Hybrid
from jaxdiff.objectives.mean_flow import MeanFlow

OBJECTIVES = Family(
    "objective", {"denoising": Denoising, "hybrid": Hybrid, "consistency": Consistency, "mean_flow": MeanFlow}
)
ObjectiveOptions.family = OBJECTIVES

__all__ = [
    "OBJECTIVES",
    "Consistency",
    "Denoising",
    "Hybrid",
    "MeanFlow",
    "Objective",
    "ObjectiveOptions",
    "Setting",
    "timed",
]
