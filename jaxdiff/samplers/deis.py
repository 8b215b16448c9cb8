"""DEIS, tAB: order as asked for (the first steps less), multistep, one network evaluation a step."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxdiff.denoisers import Denoiser
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.exponential import History, adams_weights, by_count, first_order
from jaxdiff.schedules import Schedule

POINTS = 12  # of the quadrature


def deis(order: int = 3) -> Sampler:
    """The noise form, noise extrapolated by the polynomial in t through its last estimates.

        x_s = alpha_s x_0 + sigma_s noise + alpha_s sum_j w_j (noise_j - noise),  w_j = int_t^s L_j(tau) d rho(tau)

    with rho = sigma/alpha and L_j the Lagrange polynomials of the times of the estimates. By parts, the moments are
    int u^k d rho = rho_s - k int_0^1 u^(k-1) rho du, u = (tau - t)/(s - t), by Gauss-Legendre quadrature; a discrete
    schedule's rho is interpolated between entries. Nothing is infinite at s = 0, where the order is kept.

    Args:
      order: 1 to 4: how many estimates are used; the paper's tAB0 to tAB3.

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
        m_s = schedule(s)
        p = denoise(x, t)
        x_s = first_order(p, m_s)
        if order > 1:
            moments = _rho_moments(schedule, t, s, order)
            older = [(position - t) / (s - t) for position in past.positions]
            options = [adams_weights([jnp.zeros_like(t), *older[:n]], moments)[1:] for n in range(order)]
            weights = jnp.where(past.count > 0, m_s.alpha * by_count(options, past.count), 0.0)
            x_s = x_s + past.correction(p.noise, weights)
        return x_s, past.push(p.noise, t)

    return Sampler(lambda x_T: History.empty(x_T, order - 1), step)


def _rho_moments(schedule: Schedule, t: Array, s: Array, count: int) -> list[Array]:
    """int_t^s u^k d rho, k = 0 .. count - 1; where alpha_t = 0 (rho infinite, no history yet) the first is not used."""
    nodes, weights = np.polynomial.legendre.leggauss(POINTS)  # here: NumPy loads its polynomials when they are used
    u = 0.5 * (jnp.asarray(nodes, t.dtype) + 1.0)
    rho = _rho(schedule, t + u * (s - t))
    ends = _rho(schedule, jnp.stack([t, s]))
    moments = [ends[1] - ends[0]]
    for k in range(1, count):
        moments.append(ends[1] - 0.5 * k * jnp.sum(jnp.asarray(weights, t.dtype) * u ** (k - 1) * rho))
    return moments


def _rho(schedule: Schedule, tau: Array) -> Array:
    """sigma/alpha at tau; 0 in place of infinity. Linear between the entries of a discrete schedule."""
    if schedule.num_steps is not None:
        below = jnp.floor(tau * schedule.num_steps) / schedule.num_steps
        above = jnp.minimum(below + 1.0 / schedule.num_steps, 1.0)
        share = tau * schedule.num_steps - below * schedule.num_steps
        low, high = (_ratio(schedule, entry) for entry in (below, above))
        return low + share * (high - low)
    return _ratio(schedule, tau)


def _ratio(schedule: Schedule, tau: Array) -> Array:
    m = schedule(tau)
    return jnp.where(m.alpha > 0, m.sigma / jnp.where(m.alpha > 0, m.alpha, 1.0), 0.0)
