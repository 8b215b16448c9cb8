"""Training losses: per example, unreduced; the caller takes the mean.

    x_t = alpha_t x_0 + sigma_t noise,  loss = w(t) mean |target - predict(x_t, t)|^2  over the axes of one example

A weighting is a function of log-SNR that multiplies the *noise* loss; it is converted to the space of the
prediction by d = d noise / d output at fixed x_t, so that e.g. min-SNR means the same for noise, x_0 and v.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.process import EDM_DATA, add_noise, check_prediction, from_x0_noise
from jaxdiff.schedules import Marginal, Schedule

Weighting = Callable[[jax.Array], jax.Array]
TimeSampling = Callable[[jax.Array, Schedule], jax.Array]


def uniform_times(keys: jax.Array, schedule: Schedule) -> Float[Array, " batch"]:
    """One t per key: uniform on k/T, k = 1..T (discrete), or on [1e-5, 1] (continuous). Never t = 0.

    Source: Ho et al. 2020 (DDPM), algorithm 1.

    >>> from jaxdiff import schedules
    >>> uniform_times(jax.random.split(jax.random.key(0), 3), schedules.linear()).shape
    (3,)
    """
    top = schedule.num_steps
    if top is None:
        return jax.vmap(lambda key: jax.random.uniform(key, minval=1e-5, maxval=1.0))(keys)
    return jax.vmap(lambda key: jax.random.randint(key, (), 1, top + 1))(keys) / top


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) in x_0 space: min(1, gamma/SNR) on the noise loss. At SNR = 0 it is 1.

    Source: Hang et al. 2023 (min-SNR), eq. 3.

    >>> min_snr()(jnp.array([-jnp.inf, math.log(10.0)])).tolist()
    [1.0, 0.5]
    """
    return lambda log_snr: jnp.exp(jnp.minimum(0.0, math.log(gamma) - log_snr))


def noise_per_output(kind: str, m: Marginal) -> jax.Array:
    """|d noise / d output| at fixed x_t: turns a weight of the noise loss into one of the loss of that kind."""
    check_prediction(kind)
    alpha, sigma = jnp.asarray(m.alpha), jnp.asarray(m.sigma)
    if kind == "noise":
        return jnp.ones_like(alpha)
    if kind == "x_0":
        return alpha / sigma
    if kind == "v":
        return alpha / (jnp.square(alpha) + jnp.square(sigma))
    if kind == "flow":
        return alpha / (alpha + sigma)
    if kind == "score":
        return sigma
    return alpha * EDM_DATA / jnp.sqrt(jnp.square(sigma) + jnp.square(EDM_DATA * alpha))


def example_keys(key: jax.Array, batch: int) -> jax.Array:
    """[batch] keys: fold_in(key, i) for one key; keys that are already one per example stay as they are."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch)) if key.ndim == 0 else key


def denoising_loss(
    key: jax.Array,
    predict: Callable[..., jax.Array],
    x_0: Float[Array, "batch *shape"],
    *,
    schedule: Schedule,
    prediction: str = "noise",
    weighting: Weighting | None = None,
    time_sampling: TimeSampling = uniform_times,
    cond: Any = None,
) -> Float[Array, " batch"]:
    """w(t) mean |target - predict(x_t, t, cond)|^2 for each example, at a random t with random noise.

    With the defaults it is the seed of the field: E |noise - predict(sqrt(alpha_bar) x_0 + ..., t)|^2.

    Args:
      key: one key, or one per example [batch]; example i uses its own key alone, so that its loss does not
        depend on the batch it is in.
      predict: (x_t, t [batch], cond) -> output of the kind `prediction`.
      x_0: data [batch, ...], usually in [-1, 1].
      schedule: the noise schedule.
      prediction: what predict puts out, see `jaxdiff.process`.
      weighting: log-SNR -> weight of the noise loss; None weighs the loss of the prediction itself by 1.
      time_sampling: (keys [batch], schedule) -> t [batch].
      cond: passed to predict.

    Returns:
      float [batch].

    Raises:
      ValueError: unknown prediction.

    Source: Ho et al. 2020 (DDPM), eq. 14; Salimans & Ho 2022, section 4 (other predictions).

    >>> from jaxdiff import schedules
    >>> zero = lambda x_t, t, cond=None: jnp.zeros_like(x_t)
    >>> loss = denoising_loss(jax.random.key(0), zero, jnp.zeros((2, 64, 64)), schedule=schedules.cosine())
    >>> bool(jnp.all(jnp.abs(loss - 1.0) < 0.1))  # predicting no noise costs its variance
    True
    """
    check_prediction(prediction)
    time_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(example_keys(key, x_0.shape[0]))
    t = time_sampling(time_keys, schedule)
    m = schedule(t)
    noise = jax.vmap(lambda k: jax.random.normal(k, x_0.shape[1:], x_0.dtype))(noise_keys)
    target = from_x0_noise(prediction, x_0, noise, m)
    error = jnp.square(target - predict(add_noise(x_0, noise, m), t, cond))
    loss = jnp.mean(error, axis=tuple(range(1, error.ndim)))
    if weighting is None:
        return loss
    return weighting(m.log_snr) * jnp.square(noise_per_output(prediction, m)) * loss
