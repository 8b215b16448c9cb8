"""Samplers: from noise to data, one method a file, all run by the one loop in `sample`."""

from collections.abc import Callable
from typing import Any

from jaxdiff.family import Family
from jaxdiff.samplers.base import Sampler, Trajectory, sample, sample_keys
from jaxdiff.samplers.ddim import ddim, ddim_inversion
from jaxdiff.samplers.ddpm import ddpm
from jaxdiff.samplers.deis import deis
from jaxdiff.samplers.dpm_solver import dpm_solver_1, dpm_solver_2, dpm_solver_3
from jaxdiff.samplers.dpmpp_2m import dpmpp_2m
from jaxdiff.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from jaxdiff.samplers.dpmpp_2s import dpmpp_2s
from jaxdiff.samplers.dpmpp_3m import dpmpp_3m
from jaxdiff.samplers.dpmpp_sde import dpmpp_sde
from jaxdiff.samplers.euler import euler
from jaxdiff.samplers.finite import watch
from jaxdiff.samplers.heun import heun
from jaxdiff.samplers.inpaint import inpaint
from jaxdiff.samplers.interpolate import slerp
from jaxdiff.samplers.lcm import lcm
from jaxdiff.samplers.mean_flow import mean_flow
from jaxdiff.samplers.plms import plms
from jaxdiff.samplers.unipc import unipc

METHODS: dict[str, Callable[..., Sampler]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm_solver_1": dpm_solver_1,
    "dpm_solver_2": dpm_solver_2,
    "dpm_solver_3": dpm_solver_3,
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
    "deis": deis,
    "plms": plms,
    "lcm": lcm,
}
"""Methods for every denoiser."""
SAMPLERS = Family("sampler", {**METHODS, "mean_flow": mean_flow})
"""All: those, and what needs a network of two times."""


def by_name(name: str, **options: Any) -> Sampler:
    """The sampler of that name, one of SAMPLERS, with the options of its factory.

    Raises:
      ValueError: unknown name or option (the choices are listed), or an option out of its range.

    >>> by_name("unipc", order=2).nfe
    1
    """
    return SAMPLERS.build(name, options)


__all__ = [
    "METHODS",
    "SAMPLERS",
    "Sampler",
    "Trajectory",
    "by_name",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "deis",
    "dpm_solver_1",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_sde",
    "euler",
    "heun",
    "inpaint",
    "lcm",
    "mean_flow",
    "plms",
    "sample",
    "sample_keys",
    "slerp",
    "unipc",
    "watch",
]
