"""DPM-Solver++ SDE, single step: weak order 2, two network evaluations a step, one in the last."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxdiff.denoisers import Denoiser
from jaxdiff.samplers.base import Sampler, check_eta, normal_like
from jaxdiff.samplers.exponential import between, first_order, half_log_snr, interior
from jaxdiff.schedules import Schedule


def dpmpp_sde(eta: float | Array = 1.0) -> Sampler:
    """The reverse SDE in data form with one more evaluation, at the middle of the step in log-SNR.

        (1)  u = alpha_m x_0 + sigma_m (e^(-eta r h) noise + sqrt(1 - e^(-2 eta r h)) z_1)
        (2)  x_s = alpha_s x_0 + sigma_s (e^(-eta h) noise + sqrt(1 - e^(-2 eta h)) z)
                   + alpha_s (1 - e^(-(1 + eta) h))/(2r) (x_0(u, m) - x_0)

    z goes on from z_1 as one Brownian path: z's part before m is z_1, and the part after it is fresh. On a discrete
    schedule m is a table entry and r follows it; where it coincides with t, the step is that of order 1.

    Args:
      eta: in [0, 1]. 1 is the reverse SDE; 0 its ODE, DPM-Solver++(2S).

    Raises:
      ValueError: eta is outside [0, 1].

    Source: Lu et al. 2022 (DPM-Solver++), section 4 and appendix; Crowson (k-diffusion), sample_dpmpp_sde.

    >>> dpmpp_sde().nfe
    2
    """
    check_eta(eta)

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: tuple, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, tuple]:
        m_t, m_s = schedule(t), schedule(s)
        h = half_log_snr(m_s) - half_log_snr(m_t)
        middle, m, r = between(schedule, m_t, h, 0.5, t - s)
        p = denoise(x, t)
        before, after = jax.vmap(jax.random.split, out_axes=1)(keys)

        def diffuse(noise: Array, keys: Array, by: Array) -> Array:
            diffused = jnp.exp(-by) * noise + jnp.sqrt(-jnp.expm1(-2.0 * by)) * normal_like(keys, noise)
            return diffused.astype(noise.dtype)

        def second_order() -> Array:
            at_middle = diffuse(p.noise, before, eta * r * h)
            change = denoise(first_order(p._replace(noise=at_middle), m), middle).x_0 - p.x_0
            first = first_order(p._replace(noise=diffuse(at_middle, after, eta * (1.0 - r) * h)), m_s)
            weight = m_s.alpha * jnp.expm1(-(1.0 + eta) * h) / (2.0 * r)
            return first - weight.astype(x.dtype) * change

        def one() -> Array:
            return first_order(p._replace(noise=diffuse(p.noise, after, eta * h)), m_s)

        return jax.lax.cond(interior(m_t, m_s) & (r > 0), second_order, one), state

    return Sampler(lambda x_T: (), step, nfe=2)
