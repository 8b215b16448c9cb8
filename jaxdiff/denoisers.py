"""Denoisers: a network seen as its estimate of (x_0, noise), and the wrappers Denoiser -> Denoiser.

Samplers see only `denoise(x_t, t) -> Prediction`. Thresholding wraps a denoiser and returns one, and so does guidance
(jaxdiff.guidance).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxdiff.family import Family
from jaxdiff.process import PREDICTIONS, check_prediction, network_inputs, to_x0_noise
from jaxdiff.schedules import SCHEDULES, Marginal, Schedule


class Prediction(NamedTuple):
    """What a denoiser says of x_t: x_t = alpha x_0 + sigma noise holds between its parts.

    Attributes:
      x_0: the estimate of the data, [batch, ...].
      noise: the estimate of the noise, [batch, ...].
      fraction: of a learned variance, v in [0, 1] between log beta-tilde (0) and log beta (1); None if not learned.
    """

    x_0: jax.Array
    noise: jax.Array
    fraction: jax.Array | None = None


class Span(NamedTuple):
    """From t to r, in place of t: what a network of two times is asked for. A DDIM step with its x_0 and noise ends at
    x_r, and at r = t they are a denoiser's."""

    t: ArrayLike
    r: ArrayLike


Denoiser = Callable[[jax.Array, Any], Prediction]  # (x_t, t): t scalar or [batch], or a Span of such


def as_denoiser(
    predict: Callable[..., jax.Array],
    *,
    schedule: Schedule | str,
    prediction: str = "noise",
    learned_variance: bool = False,
    two_times: bool = False,
    cond: Any = None,
) -> Denoiser:
    """A network (or any callable) as a denoiser.

    Args:
      predict: (x_t [batch, ...], t [batch], cond) -> output, of x_t's shape; see `process.network_inputs` for what
        stands for x_t and t with prediction "edm".
      schedule: the schedule it was trained with, or its name.
      prediction: what it puts out, see `jaxdiff.process`.
      learned_variance: the output has twice x_t's channels (last axis): the prediction, then v in about [-1, 1], of
        which the prediction's fraction is (v + 1)/2.
      two_times: cond["r"] says where the step leads: the r of a `Span`, and else t itself.
      cond: passed to predict at every call.

    Returns:
      (x_t, t) -> Prediction, t scalar or [batch], or a `Span` of such; computed in x_t's dtype whatever predict's.

    Raises:
      ValueError: unknown prediction; or "noise" or "score" with a schedule that leaves no signal at t = 1; or, when
        called, an output of another shape, or a t that is not one, nor one per example.

    Source for the learned variance: Nichol & Dhariwal 2021 (improved DDPM), eq. 15, released code.

    >>> from jaxdiff import schedules
    >>> denoise = as_denoiser(lambda x, t, cond: jnp.zeros_like(x), schedule=schedules.flow(), prediction="x_0")
    >>> denoise(jnp.ones((1, 2)), 0.5).noise.tolist()
    [[2.0, 2.0]]
    """
    check_prediction(prediction)
    schedule = SCHEDULES.made(schedule)
    with jax.ensure_compile_time_eval():  # as_denoiser may be called under jit
        no_signal = bool(schedule(1.0).alpha == 0)
    if PREDICTIONS[prediction].needs_signal and no_signal:
        raise ValueError(f"the schedule leaves no signal at t = 1, where {prediction!r} divides by 0; use 'v' or 'x_0'")

    def denoise(x_t: jax.Array, t: ArrayLike | Span) -> Prediction:
        (t, r), conditions = t if isinstance(t, Span) else (t, t), cond
        if two_times:
            conditions = {**(cond or {}), "r": jnp.broadcast_to(jnp.asarray(r, jnp.result_type(float)), x_t.shape[:1])}
        elif r is not t:
            raise ValueError("this network knows one time; a Span is for one that was trained with two (mean_flow)")
        if jnp.shape(t) not in ((), x_t.shape[:1]):
            raise ValueError(f"t must be one time or one per example, {x_t.shape[:1]}; got shape {jnp.shape(t)}")
        t = jnp.broadcast_to(jnp.asarray(t, jnp.result_type(float)), x_t.shape[:1])
        m = schedule(t)
        output, fraction = predict(*network_inputs(prediction, x_t, t, m), conditions).astype(x_t.dtype), None
        expected = (*x_t.shape[:-1], 2 * x_t.shape[-1]) if learned_variance else x_t.shape
        if output.shape != expected:
            raise ValueError(
                f"predict returned shape {output.shape} for x_t of shape {x_t.shape}; it must be {expected}"
            )
        if learned_variance:
            output, raw = jnp.split(output, 2, axis=-1)
            fraction = 0.5 * (raw + 1.0)
        return Prediction(*to_x0_noise(prediction, output, x_t, m), fraction)

    return denoise


