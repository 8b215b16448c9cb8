"""DDPM ancestral sampling: weak order 1, one network evaluation a step."""

import jax.numpy as jnp
from jax import Array

from jaxdiff.denoisers import Denoiser
from jaxdiff.process import posterior, transition
from jaxdiff.samplers.base import Sampler, normal_like
from jaxdiff.schedules import Schedule

VARIANCES = ("small", "large", "learned")


def ddpm(variance: str = "small") -> Sampler:
    """x_s ~ q(x_s | x_t, x_0) with x_0 estimated: the ancestral step, from any t to any s < t.

    The coefficients are those of the two times given (not of t and its neighbour in the table), so any grid works;
    at s = 0 the image itself is returned and no noise is added.

    Args:
      variance: "small", that of the posterior (beta-tilde), right for data that is one point; or "large", that of
        the forward step (beta), right for data that is N(0, 1); or "learned", beta^v beta-tilde^(1 - v) with the
        denoiser's `Prediction.fraction` as v.

    Raises:
      ValueError: another variance; or "learned", and the denoiser says no fraction.

    Source: Ho et al. 2020 (DDPM), algorithm 2, eq. 7, and section 3.2 for the fixed variances; Nichol & Dhariwal 2021
    (improved DDPM), eq. 15, for the learned one.

    >>> ddpm().nfe
    1
    """
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}; choose one of {', '.join(VARIANCES)}")

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: tuple, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, tuple]:
        m_t, m_s = schedule(t), schedule(s)
        p = denoise(x, t)
        mean, small = posterior(p.x_0, x, m_s, m_t)
        large = jnp.square(transition(m_s, m_t).sigma)
        if variance == "small":
            spread = jnp.sqrt(small)
        elif variance == "large":
            spread = jnp.sqrt(large)
        elif p.fraction is None:
            raise ValueError("variance 'learned' needs a denoiser whose Prediction holds a fraction")
        else:
            log_small = jnp.log(jnp.where(small > 0, small, large))  # 0 at s = 0, where no noise is added anyway
            spread = jnp.exp(0.5 * (p.fraction * jnp.log(large) + (1.0 - p.fraction) * log_small))
        return (mean + jnp.where(m_s.sigma > 0, spread, 0.0) * normal_like(keys, x)).astype(x.dtype), state

    return Sampler(lambda x_T: (), step)
