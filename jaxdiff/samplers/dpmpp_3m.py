"""DPM-Solver++(3M), multistep: order 2 (compat=False: 3; the last step 1), one network evaluation a step."""

import jax.numpy as jnp
from jax import Array

from jaxdiff.denoisers import Denoiser
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.exponential import History, first_order, half_log_snr, interior, phi
from jaxdiff.schedules import Schedule


def dpmpp_3m(compat: bool = True, midpoint: bool = False, full_order: bool = False) -> Sampler:
    """The data form, x_0 extrapolated from its last three estimates.

        (1)  r_0 = (lambda_t - lambda_1)/h,  r_1 = (lambda_1 - lambda_2)/h       1, 2: one and two steps before
        (2)  D_0 = (x_0 - x_0,1)/r_0,  D_1 = (x_0,1 - x_0,2)/r_1,  D_01 = (D_0 - D_1)/(r_0 + r_1)
        (3)  first derivative h x_0' = D_0 + r_0 D_01,  second h^2 x_0'' = 2 D_01
        (4)  x_s = (sigma_s/sigma_t) x_t + alpha_s h [phi_1(-h) x_0 + phi_2(-h) h x_0' + phi_3(-h) h^2 x_0'']

    Steps warm up through orders 1 and 2, and fall back to these before leaps.

    Args:
      compat: D_01 in place of 2 D_01, as dpm-solver, diffusers and k-diffusion have it. It converges at order 2 only,
        and is the better one at 5 to 50 steps, where half of the curvature is safer than all of it. False: the Taylor
        series, of order 3, for hundreds of steps.
      midpoint: the second step as `dpmpp_2m` does it, phi_1/2 in place of phi_2, as diffusers has it.
      full_order: as in `dpmpp_2m`: order 3 before leaps too.

    Source: Lu et al. 2022 (DPM-Solver++), appendix; the factor 2 is that of the Taylor series (phi_3 belongs to
    h^2 x_0'', see eq. (3) of `jaxdiff.samplers.exponential`).

    >>> dpmpp_3m().nfe
    1
    """
    curvature = 1.0 if compat else 2.0

    def step(
        keys: Array, denoise: Denoiser, x: Array, past: History, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, History]:
        del keys
        m_t, m_s = schedule(t), schedule(s)
        lam = half_log_snr(m_t)
        h = half_log_snr(m_s) - lam
        count = past.usable(lam, h, full_order)
        r_0 = (lam - past.positions[0]) / h
        r_1 = (past.positions[0] - past.positions[1]) / h
        p = denoise(x, t)

        d_0 = (p.x_0 - past.values[0]) / r_0
        d_1 = (past.values[0] - past.values[1]) / r_1
        d_01 = jnp.where(count > 1, (d_0 - d_1) / (r_0 + r_1), 0.0)
        first = jnp.where(midpoint & (count == 1), 0.5 * phi(1, -h), phi(2, -h))
        change = first * (d_0 + r_0 * d_01) + phi(3, -h) * curvature * d_01
        weight = jnp.where(interior(m_t, m_s) & (count > 0), m_s.alpha * h, 0.0)
        return (first_order(p, m_s) + weight * change).astype(x.dtype), past.push(p.x_0, lam)

    return Sampler(lambda x_T: History.empty(x_T, 2), step)
