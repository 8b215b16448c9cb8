"""Guidance: two denoisers, or a denoiser and a classifier, made into one that exaggerates the difference.

Every function here is Denoiser -> Denoiser and costs the network evaluations of its parts. The scale has one
convention throughout: 0 is unconditional, 1 conditional, more exaggerates (Ho & Salimans' w is scale - 1). It may be
one number or one per example, and may be traced; a value that is known and cannot work raises ValueError.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxdiff.denoisers import Denoiser, Prediction, with_x_0
from jaxdiff.family import Family
from jaxdiff.process import from_x0_noise, to_x0_noise
from jaxdiff.schedules import Schedule


def classifier_free(denoise_cond: Denoiser, denoise_uncond: Denoiser, scale: ArrayLike) -> Denoiser:
    """Classifier-free guidance: uncond + scale (cond - uncond).

    Args:
      denoise_cond: the denoiser that knows the condition.
      denoise_uncond: the one that does not.
      scale: see above; scalar or [batch].

    Source: Ho & Salimans 2022, eq. 6; Saharia et al. 2022 (Imagen), eq. 3, for this convention.

    >>> cond, uncond = (lambda x, t, v=v: Prediction(x + v, x - v) for v in (1.0, 0.0))
    >>> classifier_free(cond, uncond, 3.0)(jnp.zeros((1,)), 0.5).x_0.tolist()
    [3.0]
    """
    _check("scale", scale)

    def denoise(x_t: jax.Array, t: ArrayLike) -> Prediction:
        cond, uncond = denoise_cond(x_t, t), denoise_uncond(x_t, t)
        return Prediction(_mix(uncond.x_0, cond.x_0, scale), _mix(uncond.noise, cond.noise, scale), cond.fraction)

    return denoise


def autoguidance(denoise: Denoiser, denoise_weak: Denoiser, scale: ArrayLike) -> Denoiser:
    """weak + scale (denoise - weak): guidance by a worse version (smaller, trained less) of the same model.

    Source: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", eq. 4.

    >>> good, weak = (lambda x, t, v=v: Prediction(x + v, x - v) for v in (1.0, 0.5))
    >>> autoguidance(good, weak, 2.0)(jnp.zeros((1,)), 0.5).x_0.tolist()
    [1.5]
    """
    return classifier_free(denoise, denoise_weak, scale)


def guidance_interval(guided: Denoiser, denoise_cond: Denoiser, low: float, high: float) -> Denoiser:
    """guided where low <= t <= high, denoise_cond elsewhere. With one t for all (as in `sample`) only that one is run.

    Args:
      guided: any guided denoiser.
      denoise_cond: the denoiser without guidance.
      low: least guided time. For a noise level, `schedule.time_of_log_snr(-2 log(sigma/alpha))`.
      high: largest guided time.

    Raises:
      ValueError: not 0 <= low < high <= 1.

    Source: Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval", eq. 5.

    >>> one, two = (lambda x, t, v=v: Prediction(x + v, x) for v in (1.0, 2.0))
    >>> denoise = guidance_interval(two, one, 0.2, 0.7)
    >>> [float(denoise(jnp.zeros((1,)), t).x_0[0]) for t in (0.9, 0.5, 0.1)]
    [1.0, 2.0, 1.0]
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"the interval needs 0 <= low < high <= 1, got {low} and {high}")

    def denoise(x_t: jax.Array, t: ArrayLike) -> Prediction:
        inside = (jnp.asarray(t) >= low) & (jnp.asarray(t) <= high)
        if inside.ndim == 0:
            return jax.lax.cond(inside, lambda x: guided(x, t), lambda x: denoise_cond(x, t), x_t)
        both = guided(x_t, t), denoise_cond(x_t, t)
        return jax.tree.map(lambda a, b: jnp.where(_like(inside, a), a, b), *both)

    return denoise


