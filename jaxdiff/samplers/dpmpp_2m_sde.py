"""DPM-Solver++(2M) SDE, multistep: weak order 2 (the first and the last step 1), one network evaluation a step."""

import jax.numpy as jnp
from jax import Array

from jaxdiff.denoisers import Denoiser
from jaxdiff.samplers.base import Sampler, check_eta, normal_like
from jaxdiff.samplers.exponential import History, first_order, half_log_snr, interior
from jaxdiff.schedules import Schedule


def dpmpp_2m_sde(eta: float | Array = 1.0, full_order: bool = False) -> Sampler:
    """The reverse SDE in data form, x_0 extrapolated from its last two estimates.

        (1)  r = (lambda_t - lambda_before)/h
        (2)  x_s = alpha_s x_0 + sigma_s (e^(-eta h) noise + sqrt(1 - e^(-2 eta h)) z)
                   + alpha_s (1 - e^(-(1 + eta) h))/(2r) (x_0 - x_0 before)

    What the new noise does to x_0 within a step is left out; the extrapolation of the next step makes up for it, so
    that the law of x still converges at order 2.

    Args:
      eta: in [0, 1]. 1 is the reverse SDE; 0 its ODE, DPM-Solver++(2M).
      full_order: as in `dpmpp_2m`: extrapolate before leaps too.

    Raises:
      ValueError: eta is outside [0, 1].

    Source: Lu et al. 2022 (DPM-Solver++), algorithm of SDE-DPM-Solver++(2M); Crowson (k-diffusion), sample_dpmpp_2m_sde
    ("midpoint").

    >>> dpmpp_2m_sde().nfe
    1
    """
    check_eta(eta)

    def step(
        keys: Array, denoise: Denoiser, x: Array, past: History, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, History]:
        m_t, m_s = schedule(t), schedule(s)
        lam = half_log_snr(m_t)
        h = half_log_snr(m_s) - lam
        r = (lam - past.positions[0]) / h
        p = denoise(x, t)
        noise = jnp.exp(-eta * h) * p.noise + jnp.sqrt(-jnp.expm1(-2.0 * eta * h)) * normal_like(keys, x)
        second = interior(m_t, m_s) & (past.usable(lam, h, full_order) > 0)
        weight = jnp.where(second, m_s.alpha * jnp.expm1(-(1.0 + eta) * h) / (2.0 * r), 0.0)
        x_s = first_order(p._replace(noise=noise.astype(x.dtype)), m_s) + past.correction(p.x_0, weight[None])
        return x_s, past.push(p.x_0, lam)

    return Sampler(lambda x_T: History.empty(x_T, 1), step)
