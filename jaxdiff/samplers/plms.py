"""PLMS, the pseudo linear multistep method of PNDM: order 2, one network evaluation a step, two in the first."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.denoisers import Denoiser
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.exponential import (
    NOISE_REACH,
    History,
    by_count,
    first_order,
    half_log_snr,
    interior,
    trapezoid_weight,
)
from jaxdiff.schedules import Schedule

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(full_order: bool = False) -> Sampler:
    """DDIM's step with an Adams-Bashforth mean of the last four noise estimates in place of the noise.

        (1)  e' = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3)/24
        (2)  x_s = (alpha_s/alpha_t) x_t + (sigma_s - alpha_s sigma_t/alpha_t) e'

    The first step is the mean of the noise at t and at the DDIM step's end (improved Euler), then the orders of
    Adams-Bashforth rise. Its weights are those of equal steps, which sigma/alpha does not make: order 2. Before leaps
    the order falls, and the first step has a bounded weight (`trapezoid_weight`).

    Args:
      full_order: neither of these, as in the released code.

    Source: Liu et al. 2022 (PNDM), eq. 12 and algorithm 2, with the first step of the released latent diffusion code.

    >>> plms().nfe
    1
    """

    def step(
        keys: Array, denoise: Denoiser, x: Array, past: History, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, History]:
        del keys
        m_t, m_s = schedule(t), schedule(s)
        p = denoise(x, t)
        lam = half_log_snr(m_t)
        count = past.usable(lam, half_log_snr(m_s) - lam, full_order, NOISE_REACH)
        reach = m_s.sigma - m_s.alpha * jnp.exp(-half_log_snr(m_t))  # alpha_s (rho_s - rho_t)
        euler = first_order(p, m_s)

        def first() -> Array:
            q = denoise(euler, s)
            if full_order:
                return euler + (0.5 * reach).astype(x.dtype) * (q.noise - p.noise)
            return euler + trapezoid_weight(m_t, m_s).astype(x.dtype) * (q.x_0 - p.x_0)

        def later() -> Array:
            options = [jnp.asarray(weights[1:], reach.dtype) for weights in ADAMS_BASHFORTH]
            weights = jnp.where(count > 0, reach * by_count(options, count), 0.0)
            return euler + past.correction(p.noise, weights)

        x_s = jax.lax.cond((past.count == 0) & interior(m_t, m_s), first, later)
        return x_s, past.push(p.noise, lam)

    return Sampler(lambda x_T: History.empty(x_T, 3), step)
