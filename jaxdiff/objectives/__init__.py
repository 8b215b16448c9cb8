"""Objectives: what a training step minimises."""

from jaxdiff.family import Family
from jaxdiff.objectives.base import Objective, ObjectiveOptions, Setting, timed
from jaxdiff.objectives.consistency import Consistency
from jaxdiff.objectives.continuous_consistency import ContinuousConsistency
from jaxdiff.objectives.contrastive import Contrastive
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.objectives.hybrid import Hybrid
from jaxdiff.objectives.latent_consistency import LatentConsistency
from jaxdiff.objectives.mean_flow import MeanFlow
from jaxdiff.objectives.progressive import Progressive
from jaxdiff.objectives.shortcut import Shortcut

OBJECTIVES = Family(
    "objective",
    {
        "denoising": Denoising,
        "hybrid": Hybrid,
        "consistency": Consistency,
        "mean_flow": MeanFlow,
        "shortcut": Shortcut,
        "progressive": Progressive,
        "continuous_consistency": ContinuousConsistency,
        "latent_consistency": LatentConsistency,
        "contrastive": Contrastive,
    },
)
ObjectiveOptions.family = OBJECTIVES

__all__ = [
    "OBJECTIVES",
    "Consistency",
    "ContinuousConsistency",
    "Contrastive",
    "Denoising",
    "Hybrid",
    "LatentConsistency",
    "MeanFlow",
    "Objective",
    "ObjectiveOptions",
    "Progressive",
    "Setting",
    "Shortcut",
    "timed",
]
