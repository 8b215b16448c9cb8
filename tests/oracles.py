"""Closed forms that the library is tested against: data whose best denoiser, score and flow are known exactly.

    x_t = alpha x_0 + sigma noise,   x_0 ~ N(m, s^2) in each component, or a mixture of such;  v = alpha^2 s^2 + sigma^2

Nothing here calls the library, except for the types it returns (Prediction).
"""

import dataclasses

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
        w, mu, s2 = (jnp.asarray(a) for a in (self.weights, self.means, np.square(self.scales)))

        def denoise(x_t, t):
            m = schedule(t)
            alpha = jnp.broadcast_to(m.alpha, x_t.shape[:1])[:, None, None]
            sigma = jnp.broadcast_to(m.sigma, x_t.shape[:1])[:, None, None]
            v = alpha**2 * s2[None] + sigma**2  # [batch, K, d]
            gap = x_t[:, None, :] - alpha * mu[None]
            log_r = jnp.log(w)[None] - 0.5 * jnp.sum(gap**2 / v + jnp.log(v), axis=-1)
            r = jax.nn.softmax(log_r, axis=1)[:, :, None]
            x_0 = jnp.sum(r * (mu[None] + alpha * s2[None] * gap / v), axis=1)
            return Prediction(x_0, jnp.sum(r * sigma * gap / v, axis=1))  # noise of each component: sigma gap / v

        return denoise

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
