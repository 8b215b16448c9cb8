"""Samplers: from noise to data, one method a file, all run by the one loop in `sample`."""

from jaxdiff.samplers.base import Sampler, Trajectory, sample, sample_keys
from jaxdiff.samplers.ddim import ddim
from jaxdiff.samplers.ddpm import ddpm

__all__ = ["Sampler", "Trajectory", "ddim", "ddpm", "sample", "sample_keys"]
