"""DDPM ancestral sampling: weak order 1, one network evaluation a step."""

import jax
import jax.numpy as jnp

from jaxdiff.denoisers import Denoiser
from jaxdiff.process import posterior, transition
from jaxdiff.samplers.base import Sampler, normal_like
from jaxdiff.schedules import Schedule


def ddpm(variance: str = "small") -> Sampler:
    """x_s ~ q(x_s | x_t, x_0) with x_0 estimated: the ancestral step, from any t to any s < t.

    The coefficients are those of the two times given (not of t and its neighbour in the table), so any grid works;
    at s = 0 the image itself is returned and no noise is added.

    Args:
      variance: "small", that of the posterior (beta-tilde), right for data that is one point; or "large", that of
        the forward step (beta), right for data that is N(0, 1).

    Raises:
      ValueError: another variance.

    Source: Ho et al. 2020 (DDPM), algorithm 2, eq. 7, and section 3.2 for the two variances.

    >>> ddpm().nfe
    1
    """
    if variance not in ("small", "large"):
        raise ValueError(f"unknown variance {variance!r}; choose small or large")

    def step(
        keys: jax.Array, denoise: Denoiser, x: jax.Array, state: tuple, t: jax.Array, s: jax.Array, *, schedule: Schedule
    ) -> tuple[jax.Array, tuple]:
        m_t, m_s = schedule(t), schedule(s)
        mean, spread = posterior(denoise(x, t).x_0, x, m_s, m_t)
        if variance == "large":
            spread = jnp.where(m_s.sigma > 0, jnp.square(transition(m_s, m_t).sigma), 0.0)
        return mean + jnp.sqrt(spread) * normal_like(keys, x), state

    return Sampler(lambda x_T: (), step)
