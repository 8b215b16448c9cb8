"""Noise schedules: how much signal and how much noise is left at time t; the notation is derived in `base`."""

from jaxdiff.family import Family
from jaxdiff.schedules.base import Marginal, Schedule, from_betas, from_function
from jaxdiff.schedules.continuous import (
    continuous_sub_vp,
    continuous_vp,
    edm,
    flow,
    interpolate,
    interpolated_cosine,
    shifted_cosine,
    ve,
)
from jaxdiff.schedules.discrete import cosine, linear, scaled_linear, sigmoid

SCHEDULES = Family(
    "schedule",
    {
        "linear": linear,
        "scaled_linear": scaled_linear,
        "cosine": cosine,
        "sigmoid": sigmoid,
        "continuous_vp": continuous_vp,
        "continuous_sub_vp": continuous_sub_vp,
        "ve": ve,
        "edm": edm,
        "flow": flow,
        "shifted_cosine": shifted_cosine,
        "interpolated_cosine": interpolated_cosine,
    },
    given=("num_steps",),  # T of those that are tables
)

__all__ = [
    "SCHEDULES",
    "Marginal",
    "Schedule",
    "continuous_sub_vp",
    "continuous_vp",
    "cosine",
    "edm",
    "flow",
    "from_betas",
    "from_function",
    "interpolate",
    "interpolated_cosine",
    "linear",
    "scaled_linear",
    "shifted_cosine",
    "sigmoid",
    "ve",
]
