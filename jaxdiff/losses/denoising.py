"""The denoising loss: per example, unreduced; the caller takes the mean.

x_t = alpha_t x_0 + sigma_t noise,  loss = w(t) mean |target - predict(x_t, t)|^2  over the axes of one example
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.keys import example_keys
from jaxdiff.losses.time_sampling import TimeSampling, uniform, uniforms
from jaxdiff.losses.weightings import Weighting, output_weight
from jaxdiff.process import add_noise, check_prediction, from_x0_noise, network_inputs
from jaxdiff.schedules import SCHEDULES, Marginal, Schedule


def denoising_loss(
    key: jax.Array,
    predict: Callable[..., jax.Array],
    x_0: Float[Array, "batch *shape"],
    *,
    schedule: Schedule | str,
    prediction: str = "noise",
    weighting: Weighting | str | None = None,
    time_sampling: TimeSampling = uniform,
    t: Float[Array, " batch"] | None = None,
    cond: Any = None,
) -> Float[Array, " batch"]:
    """w(t) mean |target - predict(x_t, t, cond)|^2 for each example, at a random t with random noise.

    With the defaults it is the seed of the field: E |noise - predict(sqrt(alpha_bar) x_0 + ..., t)|^2.

    Args:
      key: one key, or one per example [batch]; example i uses its own key alone, so that its loss does not
        depend on the batch it is in.
      predict: (x_t, t [batch], cond) -> output of the kind `prediction`; called as `process.network_inputs` says.
      x_0: data [batch, ...], usually in [-1, 1].
      schedule: the noise schedule; it and the weighting may be names.
      prediction: what predict puts out, see `jaxdiff.process`.
      weighting: of this package, e.g. `min_snr()`; None weighs the loss of the prediction itself by 1.
      time_sampling: how times are drawn, e.g. `log_normal()`; default: uniform.
      t: the times, if the caller has drawn them (stratified, loss-aware); else each example's own.
      cond: passed to predict.

    Returns:
      [batch], of x_0's type.

    Raises:
      ValueError: unknown prediction, x_0 not of a floating type, a wrong number of keys, or predict returned another
        shape.

    Source: Ho et al. 2020 (DDPM), eq. 14; Salimans & Ho 2022, section 4 (other predictions).

    >>> from jaxdiff import schedules
    >>> zero = lambda x_t, t, cond=None: jnp.zeros_like(x_t)
    >>> loss = denoising_loss(jax.random.key(0), zero, jnp.zeros((2, 64, 64)), schedule=schedules.cosine())
    >>> bool(jnp.all(jnp.abs(loss - 1.0) < 0.1))  # predicting no noise costs its variance
    True
    """
    from jaxdiff.losses import TIME_SAMPLINGS, WEIGHTINGS  # made of this module

    check_prediction(prediction)
    schedule, weighting = SCHEDULES.made(schedule), WEIGHTINGS.made(weighting)
    time_sampling = TIME_SAMPLINGS.made(time_sampling)
    drawn = draw(key, x_0, schedule, time_sampling, t)
    output = predict(*network_inputs(prediction, drawn.x_t, drawn.t, drawn.m), cond)
    if output.shape != x_0.shape:
        raise ValueError(f"predict returned shape {output.shape} for x_t of shape {x_0.shape}; they must be equal")
    loss = mean_square(from_x0_noise(prediction, x_0, drawn.noise, drawn.m) - output)
    weight = 1.0 if weighting is None else output_weight(prediction, weighting, drawn.m)
    return (weight * loss).astype(x_0.dtype)


class Drawn(NamedTuple):
    """One noise level an example: t [batch], its marginal [batch], noise and x_t [batch, ...]."""

    t: jax.Array
    m: Marginal
    noise: jax.Array
    x_t: jax.Array


def draw(key: jax.Array, x_0: jax.Array, schedule: Schedule, time_sampling: TimeSampling, t: jax.Array | None) -> Drawn:
    """Times and noise, example i from its own key alone; see `denoising_loss`."""
    if not jnp.issubdtype(x_0.dtype, jnp.floating):
        raise ValueError(f"x_0 must be of a floating type, usually in [-1, 1] (x / 127.5 - 1), got {x_0.dtype}")
    keys = example_keys(key, x_0.shape[0])
    time_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    if t is None:
        t = time_sampling(uniforms(time_keys), schedule)
    m = schedule(t)
    noise = jax.vmap(lambda k: jax.random.normal(k, x_0.shape[1:], x_0.dtype))(noise_keys)
    return Drawn(t, m, noise, add_noise(x_0, noise, m))


def mean_square(x: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """The mean of squares over all axes but the first."""
    return jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim)))
