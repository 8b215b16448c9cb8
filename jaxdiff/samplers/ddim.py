"""DDIM: order 1, one network evaluation a step; eta interpolates to ancestral sampling. And its exact inversion."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from jaxdiff.denoisers import Denoiser
from jaxdiff.process import transition
from jaxdiff.samplers.base import Sampler, check_eta, normal_like
from jaxdiff.schedules import Schedule


def ddim(eta: float | Array = 0.0) -> Sampler:
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
    check_eta(eta)
    deterministic = not isinstance(eta, Tracer) and float(eta) == 0

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: tuple, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, tuple]:
        m_t, m_s = schedule(t), schedule(s)
        p = denoise(x, t)
        if deterministic:
            m_s = m_s.like(p.x_0)
            return m_s.alpha * p.x_0 + m_s.sigma * p.noise, state
        ratio = eta * transition(m_s, m_t).sigma / jnp.where(m_t.sigma > 0, m_t.sigma, 1.0)  # d / sigma_s
        direction = m_s.sigma * jnp.sqrt(jnp.maximum((1.0 - ratio) * (1.0 + ratio), 0.0))
        x_s = m_s.alpha * p.x_0 + direction * p.noise + m_s.sigma * ratio * normal_like(keys, x)
        return x_s.astype(x.dtype), state

    return Sampler(lambda x_T: (), step)


def ddim_inversion(iterations: int = 3) -> Sampler:
    """From data to noise, along ascending times, so that DDIM along the same times descending leads back.

    The step from t to s > t solves DDIM's step from s to t for where it started, by fixed-point iteration from
    (alpha_s/alpha_t) x_t:

        x_s <- (alpha_s/alpha_t) x_t + (sigma_s - alpha_s sigma_t/alpha_t) noise(x_s, s)

    One iteration is the usual approximate inversion; each more brings the way back nearer to its start. (`ddim`
    itself along ascending times would take the noise at t, of which a network knows nothing at t = 0.) The last time
    must leave some signal: alpha > 0.

    Args:
      iterations: >= 1; as many network evaluations a step.

    Raises:
      ValueError: iterations is below 1.

    Source: Mokady et al. 2023 (null-text inversion), section 3.1; Pan et al. 2023 (AIDI), section 3.2 (iterated).

    >>> ddim_inversion(iterations=2).nfe
    2
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: tuple, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, tuple]:
        del keys
        m_t, m_s = schedule(t), schedule(s)
        scaled = (m_s.alpha / m_t.alpha * x).astype(x.dtype)
        reach = m_s.sigma - m_s.alpha * m_t.sigma / m_t.alpha

        def iterate(x_s: Array, _: None) -> tuple[Array, None]:
            return (scaled + reach * denoise(x_s, s).noise).astype(x.dtype), None

        return jax.lax.scan(iterate, scaled, None, length=iterations)[0], state

    return Sampler(lambda x_T: (), step, nfe=iterations)