def rescaled_classifier_free(
    denoise_cond: Denoiser,
    denoise_uncond: Denoiser,
    scale: ArrayLike,
    *,
    schedule: Schedule,
    rescale: ArrayLike = 0.7,
) -> Denoiser:
    """Classifier-free guidance whose x_0 keeps the spread of the conditional one, against over-exposure.

    x_0 <- rescale x_0 std(x_0 of cond)/std(x_0) + (1 - rescale) x_0, std over each example; the noise follows. (The
    paper rescales the network's output, a v; where there is most noise, v is -x_0.)

    Args:
      denoise_cond: the denoiser that knows the condition.
      denoise_uncond: the one that does not.
      scale: see above; scalar or [batch].
      schedule: the noise schedule.
      rescale: in [0, 1]; 0 is `classifier_free`.

    Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", eq. 15-16.

    >>> from jaxdiff import schedules
    >>> cond, uncond = (lambda x, t, v=v: Prediction(x * v, x) for v in (1.0, 0.0))
    >>> denoise = rescaled_classifier_free(cond, uncond, 4.0, schedule=schedules.flow(), rescale=1.0)
    >>> denoise(jnp.array([[1.0, -1.0]]), 0.5).x_0.tolist()
    [[1.0, -1.0]]
    """
    _check("scale", scale)
    _check("rescale", rescale, 0.0, 1.0)

    def rule(cond: jax.Array, uncond: jax.Array) -> jax.Array:
        guided = _mix(uncond, cond, scale)
        spread = jnp.std(guided, axis=_axes(guided), keepdims=True)
        ratio = jnp.std(cond, axis=_axes(cond), keepdims=True) / jnp.where(spread > 0, spread, 1.0)
        return guided * _mix(1.0, jnp.where(spread > 0, ratio, 1.0), rescale)

    return _in_x_0(denoise_cond, denoise_uncond, schedule, rule)


def adaptive_projected(
    denoise_cond: Denoiser,
    denoise_uncond: Denoiser,
    scale: ArrayLike,
    *,
    schedule: Schedule,
    parallel: ArrayLike = 0.0,
    max_norm: float | None = None,
) -> Denoiser:
    """Adaptive projected guidance: x_0 = cond + (scale - 1) (d_orthogonal + parallel d_parallel), d = cond - uncond.

    d is split along the conditional x_0: its parallel part saturates colours. The noise follows. The paper's momentum
    over steps is left out, since a denoiser keeps no state.

    Args:
      denoise_cond: the denoiser that knows the condition.
      denoise_uncond: the one that does not.
      scale: see above; scalar or [batch].
      schedule: the noise schedule.
      parallel: how much of the parallel part is kept; 1 (and max_norm None) is `classifier_free`.
      max_norm: d is shortened to this norm (over an example) where it is longer; >= 0.

    Source: Sadat et al. 2024 (APG), algorithm 1.

    >>> from jaxdiff import schedules
    >>> cond, uncond = (lambda x, t, v=v: Prediction(jnp.array([[1.0, v]]), x) for v in (0.0, -1.0))
    >>> denoise = adaptive_projected(cond, uncond, 3.0, schedule=schedules.flow())
    >>> denoise(jnp.zeros((1, 2)), 0.5).x_0.tolist()
    [[1.0, 2.0]]
    """
    _check("scale", scale)
    _check("parallel", parallel)
    if max_norm is not None:
        _check("max_norm", max_norm, 0.0)

    def rule(cond: jax.Array, uncond: jax.Array) -> jax.Array:
        gap = cond - uncond
        if max_norm is not None:
            size = jnp.sqrt(_dot(gap, gap))
            gap = gap * jnp.where(size > max_norm, max_norm / jnp.where(size > 0, size, 1.0), 1.0)
        along = _ratio(_dot(gap, cond), _dot(cond, cond)) * cond
        update = gap - along + _like(parallel, cond) * along
        return cond + _like(jnp.asarray(scale) - 1.0, cond) * update

    return _in_x_0(denoise_cond, denoise_uncond, schedule, rule)


