"""An opt-in check: which step first brought a number that is not finite."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.denoisers import Denoiser, Prediction
from jaxdiff.samplers.base import Sampler
from jaxdiff.schedules import Schedule


def watch(sampler: Sampler) -> Sampler:
    """The same sampler, which stops with FloatingPointError where the denoiser first says NaN or infinity.

    The message names the step (counted from 0) and the time. Under jit the error comes wrapped in that of the
    runtime. The check costs a transfer of one flag to the host for each network evaluation.

    >>> from jaxdiff.samplers.ddim import ddim
    >>> watch(ddim()).nfe
    1
    """

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: Any, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, Any]:
        index, inner = state

        def watched(x_t: Array, now: Array) -> Prediction:
            p = denoise(x_t, now)
            jax.debug.callback(_stop, jnp.all(jnp.isfinite(p.x_0) & jnp.isfinite(p.noise)), index, now)
            return p

        x_s, inner = sampler.step(keys, watched, x, inner, t, s, schedule=schedule)
        return x_s, (index + 1, inner)

    return Sampler(lambda x_T: (jnp.zeros((), jnp.int32), sampler.init(x_T)), step, sampler.nfe)


def _stop(finite: Array, index: Array, t: Array) -> None:
    if not finite:
        raise FloatingPointError(f"the denoiser's output is not finite at step {int(index)}, t = {float(t):.6g}")
