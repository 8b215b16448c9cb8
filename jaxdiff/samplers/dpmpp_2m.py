"""DPM-Solver++(2M), multistep: order 2 (the first and the last step 1), one network evaluation a step."""

import jax.numpy as jnp
from jax import Array

from jaxdiff.denoisers import Denoiser
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.exponential import History, first_order, half_log_snr, interior
from jaxdiff.schedules import Schedule


def dpmpp_2m(full_order: bool = False) -> Sampler:
    """The data form, x_0 extrapolated from its last two estimates.

        (1)  r = (lambda_t - lambda_before)/h,  D = x_0 + (x_0 - x_0 before)/(2r)
        (2)  x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^-h) D

    Before a leap D = x_0 (order 1).

    Args:
      full_order: (1) before leaps too, as the released code; see `jaxdiff.samplers.exponential.History.usable`.

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2.

    >>> dpmpp_2m().nfe
    1
    """

    def step(
        keys: Array, denoise: Denoiser, x: Array, past: History, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, History]:
        del keys
        m_t, m_s = schedule(t), schedule(s)
        lam = half_log_snr(m_t)
        h = half_log_snr(m_s) - lam
        r = (lam - past.positions[0]) / h
        p = denoise(x, t)
        second = interior(m_t, m_s) & (past.usable(lam, h, full_order) > 0)
        weight = jnp.where(second, m_s.alpha * jnp.expm1(-h) / (2.0 * r), 0.0)
        return first_order(p, m_s) + past.correction(p.x_0, weight[None]), past.push(p.x_0, lam)

    return Sampler(lambda x_T: History.empty(x_T, 1), step)