def cfg_pp(denoise_cond: Denoiser, denoise_uncond: Denoiser, scale: ArrayLike) -> Denoiser:
    """CFG++: the guided x_0 with the unconditional noise, so that x stays near where it would be without guidance.

    For samplers that add noise back to an x_0 (`ddim`): alpha x_0 + sigma noise is not x_t here, by intention.

    Args:
      denoise_cond: the denoiser that knows the condition.
      denoise_uncond: the one that does not.
      scale: in [0, 1], the paper's lambda.

    Source: Chung et al. 2024 (CFG++), algorithm 2.

    >>> cond, uncond = (lambda x, t, v=v: Prediction(x + v, x - v) for v in (1.0, 0.0))
    >>> p = cfg_pp(cond, uncond, 0.5)(jnp.zeros((1,)), 0.5)
    >>> float(p.x_0[0]), float(p.noise[0])
    (0.5, 0.0)
    """
    _check("scale of CFG++", scale, 0.0, 1.0)

    def denoise(x_t: jax.Array, t: ArrayLike) -> Prediction:
        cond, uncond = denoise_cond(x_t, t), denoise_uncond(x_t, t)
        return Prediction(_mix(uncond.x_0, cond.x_0, scale), uncond.noise, cond.fraction)

    return denoise


def cfg_zero_star(
    denoise_cond: Denoiser,
    denoise_uncond: Denoiser,
    scale: ArrayLike,
    *,
    schedule: Schedule,
    zero_above: ArrayLike = 1.0,
) -> Denoiser:
    """CFG-Zero*: velocity s u + scale (c - s u) with the best s = <c, u>/|u|^2 for each example; none at the start.

    c and u are the flow velocities (noise - x_0) with and without the condition: made for the `flow` schedule.

    Args:
      denoise_cond: the denoiser that knows the condition.
      denoise_uncond: the one that does not.
      scale: see above; scalar or [batch].
      schedule: the noise schedule.
      zero_above: no velocity at t above this: 0.96 leaves out the first 4 % of the way (zero-init); 1 none.

    Source: Fan et al. 2025 (CFG-Zero*), algorithm 1.

    >>> from jaxdiff import schedules
    >>> cond, uncond = (lambda x, t, v=v: Prediction(x - v, x) for v in (3.0, 1.0))  # velocities 3 and 1: s = 3
    >>> denoise = cfg_zero_star(cond, uncond, 7.0, schedule=schedules.flow())
    >>> float(denoise(jnp.zeros((1, 1)), 0.5).x_0[0, 0])  # x_t - sigma velocity, with velocity 3 whatever the scale
    -1.5
    """
    _check("scale", scale)
    _check("zero_above", zero_above, 0.0, 1.0)

    def denoise(x_t: jax.Array, t: ArrayLike) -> Prediction:
        m, cond, uncond = schedule(t), denoise_cond(x_t, t), denoise_uncond(x_t, t)
        c, u = (from_x0_noise("flow", p.x_0, p.noise, m) for p in (cond, uncond))
        u = _ratio(_dot(c, u), _dot(u, u)) * u
        moving = (jnp.asarray(t) <= zero_above).astype(x_t.dtype)
        return Prediction(*to_x0_noise("flow", _like(moving, c) * _mix(u, c, scale), x_t, m), cond.fraction)

    return denoise


def classifier_guidance(
    denoise: Denoiser,
    log_prob: Callable[[jax.Array, ArrayLike], jax.Array],
    scale: ArrayLike,
    *,
    schedule: Schedule,
) -> Denoiser:
    """noise - scale sigma grad log p(y | x_t), and x_0 + scale sigma^2/alpha of it: guidance by a noisy classifier.

    With the true classifier and scale 1 it is the conditional denoiser (Bayes). Where nothing is left of x_0
    (alpha = 0) x_t says nothing of y, and x_0 stays as it is.

    Args:
      denoise: the unconditional denoiser.
      log_prob: (x_t, t) -> log p(y | x_t) [batch], differentiable, example i from x_t[i] alone.
      scale: scalar or [batch].
      schedule: the noise schedule.

    Source: Dhariwal & Nichol 2021 (ADM), algorithm 2.

    >>> from jaxdiff import schedules
    >>> guided = classifier_guidance(
    ...     lambda x, t: Prediction(x, x), lambda x, t: x[:, 0], 2.0, schedule=schedules.flow()
    ... )
    >>> [float(a[0, 0]) for a in guided(jnp.zeros((1, 1)), 0.5)[:2]]
    [1.0, -1.0]
    """
    _check("scale", scale)

    def guided(x_t: jax.Array, t: ArrayLike) -> Prediction:
        p, m = denoise(x_t, t), schedule(t).like(x_t)
        push = _like(scale, x_t) * jax.grad(lambda x: jnp.sum(log_prob(x, t)))(x_t)
        alpha = jnp.where(m.alpha > 0, m.alpha, jnp.inf)
        return Prediction(p.x_0 + jnp.square(m.sigma) / alpha * push, p.noise - m.sigma * push, p.fraction)

    return guided


