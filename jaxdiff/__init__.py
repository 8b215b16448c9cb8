"""jaxdiff: diffusion models in JAX. The public names; see design in the docs."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxdiff import guidance, losses, samplers, schedules
from jaxdiff.denoisers import Prediction, as_denoiser, dynamic_threshold, static_threshold
from jaxdiff.guidance import classifier_free
from jaxdiff.losses import denoising_loss
from jaxdiff.process import add_noise, from_x0_noise, noise_step, posterior, to_x0_noise, transition
from jaxdiff.samplers import Sampler, Trajectory, sample, sample_keys
from jaxdiff.schedules import Marginal, Schedule
from jaxdiff.times import time_grid

if TYPE_CHECKING:
    from jaxdiff.job.fit import fit
    from jaxdiff.job.trained import load

__all__ = [
    "Marginal",
    "Prediction",
    "Sampler",
    "Schedule",
    "Trajectory",
    "add_noise",
    "as_denoiser",
    "classifier_free",
    "denoising_loss",
    "dynamic_threshold",
    "fit",
    "from_x0_noise",
    "guidance",
    "load",
    "losses",
    "noise_step",
    "posterior",
    "sample",
    "sample_keys",
    "samplers",
    "schedules",
    "static_threshold",
    "time_grid",
    "to_x0_noise",
    "transition",
]

_LATER = {"fit": "jaxdiff.job.fit", "load": "jaxdiff.job.trained"}  # who wants a loss does not wait for the job


def __getattr__(name: str) -> Any:
    """What is imported when it is first used: `fit` and `load`, and modules such as `jaxdiff.models`."""
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    try:
        return importlib.import_module(f"jaxdiff.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"jaxdiff.{name}":
            raise
        raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}") from None
