"""DDPM ancestral sampling: weak order 1, one network evaluation a step."""

import jax
import jax.numpy as jnp

from jaxdiff.denoisers import Denoiser
from jaxdiff.process import posterior
from jaxdiff.samplers.base import Sampler, normal_like
from jaxdiff.schedules import Schedule


def ddpm() -> Sampler:
    """x_s ~ q(x_s | x_t, x_0) with x_0 estimated: the ancestral step, from any t to any s < t.

    The coefficients are those of the two times given (not of t and its neighbour in the table), so any grid works;
    at s = 0 the posterior variance is 0 and no noise is added.

    Source: Ho et al. 2020 (DDPM), algorithm 2 and eq. 7 (variance beta-tilde).

    >>> ddpm().nfe
    1
    """

    def step(
        keys: jax.Array, denoise: Denoiser, x: jax.Array, state: tuple, t: jax.Array, s: jax.Array, *, schedule: Schedule
    ) -> tuple[jax.Array, tuple]:
        p = posterior(denoise(x, t).x_0, x, schedule(s), schedule(t))
        return p.mean + jnp.sqrt(p.variance) * normal_like(keys, x), state

    return Sampler(lambda x_T: (), step)
