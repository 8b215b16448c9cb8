"""DDIM: order 1, one network evaluation a step; eta interpolates to ancestral sampling."""

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxdiff.denoisers import Denoiser
from jaxdiff.process import transition
from jaxdiff.samplers.base import Sampler, normal_like
from jaxdiff.schedules import Schedule


def ddim(eta: float | jax.Array = 0.0) -> Sampler:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - d^2) noise + d z,  d = eta sigma_s sigma_ts / sigma_t.

    Args:
      eta: in [0, 1]. 0 is deterministic (order 1 for the probability-flow ODE); 1 is the ancestral posterior
        step, d^2 being its variance. A traced value is taken as it is.

    Raises:
      ValueError: eta is outside [0, 1].

    Source: Song et al. 2021 (DDIM), eq. 12 and 16.

    >>> ddim(eta=0.5).nfe
    1
    """
    if not isinstance(eta, Tracer) and not 0 <= float(eta) <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    deterministic = not isinstance(eta, Tracer) and float(eta) == 0

    def step(
        keys: jax.Array, denoise: Denoiser, x: jax.Array, state: tuple, t: jax.Array, s: jax.Array, *, schedule: Schedule
    ) -> tuple[jax.Array, tuple]:
        m_t, m_s = schedule(t), schedule(s)
        p = denoise(x, t)
        if deterministic:
            return m_s.alpha * p.x_0 + m_s.sigma * p.noise, state
        ratio = eta * transition(m_s, m_t).sigma / m_t.sigma  # d / sigma_s
        direction = m_s.sigma * jnp.sqrt(jnp.maximum((1.0 - ratio) * (1.0 + ratio), 0.0))
        return m_s.alpha * p.x_0 + direction * p.noise + m_s.sigma * ratio * normal_like(keys, x), state

    return Sampler(lambda x_T: (), step)
