"""DEIS in log-rho: order as asked for (first and last steps less), multistep, one network evaluation a step."""

import jax.numpy as jnp
from jax import Array

from jaxdiff.denoisers import Denoiser
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.exponential import (
    NOISE_REACH,
    History,
    adams_weights,
    by_count,
    first_order,
    half_log_snr,
    interior,
    noise_moments,
)
from jaxdiff.schedules import Schedule


def deis(order: int = 3) -> Sampler:
    """The noise form, noise extrapolated by the polynomial in lambda = -log(rho) through its last estimates.

        x_s = alpha_s x_0 + sigma_s noise + alpha_s sum_j w_j (noise_j - noise),  w_j = int_t^s L_j(lambda) d rho

    with rho = sigma/alpha and L_j the Lagrange polynomials of the lambdas of the estimates; the moments are closed
    forms, see `jaxdiff.samplers.exponential`. The paper's t as the variable of L_j has no digits left in float32 where
    a grid crowds at t = 1; log-rho is what the released code of diffusers takes. Before leaps, and at s = 0, where
    lambda is infinite, the order falls.

    Args:
      order: 1 to 4: how many estimates are used; the paper's AB0 to AB3.

    Raises:
      ValueError: order is not in 1..4.

    Source: Zhang & Chen 2023 (DEIS), eq. 15 and section 3.3.

    >>> deis(order=2).nfe
    1
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"DEIS has order 1, 2, 3 or 4, got {order}")

    def step(
        keys: Array, denoise: Denoiser, x: Array, past: History, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, History]:
        del keys
        m_t, m_s = schedule(t), schedule(s)
        lam = half_log_snr(m_t)
        h = half_log_snr(m_s) - lam
        p = denoise(x, t)
        x_s = first_order(p, m_s)
        if order > 1:
            moments = noise_moments(h, order)
            older = [(position - lam) / h for position in past.positions]
            options = [adams_weights([jnp.zeros_like(h), *older[:n]], moments)[1:] for n in range(order)]
            count = past.usable(lam, h, reach=NOISE_REACH)
            scale = -m_s.alpha * jnp.exp(-lam)  # -alpha_s rho_t
            weights = jnp.where(interior(m_t, m_s) & (count > 0), scale * by_count(options, count), 0.0)
            x_s = x_s + past.correction(p.noise, weights)
        return x_s, past.push(p.noise, lam)

    return Sampler(lambda x_T: History.empty(x_T, order - 1), step)
