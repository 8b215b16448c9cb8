"""Denoisers: a network seen as its estimate of (x_0, noise), and the wrappers Denoiser -> Denoiser.

Samplers see only `denoise(x_t, t) -> Prediction`. Guidance and thresholding wrap a denoiser and return one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxdiff.process import check_prediction, to_x0_noise
from jaxdiff.schedules import Schedule


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


Denoiser = Callable[[jax.Array, ArrayLike], Prediction]


def as_denoiser(
    predict: Callable[..., jax.Array], *, schedule: Schedule, prediction: str = "noise", cond: Any = None
) -> Denoiser:
    """A network (or any callable) as a denoiser.

    Args:
      predict: (x_t [batch, ...], t [batch], cond) -> output.
      schedule: the schedule it was trained with.
      prediction: what it puts out, see `jaxdiff.process`.
      cond: passed to predict at every call.

    Returns:
      (x_t, t) -> Prediction, t scalar or [batch]; computed in x_t's dtype whatever predict's.

    Raises:
      ValueError: unknown prediction; or "noise" or "score" with a schedule that leaves no signal at t = 1.

    >>> from jaxdiff import schedules
    >>> denoise = as_denoiser(lambda x, t, cond: jnp.zeros_like(x), schedule=schedules.flow(), prediction="x_0")
    >>> denoise(jnp.ones((1, 2)), 0.5).noise.tolist()
    [[2.0, 2.0]]
    """
    check_prediction(prediction)
    with jax.ensure_compile_time_eval():  # as_denoiser may be called under jit
        no_signal = bool(schedule(1.0).alpha == 0)
    if prediction in ("noise", "score") and no_signal:
        raise ValueError(f"the schedule leaves no signal at t = 1, where {prediction!r} divides by 0; use 'v' or 'x_0'")

    def denoise(x_t: jax.Array, t: ArrayLike) -> Prediction:
        t = jnp.broadcast_to(jnp.asarray(t, jnp.result_type(float)), x_t.shape[:1])
        output = predict(x_t, t, cond).astype(x_t.dtype)
        return Prediction(*to_x0_noise(prediction, output, x_t, schedule(t)))

    return denoise


def classifier_free(denoise_cond: Denoiser, denoise_uncond: Denoiser, scale: ArrayLike) -> Denoiser:
    """Classifier-free guidance: uncond + scale (cond - uncond).

    scale = 0 is unconditional, 1 conditional, > 1 exaggerates the condition. (Ho & Salimans' w is scale - 1.)

    Source: Ho & Salimans 2022, eq. 6; Saharia et al. 2022 (Imagen), eq. 3, for this convention.

    >>> cond, uncond = (lambda x, t, v=v: Prediction(x + v, x - v) for v in (1.0, 0.0))
    >>> classifier_free(cond, uncond, 3.0)(jnp.zeros((1,)), 0.5).x_0.tolist()
    [3.0]
    """

    def denoise(x_t: jax.Array, t: ArrayLike) -> Prediction:
        cond, uncond = denoise_cond(x_t, t), denoise_uncond(x_t, t)
        guided = (u + scale * (c - u) for c, u in zip(cond[:2], uncond[:2], strict=True))
        return Prediction(*guided, cond.fraction)

    return denoise


def static_threshold(denoise: Denoiser, *, schedule: Schedule, limit: float = 1.0) -> Denoiser:
    """Clips x_0 to [-limit, limit] and derives the noise anew from the clipped x_0.

    Source: Ho et al. 2020 (DDPM), released code; Saharia et al. 2022 (Imagen), section 2.3.

    >>> from jaxdiff import schedules
    >>> far = lambda x, t: Prediction(x + 9.0, x)
    >>> static_threshold(far, schedule=schedules.flow())(jnp.zeros((1, 2)), 0.5)
    Prediction(x_0=Array([[1., 1.]], dtype=float32), noise=Array([[-1., -1.]], dtype=float32), fraction=None)
    """
    return _with_x_0(denoise, schedule, lambda x_0: jnp.clip(x_0, -limit, limit))


def dynamic_threshold(denoise: Denoiser, *, schedule: Schedule, percentile: float = 0.995) -> Denoiser:
    """Clips x_0 of each example to its own percentile s >= 1 of |x_0| and divides by s; the noise follows.

    Source: Saharia et al. 2022 (Imagen), section 2.3.

    >>> from jaxdiff import schedules
    >>> far = lambda x, t: Prediction(x + 4.0, x)
    >>> dynamic_threshold(far, schedule=schedules.flow())(jnp.zeros((1, 2)), 0.5).x_0.tolist()
    [[1.0, 1.0]]
    """

    def squeeze(x_0: Float[Array, "batch ..."]) -> jax.Array:
        axes = tuple(range(1, x_0.ndim))
        limit = jnp.maximum(jnp.quantile(jnp.abs(x_0), percentile, axis=axes, keepdims=True), 1.0)
        return jnp.clip(x_0, -limit, limit) / limit

    return _with_x_0(denoise, schedule, squeeze)


def _with_x_0(denoise: Denoiser, schedule: Schedule, change: Callable[[jax.Array], jax.Array]) -> Denoiser:
    """denoise with x_0 changed and the noise re-derived, so that x_t = alpha x_0 + sigma noise still holds."""

    def changed(x_t: jax.Array, t: ArrayLike) -> Prediction:
        p = denoise(x_t, t)
        return Prediction(*to_x0_noise("x_0", change(p.x_0), x_t, schedule(t)), p.fraction)

    return changed