def _interval(
    denoise_cond: Denoiser, denoise_uncond: Denoiser, scale: ArrayLike, *, low: float = 0.2, high: float = 0.8
) -> Denoiser:
    """Classifier-free guidance where low <= t <= high, none elsewhere (Kynkäänniemi et al. 2024)."""
    return guidance_interval(classifier_free(denoise_cond, denoise_uncond, scale), denoise_cond, low, high)


def _weak(
    denoise: Denoiser,
    denoise_weak: Denoiser,
    scale: ArrayLike,
    *,
    run: str = "",
    step: int | None = None,
    ema: float | None = None,
) -> Denoiser:
    """Guidance by a worse model: another run, or an earlier step or wider average of this one (Karras et al. 2024)."""
    del run, step, ema  # which the weak model was made from
    return autoguidance(denoise, denoise_weak, scale)


RULES = Family(
    "guidance rule",
    {
        "cfg": classifier_free,
        "interval": _interval,
        "rescaled": rescaled_classifier_free,
        "apg": adaptive_projected,
        "cfg_pp": cfg_pp,
        "cfg_zero_star": cfg_zero_star,
        "autoguidance": _weak,
    },
    given=("denoise_cond", "denoise_uncond", "denoise", "denoise_weak", "scale", "schedule"),
)


def _check(name: str, value: ArrayLike, low: float = -np.inf, high: float = np.inf) -> None:
    """Raises ValueError unless value is finite and in [low, high]; a traced value is taken as it is."""
    if isinstance(value, Tracer):
        return
    values = np.asarray(value)
    if not np.all(np.isfinite(values) & (values >= low) & (values <= high)):
        legal = f"lie in [{low:g}, {high:g}]" if high < np.inf else "be finite" + (f", >= {low:g}" if low == 0 else "")
        raise ValueError(f"{name} must {legal}, got {value}")


def _in_x_0(
    denoise_cond: Denoiser,
    denoise_uncond: Denoiser,
    schedule: Schedule,
    rule: Callable[[jax.Array, jax.Array], jax.Array],
) -> Denoiser:
    """x_0 = rule(x_0 of cond, x_0 of uncond), and the noise that goes with it."""

    def denoise(x_t: jax.Array, t: ArrayLike) -> Prediction:
        cond, uncond = denoise_cond(x_t, t), denoise_uncond(x_t, t)
        return with_x_0(cond, rule(cond.x_0, uncond.x_0), schedule(t))

    return denoise


def _like(a: ArrayLike, x: jax.Array) -> jax.Array:
    """A scalar or [batch] array made to broadcast against x [batch, ...]."""
    a = jnp.asarray(a)
    return jnp.expand_dims(a, tuple(range(a.ndim, x.ndim))) if a.ndim else a


def _mix(start: ArrayLike, end: jax.Array, scale: ArrayLike) -> jax.Array:
    """start + scale (end - start), exactly start at scale = 0 and end at 1."""
    scale = _like(scale, end)
    return (1.0 - scale) * start + scale * end


def _axes(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """The inner product of each example, [batch, 1, ...]."""
    return jnp.sum(a * b, axis=_axes(a), keepdims=True)


def _ratio(above: jax.Array, below: jax.Array) -> jax.Array:
    """above/below, and 0 where below is 0."""
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)
