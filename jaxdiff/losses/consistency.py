"""Consistency models: a network whose x_0 is where the probability flow through x_t ends, for sampling in 1 to 4 steps.

f(x_t, t) is the x_0 of the network's prediction, and f(x, 0) = x holds by itself for every kind but "x_0". For r < t on
one path, f is made to agree with itself:

    loss = w |f(x_t, t) - stop_gradient f(x_r, r)|^2 / d,   phi = atan(sigma/alpha),                             (1)
                                                            w = 1/((phi_t - phi_r) sin^2 phi_t)

    distillation   x_r is one DDIM step from x_t with the teacher's denoiser                                      (2)
    training       x_r has the noise that x_t has, and no teacher is needed                                       (3)

On a continuous schedule the gap is no less than phi_t/`FINEST`, and in w an angle below `SMALL` counts as that: beyond,
float32 sees the rounding of x and not the network. A table's gaps are exact.

As r -> t both have the end of the flow as their fixed point; with a gap, (2) has the teacher's DDIM walk over the gaps,
and on Gaussian data (3) has the same. r = 0 in (3) is the denoising loss: a diffusion model is the start of training,
and the gap is narrowed from there (`narrowing`). Samples are drawn with `samplers.lcm`.

So the loss is the square of v's error, which is that of f over sin phi, per unit of angle. Without the sine it would
hardly see what is wrong at small phi: f would keep the noise there, and every other f is made from that one.

Sources: Song et al. 2023 (consistency models), algorithms 2 and 3; Geng et al. 2024 (ECT, easy consistency tuning),
sections 3 and 4, where the noise level is sigma/alpha and not the angle; Lu & Song 2024 (sCM), for the angle. The
weight is ours (docs/decisions/0010).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.denoisers import Denoiser, as_denoiser
from jaxdiff.losses.denoising import draw, mean_square
from jaxdiff.losses.time_sampling import TimeSampling, uniform
from jaxdiff.process import add_noise
from jaxdiff.schedules import Marginal, Schedule

FINEST = 2.0**12
"""Gaps on a continuous schedule are no less than phi_t/FINEST."""
SMALL = 2.0**-7
"""The angle at which 1 % of the loss is rounding in float32, for images of size 1 and a gap of phi/FINEST."""

Earlier = Callable[[jax.Array, Schedule], jax.Array]  # (t [batch], schedule) -> r [batch], 0 <= r < t


def consistency_loss(
    key: jax.Array,
    predict: Callable[..., jax.Array],
    x_0: Float[Array, "batch *shape"],
    *,
    schedule: Schedule,
    earlier: Earlier,
    prediction: str = "v",
    teacher: Denoiser | None = None,
    target: Callable[..., jax.Array] | None = None,
    time_sampling: TimeSampling = uniform,
    t: Float[Array, " batch"] | None = None,
    cond: Any = None,
) -> Float[Array, " batch"]:
    """Eq. (1) for each example, at a random t: distillation with a teacher, training without.

    Args:
      key: one key, or one per example [batch].
      predict: (x_t, t [batch], cond) -> output of the kind `prediction`.
      x_0: data [batch, ...], usually in [-1, 1].
      schedule: the noise schedule.
      earlier: r of each t, e.g. `narrowing(3)`.
      prediction: any kind but "x_0", for which f(x, 0) = x would have to be learned.
      teacher: a denoiser to distil, with its guidance if any.
      target: what f(x_r, r) is computed with, such as an average of the weights; default: predict itself.
      time_sampling: how times are drawn.
      t: the times, if the caller has drawn them.
      cond: passed to predict and target.

    Returns:
      float [batch].

    Raises:
      ValueError: prediction "x_0", or as `denoising_loss` and `as_denoiser`.

    >>> from jaxdiff import schedules
    >>> still = lambda x_t, t, cond=None: jnp.zeros_like(x_t)  # v = 0: x_0 = alpha x_t
    >>> options = {"schedule": schedules.cosine(), "earlier": narrowing(2)}
    >>> consistency_loss(jax.random.key(0), still, jnp.ones((3, 4)), **options).shape
    (3,)
    """
    if prediction == "x_0":
        raise ValueError("a consistency function is x itself at t = 0, which prediction 'x_0' is not; use v or noise")
    drawn = draw(key, x_0, schedule, time_sampling, t)
    r = earlier(drawn.t, schedule)
    m_r = schedule(r)
    if teacher is None:
        x_r = add_noise(x_0, drawn.noise, m_r)
    else:
        x_r = add_noise(*teacher(drawn.x_t, drawn.t)[:2], m_r)

    def end(predict: Callable[..., jax.Array], x: Array, t: Array) -> Array:
        return as_denoiser(predict, schedule=schedule, prediction=prediction, cond=cond)(x, t).x_0

    goal = end(target or predict, x_r, r)
    goal = jax.lax.stop_gradient(jnp.where(m_r.like(x_0).sigma > 0, goal, x_r))
    m_t = drawn.m
    gap = jnp.arctan2(m_t.sigma * m_r.alpha - m_t.alpha * m_r.sigma, m_t.alpha * m_r.alpha + m_t.sigma * m_r.sigma)
    sine = jnp.sin(_angle(m_t))
    if schedule.num_steps is None:
        gap, sine = jnp.maximum(gap, SMALL / FINEST), jnp.maximum(sine, SMALL)
    return mean_square(end(predict, drawn.x_t, drawn.t) - goal) / (gap * sine**2)


def narrowing(stage: float | Array) -> Earlier:
    """phi_r = phi_t (1 - 2^-stage): from r = 0 at stage 0, which is diffusion, to r -> t.

    A discrete schedule takes the nearest of its times below t. On a continuous one the gap stops at phi_t/`FINEST`.

    Args:
      stage: >= 0, which may be traced; raised during training, for example by one every tenth of it.

    Source: Geng et al. 2024 (ECT), section 4, with q = 2.

    >>> from jaxdiff import schedules
    >>> [round(float(narrowing(k)(jnp.array([1.0]), schedules.cosine())[0]), 2) for k in (0, 1, 2)]
    [0.0, 0.5, 0.75]
    """

    def earlier(t: Float[Array, " batch"], schedule: Schedule) -> Float[Array, " batch"]:
        gap = 2.0 ** -jnp.asarray(stage, jnp.result_type(float))
        if schedule.num_steps is None:
            gap = jnp.maximum(gap, 1.0 / FINEST)
        phi = _angle(schedule(t)) * (1.0 - gap)
        above = jnp.where(phi > 0, phi, 1.0)
        r = schedule.time_of_log_snr(2.0 * (jnp.log(jnp.cos(above)) - jnp.log(jnp.sin(above))))
        if schedule.num_steps is not None:
            r = jnp.minimum(r, jnp.maximum(jnp.round(t * schedule.num_steps) - 1.0, 0.0) / schedule.num_steps)
        return jnp.where(phi > 0, r, 0.0)

    return earlier


def _angle(m: Marginal) -> Array:
    return jnp.arctan2(m.sigma, m.alpha)
