"""jaxdiff: diffusion models in JAX. The public names; see design in the docs."""

from jaxdiff import guidance, losses, samplers, schedules
from jaxdiff.denoisers import Prediction, as_denoiser, dynamic_threshold, static_threshold
from jaxdiff.guidance import classifier_free
from jaxdiff.losses import denoising_loss
from jaxdiff.process import add_noise, from_x0_noise, noise_step, posterior, to_x0_noise, transition
from jaxdiff.samplers import Sampler, Trajectory, sample, sample_keys
from jaxdiff.schedules import Marginal, Schedule
from jaxdiff.times import time_grid

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
    "from_x0_noise",
    "guidance",
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
