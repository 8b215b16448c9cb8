"""The variational bound of a Gaussian whose best reverse process is known: by quadrature, and in closed form.

Shared by the tests and by benchmarks/proof.py.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import Prediction, Schedule, add_noise, losses

BITS_OF_A_NORMAL = 0.5 * math.log2(2 * math.pi * math.e)  # 2.0470956


def quadrature(mean, scale):
    """x_0 ~ N(mean, scale^2) and noise ~ N(0, 1) on 3 x 3 Gauss-Hermite points: exact for what is quadratic in them."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    z, noise = (a.ravel() for a in np.meshgrid(nodes, nodes))
    return mean + scale * z[:, None], noise[:, None], np.outer(weights, weights).ravel()


def gaussian_denoiser(schedule, mean, scale, s_of_t, stretch=1.0):
    """The best denoiser of N(mean, scale^2), with `stretch` times the best reverse variance as a fraction.

    The best reverse variance is beta~ + c^2 Var(x_0 | x_t), c = alpha_s beta / sigma_t^2 (oracles).
    """

    def denoise(x_t, t):
        m, m_s = schedule(t), schedule(s_of_t(t))
        v = m.alpha**2 * scale**2 + m.sigma**2
        gap = x_t - m.alpha * mean
        beta = m.sigma**2 - (m.alpha * m_s.sigma / m_s.alpha) ** 2
        ratio = jnp.where(m_s.sigma > 0, (m_s.sigma / m.sigma) ** 2, 0.5)
        small = jnp.where(m_s.sigma > 0, beta * ratio, 0.0)
        best = small + (m_s.alpha * beta / m.sigma**2) ** 2 * scale**2 * m.sigma**2 / v
        fraction = 1.0 - (jnp.log(stretch * best) - jnp.log(beta)) / jnp.log(ratio)
        x_0 = mean + m.alpha * scale**2 * gap / v
        return Prediction(x_0, m.sigma * gap / v, jnp.full_like(x_t, fraction))

    return denoise


def bound_bits(schedule, mean, scale, stretch=1.0):
    """The expected bound in bits/dim, by quadrature instead of samples."""
    x_0, noise, weights = quadrature(mean, scale)
    num_steps = schedule.num_steps
    denoise = gaussian_denoiser(schedule, mean, scale, lambda t: t - 1 / num_steps, stretch)

    def term(k):
        t, s = k / num_steps, (k - 1) / num_steps
        m_s, m_t = schedule(s), schedule(t)
        x_t = add_noise(x_0, noise, m_t)
        return losses.bound_term(denoise(x_t, t), x_0, x_t, m_s, m_t, levels=None)

    x_0, noise = jnp.asarray(x_0), jnp.asarray(noise)
    terms = jax.jit(jax.vmap(term))(jnp.arange(1.0, num_steps + 1))  # [T, 9]
    nats = losses.prior_term(x_0, schedule) + terms.sum(axis=0)
    return float(weights @ np.asarray(losses.bits_per_dim(nats, (1,))))


def closed_form(schedule: Schedule, mean: float, scale: float) -> float:
    """H(x_0) + KL(q(x_T), N(0, 1)) of N(mean, scale^2), bits."""
    alpha, sigma = (float(a) for a in schedule(1.0))
    m, v = alpha * mean, alpha**2 * scale**2 + sigma**2
    return BITS_OF_A_NORMAL + math.log2(scale) + 0.5 * (m**2 + v - 1 - math.log(v)) / math.log(2)
