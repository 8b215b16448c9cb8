"""Closed forms that the library is tested against: data whose best denoiser, score and flow are known exactly.

    x_t = alpha x_0 + sigma noise,   x_0 ~ N(m, s^2) in each component, or a mixture of such;  v = alpha^2 s^2 + sigma^2

Nothing here calls the library, except for the types it returns (Prediction).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.denoisers import Prediction


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """Data sum_k w_k N(mu_k, diag(s_k^2)) in d dimensions; means [K, d], scales [K, d], weights [K]."""

    weights: np.ndarray
    means: np.ndarray
    scales: np.ndarray

    def denoiser(self, schedule):
        """The best denoiser: x_0 = sum_k r_k [mu_k + alpha s_k^2 (x - alpha mu_k)/v_k], r_k the responsibilities."""
        parts = list(zip(np.log(self.weights).tolist(), self.means.tolist(), self.scales.tolist(), strict=True))

        def denoise(x_t, t):
            alpha, sigma = schedule(t)  # one for all, or [batch]
            axes = [x_t[:, i] for i in range(x_t.shape[1])]  # whole rows of numbers: CPUs do these many at a time
            logs, shares = [], []
            for log_w, mu, s in parts:
                v = [alpha**2 * s_i**2 + sigma**2 for s_i in s]
                gap = [x - alpha * mu_i for x, mu_i in zip(axes, mu, strict=True)]
                shares.append([g / v_i for g, v_i in zip(gap, v, strict=True)])
                logs.append(log_w - 0.5 * sum(g * g / v_i + jnp.log(v_i) for g, v_i in zip(gap, v, strict=True)))
            top = functools.reduce(jnp.maximum, logs)
            r = [jnp.exp(log_r - top) for log_r in logs]
            r = [r_k / sum(r) for r_k in r]
            x_0 = [
                sum(
                    r_k * (mu[i] + alpha * s[i] ** 2 * share[i])
                    for r_k, (_, mu, s), share in zip(r, parts, shares, strict=True)
                )
                for i in range(len(axes))
            ]
            noise = [
                sigma * sum(r_k * share[i] for r_k, share in zip(r, shares, strict=True)) for i in range(len(axes))
            ]
            return Prediction(jnp.stack(x_0, axis=1), jnp.stack(noise, axis=1))

        return denoise

    def predict(self, x_t, m):
        """The same, of x_t [n, d] at one marginal and returned as (x_0, noise): for many dimensions."""
        means, variances = (jnp.asarray(a[None], x_t.dtype) for a in (self.means, self.scales**2))
        alpha, sigma = (jnp.asarray(a, x_t.dtype) for a in m)
        v = alpha**2 * variances + sigma**2
        safe = jnp.where(v > 0, v, 1.0)  # a point, without noise
        gap = x_t[:, None] - alpha * means
        share = gap / safe
        logs = jnp.log(jnp.asarray(self.weights[None], x_t.dtype)) - 0.5 * jnp.sum(gap * share + jnp.log(safe), axis=-1)
        r = jax.nn.softmax(logs, axis=-1)[:, :, None]
        return jnp.sum(r * (means + alpha * variances * share), axis=1), sigma * jnp.sum(r * share, axis=1)

    def moments(self):
        """Mean [d] and covariance [d, d] of the data."""
        mean = self.weights @ self.means
        second = np.einsum("k,ki,kj->ij", self.weights, self.means, self.means)
        second += np.diag(self.weights @ np.square(self.scales))
        return mean, second - np.outer(mean, mean)

    def draw(self, key, num):
        """num exact samples [num, d]."""
        pick, noise = jax.random.split(key)
        k = jax.random.choice(pick, len(self.weights), (num,), p=jnp.asarray(self.weights))
        return jnp.asarray(self.means)[k] + jnp.asarray(self.scales)[k] * jax.random.normal(
            noise, (num, self.means.shape[1])
        )


def gaussian(mean, scale):
    """N(mean, diag(scale^2)) as a mixture of one; mean and scale are lists of d numbers."""
    return GaussianMixture(np.ones(1), np.asarray([mean], np.float64), np.asarray([scale], np.float64))


GAUSSIAN = gaussian([0.5, -1.0], [0.8, 0.3])
MIXTURE = GaussianMixture(
    np.array([0.3, 0.7]), np.array([[-1.0, 0.5], [0.8, -0.4]]), np.array([[0.3, 0.5], [0.4, 0.25]])
)

_angles = 2.0 * np.pi * np.arange(8) / 8
_spread = np.random.default_rng(0)
HARD = {  # what few steps get wrong: narrow beside wide, far apart, many dimensions of unequal width
    "ring": GaussianMixture(
        np.full(8, 0.125),
        1.5 * np.stack([np.cos(_angles), np.sin(_angles)], axis=1),
        np.repeat(np.geomspace(0.02, 0.4, 8)[:, None], 2, axis=1),
    ),
    "far": GaussianMixture(
        np.array([0.2, 0.5, 0.3]), np.array([[-12.0, 5.0], [9.0, -8.0], [4.0, 14.0]]), np.array([[4.0, 0.5]] * 3)
    ),
    "point": gaussian([0.7, -0.2], [0.0, 0.0]),
    "64-d": gaussian([0.3] * 64, np.geomspace(0.01, 2.0, 64)),
    "16-d": GaussianMixture(np.full(5, 0.2), _spread.normal(size=(5, 16)), _spread.uniform(0.05, 0.6, size=(5, 16))),
}


def gaussian_flow(x_t, m_t, m_r, mean, scale):
    """The probability-flow map t -> r of N(mean, scale^2): alpha_r m + sqrt(v_r/v_t) (x_t - alpha_t m)."""
    v_t = m_t.alpha**2 * scale**2 + m_t.sigma**2
    v_r = m_r.alpha**2 * scale**2 + m_r.sigma**2
    return m_r.alpha * mean + np.sqrt(v_r / v_t) * (x_t - m_t.alpha * mean)


def ddim_factor(m_t, m_r, scale):
    """What one DDIM step multiplies x_t - alpha_t m by, on N(m, scale^2) data."""
    v_t = m_t.alpha**2 * scale**2 + m_t.sigma**2
    return (m_r.alpha * m_t.alpha * scale**2 + m_r.sigma * m_t.sigma) / v_t


def noise_loss_floor(alpha, sigma, scale=1.0):
    """Mean over t of alpha^2 s^2 / v: the least noise loss that any network reaches on N(m, s^2) data."""
    return float(np.mean(alpha**2 * scale**2 / (alpha**2 * scale**2 + sigma**2)))


def as_network(kind, schedule, predict):
    """A function of (x_t, t, cond) as a network of the kind: what "edm" scales and relabels is undone."""

    def network(x, label, cond=None):
        if kind != "edm":
            return predict(x, label, cond)
        t = schedule.time_of_log_snr(-8.0 * label)
        m = schedule(t).like(x)
        return predict(x * jnp.sqrt(m.sigma**2 + 0.25 * m.alpha**2), t, cond)

    return network


def flow_velocity(data, x, t):
    """v = E[noise - x_0 | x_t = x] of the mixture on alpha = 1 - t, sigma = t; x [n, d], t [n] in (0, 1]."""

    def one(x, t):
        x_0, noise = data.predict(x[None], (1.0 - t, t))
        return (noise - x_0)[0]

    return jax.vmap(one)(x, t)


def flow_map(velocity, x, t, r, steps=64):
    """The solution at r of dx/dt = velocity(x, t) through (x, t), by Runge-Kutta of order 4; t and r [n]."""
    h = (r - t) / steps

    def step(x, i):
        s = t + i * h
        k1 = velocity(x, s)
        k2 = velocity(x + 0.5 * h[:, None] * k1, s + 0.5 * h)
        k3 = velocity(x + 0.5 * h[:, None] * k2, s + 0.5 * h)
        k4 = velocity(x + h[:, None] * k3, s + h)
        return x + h[:, None] / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4), None

    return jax.lax.scan(step, x, jnp.arange(steps))[0]


def gaussian_mean_velocity(x, t, r, mean, scale):
    """(x_t - x_r)/(t - r) on N(mean, scale^2), alpha = 1 - t, sigma = t; regular at r = t, where it is v.

    With v_t = (1-t)^2 s^2 + t^2 and q = sqrt(v_r/v_t): -m + (x - (1-t) m) (v_t - v_r)/(t - r) / (v_t (1 + q)).
    Classifier-free guidance by w of N(m_c, s^2) against N(m_u, s^2) has it with m = m_u + w (m_c - m_u).
    """
    t, r = t[:, None], r[:, None]
    v_t, v_r = ((1.0 - u) ** 2 * scale**2 + u**2 for u in (t, r))
    slope = ((t + r) * (1.0 + scale**2) - 2.0 * scale**2) / (v_t * (1.0 + jnp.sqrt(v_r / v_t)))
    return -mean + slope * (x - (1.0 - t) * mean)
