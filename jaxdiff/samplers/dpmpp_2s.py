"""DPM-Solver++(2S), single step: order 2, two network evaluations a step, one in the last."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.denoisers import Denoiser
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.exponential import between, first_order, half_log_snr, interior
from jaxdiff.schedules import Schedule


def dpmpp_2s() -> Sampler:
    """The data form with one more evaluation, at the middle of the step in log-SNR.

        (1)  u = alpha_m x_0 + sigma_m noise,  r = (lambda_m - lambda_t)/h ~ 1/2
        (2)  x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^-h) D,  D = (1 - 1/(2r)) x_0 + x_0(u, m)/(2r)

    On a discrete schedule m is a table entry and r follows it; where it coincides with t, the step has order 1.

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 1.

    >>> dpmpp_2s().nfe
    2
    """

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: tuple, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, tuple]:
        del keys
        m_t, m_s = schedule(t), schedule(s)
        h = half_log_snr(m_s) - half_log_snr(m_t)
        middle, m, r = between(schedule, m_t, h, 0.5, t - s)
        p = denoise(x, t)

        def second_order() -> Array:
            change = denoise(first_order(p, m), middle).x_0 - p.x_0
            weight = m_s.alpha * jnp.expm1(-h) / (2.0 * r)
            return first_order(p, m_s) - weight.astype(x.dtype) * change

        return jax.lax.cond(interior(m_t, m_s) & (r > 0), second_order, lambda: first_order(p, m_s)), state

    return Sampler(lambda x_T: (), step, nfe=2)
