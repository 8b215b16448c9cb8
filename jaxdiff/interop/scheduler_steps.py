"""The steps that diffusers' schedulers take, and the noise between a schedule's entries, where some of them are.

Their step n of 0..T-1 is our entry n + 1 of 0..T. Euler's linspace and everybody's Karras sigmas fall between entries:
sigma/alpha is then interpolated, and what the network is told is a matter of its own (`seen`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxdiff.schedules import Marginal, Schedule
from jaxdiff.schedules.base import amplitudes, constant

_RHO = 7.0


def steps(c: Mapping[str, Any], schedule: Schedule, num_steps: int) -> np.ndarray:
    """Their steps n, descending, exactly num_steps of them; fractions where they are between two.

    Args:
      c: a scheduler's config with its defaults.
      schedule: the discrete one of its betas.
      num_steps: N.

    Raises:
      ValueError: num_steps is not in 1..T, or the steps begin beyond T.
    """
    top, offset = c["num_train_timesteps"], c["steps_offset"]
    multistep = "solver_order" in c
    if not 1 <= num_steps <= top:
        raise ValueError(f"num_steps must lie in 1..{top}, got {num_steps}")
    if "original_inference_steps" in c:
        return _consistency(c, num_steps)
    if c["timestep_spacing"] == "trailing":
        numbers = np.round(np.arange(top, 0, -top / num_steps)) - 1
    elif c["timestep_spacing"] == "linspace":
        numbers = np.linspace(0, top - 1, num_steps + multistep)[::-1]
        numbers = numbers if is_euler(c) else numbers.round()
    else:
        numbers = np.arange(num_steps + multistep)[::-1] * (top // (num_steps + multistep)) + float(offset)
    # For some N "trailing" of theirs has one more, at -1: left out, as multistep's last (it is the end of a step).
    numbers = numbers[:num_steps]
    if numbers[0] >= top:
        raise ValueError(f"{num_steps} steps with steps_offset={offset} begin beyond T = {top}")
    return _karras(c, schedule, numbers) if c.get("use_karras_sigmas") else numbers


def _consistency(c: Mapping[str, Any], num_steps: int) -> np.ndarray:
    """LCM's: of the grid that it was distilled on, spread over it from its last."""
    count = c["original_inference_steps"]
    if num_steps > count:
        raise ValueError(f"num_steps must lie in 1..{count}, the steps of its distillation, got {num_steps}")
    grid = np.arange(count, 0, -1) * (c["num_train_timesteps"] // count) - 1
    return grid[np.floor(np.linspace(0, count, num_steps, endpoint=False)).astype(int)].astype(float)


def is_euler(c: Mapping[str, Any]) -> bool:
    """Whether a config is of one of the Euler schedulers, whose steps may lie between whole ones."""
    return c["_class_name"].startswith("Euler")


def _karras(c: Mapping[str, Any], schedule: Schedule, numbers: np.ndarray) -> np.ndarray:
    """Equal steps of (sigma/alpha)^(1/7): from the first to the last of Euler's steps, or of the whole table."""
    rho, entries = _table(schedule)[1:], np.arange(schedule.num_steps or 0)
    high, low = np.interp(numbers[[0, -1]], entries, rho) if is_euler(c) else (rho[-1], rho[0])
    ramp = np.linspace(0.0, 1.0, len(numbers))
    sigmas = (high ** (1 / _RHO) + ramp * (low ** (1 / _RHO) - high ** (1 / _RHO))) ** _RHO
    return np.interp(np.log(sigmas), np.log(rho), entries)


def seen(c: Mapping[str, Any], t: ArrayLike) -> jax.Array:
    """The time that their network is told at time t: that of a whole step, but for the Euler schedulers."""
    top = c["num_train_timesteps"]
    t = jnp.asarray(t)
    return jnp.round(t * top) / top if c.get("use_karras_sigmas") and not is_euler(c) else t


def between(schedule: Schedule, log: bool) -> Schedule:
    """A discrete schedule with sigma/alpha, or its logarithm, linear in t between the entries.

    Below the first entry the logarithm has no end, and there is nothing but t = 0.

    Raises:
      ValueError: nothing is left of x_0 at the end, where sigma/alpha is infinite.

    >>> from jaxdiff import schedules
    >>> m = between(schedules.linear(), log=False)(jnp.array([0.0, 0.5, 0.5005, 0.501]))
    >>> rho = m.sigma / m.alpha
    >>> float(rho[0]), bool(jnp.allclose(rho[2], (rho[1] + rho[3]) / 2))
    (0.0, True)
    """
    table = _table(schedule)
    if not np.isfinite(table[-1]):
        raise ValueError("nothing is left of the image at t = 1 (rescale_betas_zero_snr): sigmas have no largest")
    top = len(table) - 1
    entries = np.arange(top + 1.0)

    def marginal(t: jax.Array) -> Marginal:
        if log:
            rho = jnp.exp(jnp.interp(t * top, constant(entries[1:]), constant(np.log(table[1:]))))
            rho = jnp.where(t * top < 0.5, 0.0, rho)
        else:
            rho = jnp.interp(t * top, constant(entries), constant(table))
        alpha = 1.0 / jnp.sqrt(1.0 + rho**2)
        return Marginal(alpha, rho * alpha)

    def time_of_log_snr(value: ArrayLike) -> jax.Array:
        rho = jnp.exp(-0.5 * jnp.asarray(value, jnp.result_type(float)))
        return jnp.interp(rho, constant(table), constant(entries)) / top

    return Schedule(marginal, time_of_log_snr)


def _table(schedule: Schedule) -> np.ndarray:
    """sigma/alpha at the entries 0..T, float64."""
    assert schedule.betas is not None
    alpha, sigma = amplitudes(schedule.betas)
    with np.errstate(divide="ignore"):
        return sigma / alpha
