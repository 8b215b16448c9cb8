"""The variational bound: how many nats a discrete-time model needs for an image, term by term.

    -log p(x_0) <= L_T + sum_k L_k,   s = (k - 1)/T, t = k/T

    L_T = KL(q(x_T | x_0) || N(0, I))                                               prior_term
    L_k = KL(q(x_s | x_t, x_0) || p(x_s | x_t)),  L_1 = -log p(x_0 | x_t)           bound_term

p(x_s | x_t) has the posterior's mean with x_0 estimated, and a variance between beta-tilde and beta (the denoiser's
`fraction`; none means 0). All are sums over an example's dimensions, in nats.

Sources: Ho et al. 2020 (DDPM), eq. 5 and 13; Nichol & Dhariwal 2021 (improved DDPM), section 3.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from jaxdiff.denoisers import Denoiser, Prediction, as_denoiser
from jaxdiff.keys import example_keys
from jaxdiff.losses.denoising import draw, mean_square
from jaxdiff.losses.time_sampling import TimeSampling, uniform
from jaxdiff.process import add_noise, from_x0_noise, learned_log_variance, network_inputs, posterior
from jaxdiff.schedules import Marginal, Schedule


class Bound(NamedTuple):
    """The bound in nats an example: prior float [batch], terms float [batch, T] from k = 1 to T."""

    prior: jax.Array
    terms: jax.Array

    @property
    def total(self) -> jax.Array:
        """[batch], an upper bound of -log p(x_0)."""
        return self.prior + jnp.sum(self.terms, axis=1)


def bits_per_dim(nats: Float[Array, " batch"], shape: tuple[int, ...]) -> Float[Array, " batch"]:
    """nats / (log 2 * dimensions of one example of the given shape).

    >>> round(float(bits_per_dim(jnp.array([math.log(2.0) * 6]), (2, 3))[0]), 6)
    1.0
    """
    return nats / (math.log(2.0) * math.prod(shape))


def prior_term(x_0: Float[Array, "batch *shape"], schedule: Schedule) -> Float[Array, " batch"]:
    """KL(q(x_T | x_0) || N(0, I)), nats: 1/2 sum [alpha^2 x_0^2 + sigma^2 - 1 - log sigma^2] at t = 1.

    Source: Ho et al. 2020 (DDPM), eq. 5.

    >>> from jaxdiff import schedules
    >>> nats = prior_term(jnp.full((1, 1), 0.5), schedules.linear())
    >>> f"{float(bits_per_dim(nats, (1,))[0]):.2e}"
    '7.28e-06'
    """
    alpha, sigma = schedule(1.0)
    lack = sigma - 1.0  # sigma^2 - 1 - log sigma^2 without cancellation, since sigma is nearly 1
    rest = lack * (2.0 + lack) - 2.0 * jnp.log1p(lack)
    return 0.5 * _sum(jnp.square(alpha * x_0) + rest)


def bound_term(
    prediction: Prediction,
    x_0: Float[Array, "batch *shape"],
    x_t: Float[Array, "batch *shape"],
    m_s: Marginal,
    m_t: Marginal,
    *,
    levels: int | None = 256,
) -> Float[Array, " batch"]:
    """L_k of the step t -> s, nats; at s = 0 (where sigma_s = 0) it is -log p(x_0 | x_t).

    Args:
      prediction: the denoiser's at x_t.
      x_0: the data.
      x_t: the noisy data, alpha_t x_0 + sigma_t noise.
      m_s: the marginal at s < t; scalar or [batch].
      m_t: the marginal at t.
      levels: x_0 takes this many evenly spaced values from -1 to 1, and L_1 is the probability of its bin; None: x_0
        is continuous, and L_1 its density.

    Source: Ho et al. 2020 (DDPM), eq. 7, 8 and 13.

    >>> m = [Marginal(jnp.float32(a), jnp.float32(b)) for a, b in ((0.8, 0.6), (0.6, 0.8))]
    >>> x = jnp.ones((1, 4))
    >>> bound_term(Prediction(x, x), x, x, *m).tolist()  # a perfect guess, the posterior's own variance
    [0.0]
    """
    fraction = jnp.zeros_like(x_0) if prediction.fraction is None else prediction.fraction
    log_variance = learned_log_variance(fraction, m_s, m_t)
    excess = log_variance - learned_log_variance(jnp.zeros_like(x_0), m_s, m_t)
    error = posterior(prediction.x_0 - x_0, jnp.zeros_like(x_0), m_s, m_t).mean  # linear: that of the two means
    kl = 0.5 * (excess + jnp.expm1(-excess) + jnp.square(error) * jnp.exp(-log_variance))
    decode = _density if levels is None else _bin(levels)
    return _sum(jnp.where(m_s.like(x_0).sigma > 0, kl, decode(x_0, prediction.x_0, log_variance)))


def variational_bound(
    key: jax.Array,
    denoise: Denoiser,
    x_0: Float[Array, "batch *shape"],
    *,
    schedule: Schedule,
    levels: int | None = 256,
) -> Bound:
    """Every term of the bound, one noise draw each: T network evaluations, memory of one.

    Args:
      key: one key, or one per example [batch].
      denoise: the model; its `fraction`, if any, sets the reverse variances.
      x_0: data [batch, ...].
      schedule: discrete.
      levels: see `bound_term`.

    Raises:
      ValueError: the schedule is continuous.

    >>> from jaxdiff import schedules
    >>> point = lambda x, t: Prediction(jnp.zeros_like(x), x)  # all data is 0
    >>> bound = variational_bound(jax.random.key(0), point, jnp.zeros((1, 2)), schedule=schedules.cosine(5))
    >>> bound.terms.shape, [round(float(term), 3) for term in bound.terms[0, 1:]]
    ((1, 5), [0.0, 0.0, 0.0, 0.0])
    """
    keys, times = example_keys(key, x_0.shape[0]), _entries(schedule)

    def term(k: jax.Array) -> jax.Array:
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, k), x_0.shape[1:], x_0.dtype))(keys)
        m_s, m_t = schedule(times[k - 1]), schedule(times[k])
        x_t = add_noise(x_0, noise, m_t)
        return bound_term(denoise(x_t, times[k]), x_0, x_t, m_s, m_t, levels=levels)

    terms = jax.lax.map(term, jnp.arange(1, len(times)))
    return Bound(prior_term(x_0, schedule), terms.T)


def hybrid_loss(
    key: jax.Array,
    predict: Callable[..., jax.Array],
    x_0: Float[Array, "batch *shape"],
    *,
    schedule: Schedule,
    prediction: str = "noise",
    bound_weight: float = 0.001,
    levels: int | None = 256,
    time_sampling: TimeSampling = uniform,
    t: Float[Array, " batch"] | None = None,
    cond: Any = None,
) -> Float[Array, " batch"]:
    """L_simple + bound_weight L_vlb, for networks that learn the reverse variance as well.

    L_vlb = T L_k in bits per dimension, an unbiased estimate of the sum over k. It trains the variance only: the
    mean is held fixed in it (stop_gradient), and learns from L_simple.

    Args:
      key: one key, or one per example [batch].
      predict: (x_t, t, cond) -> [..., 2 c] for x_t [..., c]: the prediction, then the variance's raw output.
      x_0: data [batch, ..., c].
      schedule: discrete.
      prediction: what the first half is.
      bound_weight: lambda of the paper.
      levels: see `bound_term`.
      time_sampling: see `denoising_loss`.
      t: see `denoising_loss`; entries k/T.
      cond: passed to predict.

    Returns:
      float [batch].

    Raises:
      ValueError: the schedule is continuous, or as `denoising_loss`.

    Source: Nichol & Dhariwal 2021 (improved DDPM), eq. 16.

    >>> from jaxdiff import schedules
    >>> zero = lambda x_t, t, cond=None: jnp.zeros((*x_t.shape[:-1], 2 * x_t.shape[-1]))
    >>> hybrid_loss(jax.random.key(0), zero, jnp.zeros((2, 4, 4, 3)), schedule=schedules.cosine(10)).shape
    (2,)
    """
    times = _entries(schedule)
    drawn = draw(key, x_0, schedule, time_sampling, t)
    output = predict(*network_inputs(prediction, drawn.x_t, drawn.t, drawn.m), cond)
    mean = jax.lax.stop_gradient(output[..., : x_0.shape[-1]])
    frozen = jnp.concatenate([mean, output[..., x_0.shape[-1] :]], axis=-1)
    denoise = as_denoiser(lambda x_t, t, cond: frozen, schedule=schedule, prediction=prediction, learned_variance=True)
    k = jnp.round(drawn.t * (len(times) - 1)).astype(jnp.int32)
    m_s = schedule(jnp.take(times, k - 1))
    term = bound_term(denoise(drawn.x_t, drawn.t), x_0, drawn.x_t, m_s, drawn.m, levels=levels)
    target = from_x0_noise(prediction, x_0, drawn.noise, drawn.m)
    simple = mean_square(target - output[..., : x_0.shape[-1]])
    return simple + bound_weight * (len(times) - 1) * bits_per_dim(term, x_0.shape[1:])


def _density(x_0: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """-log N(x_0; mean, exp(log_variance))."""
    return 0.5 * (math.log(2 * math.pi) + log_variance + jnp.square(x_0 - mean) * jnp.exp(-log_variance))


def _bin(levels: int) -> Callable[..., jax.Array]:
    """-log of the Gaussian's mass in x_0's bin, which is 2/(levels - 1) wide, the outermost reaching to infinity."""
    half = 1.0 / (levels - 1)
    far = 1e4  # standard deviations: as good as infinite, with finite logs and gradients

    def decode(x_0: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
        gap, scale = x_0 - mean, jnp.exp(-0.5 * log_variance)
        low = jnp.where(x_0 < -1 + half, -far, (gap - half) * scale)
        high = jnp.where(x_0 > 1 - half, far, (gap + half) * scale)
        # the mass between low and high is that between -high and -low: take the side where the logs are exact
        low, high = jnp.where(low + high > 0, -high, low), jnp.where(low + high > 0, -low, high)
        log_low, log_high = log_ndtr(low), log_ndtr(high)
        return -(log_high + jnp.log(-jnp.expm1(jnp.minimum(log_low - log_high, -1e-30))))

    return decode


def _entries(schedule: Schedule) -> jax.Array:
    """The times k/T, k = 0..T."""
    if schedule.num_steps is None:
        raise ValueError("the variational bound takes a discrete schedule; this one is continuous")
    return jnp.asarray(np.arange(schedule.num_steps + 1) / schedule.num_steps, jnp.result_type(float))


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))
