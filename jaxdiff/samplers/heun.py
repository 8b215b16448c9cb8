"""Heun, EDM's stochastic sampler: order 2 (without churn), two network evaluations a step, one in the last."""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from jaxdiff.denoisers import Denoiser
from jaxdiff.process import transition
from jaxdiff.samplers.base import Sampler, normal_like
from jaxdiff.samplers.exponential import first_order, trapezoid_weight
from jaxdiff.schedules import Marginal, Schedule


def heun(
    churn: float | Array = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float | Array = 1.0
) -> Sampler:
    """The trapezoidal rule along the schedule's line, after an optional step back into noise.

        (1)  rho_hat = rho_t (1 + gamma),  y_hat = y_t + s_noise sqrt(rho_hat^2 - rho_t^2) z     lines 4 to 6
        (2)  x_s = alpha_s x_0 + sigma_s noise + alpha_hat (e^h - 1)/2 (x_0(s) - x_0)            lines 7 to 11

    with rho = sigma/alpha, y = x/alpha; gamma = churn where s_tmin <= rho_t <= s_tmax, else 0. For EDM (alpha = 1) (2)
    is x_s = x + (sigma_s - sigma_hat)(noise_hat + noise_s)/2, for rectified flow x_s = x + (s - t)(v + v_s)/2 with
    v = noise - x_0, the first step included; for others see `trapezoid_weight`, which bounds the weight before leaps.
    Where sigma_s = 0 only the Euler step is made.

    Args:
      churn: gamma >= 0, the relative rise of rho a step. EDM's S_churn is min(S_churn/N, sqrt(2) - 1) = churn, with
        N steps. A discrete schedule rounds the raised time to its entries.
      s_tmin: churn only at rho_t >= s_tmin.
      s_tmax: churn only at rho_t <= s_tmax.
      s_noise: standard deviation of the new noise; slightly above 1 makes up for lost detail.

    Raises:
      ValueError: churn is outside [0, sqrt(2) - 1], s_noise below 0, or s_tmin above s_tmax.

    Source: Karras et al. 2022 (EDM), algorithm 2.

    >>> heun().nfe
    2
    """
    static = not isinstance(churn, Tracer)
    if static and not 0 <= float(churn) <= math.sqrt(2) - 1 + 1e-6:
        raise ValueError(f"churn must lie in [0, 0.4142] (EDM's S_churn over the number of steps), got {churn}")
    if not isinstance(s_noise, Tracer) and not 0 <= float(s_noise) < math.inf:
        raise ValueError(f"s_noise must be finite, >= 0 (1 is the usual), got {s_noise}")
    if not s_tmin <= s_tmax:
        raise ValueError(f"s_tmin must not exceed s_tmax, got {s_tmin} and {s_tmax}")

    def stir(keys: Array, x: Array, t: Array, m_t: Marginal, schedule: Schedule) -> tuple[Array, Array]:
        rho = m_t.sigma / m_t.alpha
        gamma = jnp.where((rho >= s_tmin) & (rho <= s_tmax), churn, 0.0)
        raised = schedule.time_of_log_snr(-2.0 * jnp.log(rho * (1.0 + gamma)))
        t_hat = jnp.where((gamma > 0) & (m_t.alpha > 0), jnp.clip(raised, t, 1.0), t).astype(t.dtype)
        step, moved = transition(m_t, schedule(t_hat)), t_hat > t
        kept, added = jnp.where(moved, step.alpha, 1.0), jnp.where(moved, step.sigma, 0.0)
        return (kept * x + added * s_noise * normal_like(keys, x)).astype(x.dtype), t_hat

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: tuple, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, tuple]:
        if not static or churn > 0:
            x, t = stir(keys, x, t, schedule(t), schedule)
        m_t, m_s = schedule(t), schedule(s)
        p = denoise(x, t)
        euler = first_order(p, m_s)

        def trapezoid() -> Array:
            return euler + trapezoid_weight(m_t, m_s).astype(x.dtype) * (denoise(euler, s).x_0 - p.x_0)

        return jax.lax.cond(m_s.sigma > 0, trapezoid, lambda: euler), state

    return Sampler(lambda x_T: (), step, nfe=2)