def static_threshold(denoise: Denoiser, *, schedule: Schedule, limit: float = 1.0) -> Denoiser:
    """Clips x_0 to [-limit, limit]; the noise follows.

    Raises:
      ValueError: limit is not positive.

    Source: Ho et al. 2020 (DDPM), released code; Saharia et al. 2022 (Imagen), section 2.3.

    >>> from jaxdiff import schedules
    >>> far = as_denoiser(lambda x, t, cond: jnp.full_like(x, 9.0), schedule=schedules.flow(), prediction="x_0")
    >>> p = static_threshold(far, schedule=schedules.flow())(jnp.zeros((1, 2)), 0.5)
    >>> p.x_0.tolist(), p.noise.tolist()
    ([[1.0, 1.0]], [[-1.0, -1.0]])
    """
    if not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    return _thresholded(denoise, schedule, lambda x_0: jnp.clip(x_0, -limit, limit))


def dynamic_threshold(denoise: Denoiser, *, schedule: Schedule, percentile: float = 0.995) -> Denoiser:
    """Clips x_0 of each example to its own percentile s >= 1 of |x_0| and divides by s; the noise follows.

    Raises:
      ValueError: percentile is outside (0, 1].

    Source: Saharia et al. 2022 (Imagen), section 2.3.

    >>> from jaxdiff import schedules
    >>> far = lambda x, t: Prediction(x + 4.0, x)
    >>> dynamic_threshold(far, schedule=schedules.flow())(jnp.zeros((1, 2)), 0.5).x_0.tolist()
    [[1.0, 1.0]]
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"percentile must lie in (0, 1], got {percentile}")

    def squeeze(x_0: Float[Array, "batch ..."]) -> jax.Array:
        axes = tuple(range(1, x_0.ndim))
        limit = jnp.maximum(jnp.quantile(jnp.abs(x_0), percentile, axis=axes, keepdims=True), 1.0)
        return jnp.clip(x_0, -limit, limit) / limit

    return _thresholded(denoise, schedule, squeeze)


def _unchanged(denoise: Denoiser) -> Denoiser:
    """The denoiser as it is."""
    return denoise


THRESHOLDS = Family(
    "threshold",
    {"none": _unchanged, "static": static_threshold, "dynamic": dynamic_threshold},
    given=("denoise", "schedule"),
)


def with_x_0(prediction: Prediction, x_0: Float[Array, "batch ..."], m: Marginal) -> Prediction:
    """The prediction with another x_0, and its noise moved so that alpha x_0 + sigma noise stays what it was.

    Moved, not computed from x_t anew: an x_0 that did not change leaves the noise as it was, bit for bit. (Trap: to
    change x_0 and keep the noise.) Where sigma = 0 the noise stays.

    >>> p = Prediction(jnp.array([[3.0]]), jnp.array([[-1.0]]))
    >>> with_x_0(p, jnp.array([[1.0]]), Marginal(jnp.array(0.5), jnp.array(0.25))).noise.tolist()
    [[3.0]]
    """
    alpha, sigma = m.like(x_0)
    ratio = jnp.where(sigma > 0, alpha / jnp.where(sigma > 0, sigma, 1.0), 0.0)
    return prediction._replace(x_0=x_0, noise=prediction.noise - ratio * (x_0 - prediction.x_0))


def _thresholded(denoise: Denoiser, schedule: Schedule, change: Callable[[jax.Array], jax.Array]) -> Denoiser:
    def thresholded(x_t: jax.Array, t: ArrayLike) -> Prediction:
        p = denoise(x_t, t)
        return with_x_0(p, change(p.x_0), schedule(t))

    return thresholded
