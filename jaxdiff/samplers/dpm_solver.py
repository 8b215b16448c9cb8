"""DPM-Solver 1, 2 and 3, single step: orders 1, 2, 3 with 1, 2, 3 network evaluations a step (one in the last)."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.denoisers import Denoiser, Prediction
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.ddim import ddim
from jaxdiff.samplers.exponential import LEAP, between, first_order, half_log_snr, interior, phi
from jaxdiff.schedules import Schedule


def dpm_solver_1() -> Sampler:
    """The noise form with constant noise: x_s = (alpha_s/alpha_t) x_t - sigma_s (e^h - 1) noise, which is DDIM.

    Source: Lu et al. 2022 (DPM-Solver), eq. 3.7 and section 4.1.

    >>> dpm_solver_1().nfe
    1
    """
    return ddim(0.0)


def dpm_solver_2() -> Sampler:
    """The noise form with one more evaluation, at the middle of the step in log-SNR.

        (1)  u = alpha_m x_0 + sigma_m noise,  r = (lambda_m - lambda_t)/h ~ 1/2
        (2)  x_s = alpha_s x_0 + sigma_s noise - sigma_s (e^h - 1)/(2 r) (noise(u, m) - noise)

    In leaps, h > LEAP, (2) has the weight of the data form, as in `dpmpp_2s`: bounded, where e^h is not.

    On a discrete schedule m is a table entry and r follows it; where it coincides with t, the step has order 1.

    Source: Lu et al. 2022 (DPM-Solver), algorithm 4 (any r); algorithm 1 (r = 1/2).

    >>> dpm_solver_2().nfe
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
            q = denoise(first_order(p, m), middle)
            by_noise = -m_s.sigma * jnp.expm1(jnp.minimum(h, LEAP)) / (2.0 * r)
            by_x_0 = -m_s.alpha * jnp.expm1(-h) / (2.0 * r)
            return first_order(p, m_s) + _change(h, p, q, by_noise, by_x_0)

        return jax.lax.cond(interior(m_t, m_s) & (r > 0), second_order, lambda: first_order(p, m_s)), state

    return Sampler(lambda x_T: (), step, nfe=2)


def dpm_solver_3() -> Sampler:
    """The noise form with two more evaluations, at thirds of the step in log-SNR.

        (1)  u_1 = alpha_1 x_0 + sigma_1 noise                       r_1 = (lambda_1 - lambda_t)/h ~ 1/3
        (2)  u_2 = alpha_2 x_0 + sigma_2 noise - sigma_2 (r_2^2/r_1) h phi_2(r_2 h) (noise(u_1) - noise)      r_2 ~ 2/3
        (3)  x_s = alpha_s x_0 + sigma_s noise - (sigma_s/r_2) h phi_2(h) (noise(u_2) - noise)

    In leaps, h > LEAP, (2) and (3) have the weights of the data form, of order 2, as `dpm_solver_2`.

    On a discrete schedule both times are table entries and r_1, r_2 follow them; where the first coincides with t
    or the second, the step has order 2, and where the second coincides with t, order 1.

    Source: Lu et al. 2022 (DPM-Solver), algorithm 2 (r_1 = 1/3, r_2 = 2/3).

    >>> dpm_solver_3().nfe
    3
    """

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: tuple, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, tuple]:
        del keys
        m_t, m_s = schedule(t), schedule(s)
        h = half_log_snr(m_s) - half_log_snr(m_t)
        t_1, m_1, r_1 = between(schedule, m_t, h, 1.0 / 3.0, t - s)
        t_2, m_2, r_2 = between(schedule, m_t, h, 2.0 / 3.0, t - s)
        p = denoise(x, t)

        def third_order() -> Array:
            apart = (r_1 > 0) & (r_1 < r_2)
            z, share = jnp.minimum(h, LEAP), r_2 / jnp.where(apart, r_1, jnp.inf)
            by_noise = -m_2.sigma * r_2 * z * phi(2, r_2 * z) * share
            by_x_0 = -m_2.alpha * jnp.expm1(-r_2 * h) * 0.5 * share
            u_2 = first_order(p, m_2) + _change(h, p, denoise(first_order(p, m_1), t_1), by_noise, by_x_0)
            by_noise = -m_s.sigma / r_2 * z * phi(2, z)
            by_x_0 = -m_s.alpha * jnp.expm1(-h) / (2.0 * r_2)
            return first_order(p, m_s) + _change(h, p, denoise(u_2, t_2), by_noise, by_x_0)

        return jax.lax.cond(interior(m_t, m_s) & (r_2 > 0), third_order, lambda: first_order(p, m_s)), state

    return Sampler(lambda x_T: (), step, nfe=3)


def _change(h: Array, p: Prediction, q: Prediction, by_noise: Array, by_x_0: Array) -> Array:
    """What a second evaluation q adds to the step of order 1 from p: by its noise, or in a leap by its x_0."""
    leap, dtype = h > LEAP, p.x_0.dtype
    return jnp.where(leap, by_x_0.astype(dtype) * (q.x_0 - p.x_0), by_noise.astype(dtype) * (q.noise - p.noise))
