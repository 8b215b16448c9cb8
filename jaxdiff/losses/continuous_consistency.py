"""Continuous-time consistency (sCM): the consistency loss in the limit of no gap, by a derivative along the flow.

On alpha = cos phi, sigma = sin phi, v = alpha noise - sigma x_0 is dx/dphi, and a network F of kind v has the
consistency function f = cos phi x - sin phi F, with

    cos phi df/dphi = -cos^2 phi (F - dx/dphi) - cos phi sin phi (x + dF/dphi) = g                                (1)
    loss = |F - stop_gradient(F + g/(|g| + c))|^2 / d,  c = 0.1                                                   (2)

where dx/dphi is the teacher's v (distillation) or the example's (training), dF/dphi is one `jax.jvp`, scaled before it
so that nothing overflows near phi = pi/2, and the second term of g is warmed up from 0. g = 0 is the end of the flow.
Dividing by |g| moves no zero of a distilled g; of a trained one it does where an example has few dimensions.

Source: Lu & Song 2024 (sCM), algorithm 1, eq. 6 and 8, without the learned weight of each time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxdiff.denoisers import Denoiser
from jaxdiff.losses.denoising import draw, mean_square
from jaxdiff.losses.mean_flow import like
from jaxdiff.losses.time_sampling import TimeSampling, uniform
from jaxdiff.process import from_x0_noise
from jaxdiff.schedules import Schedule


def continuous_consistency_loss(
    key: jax.Array,
    predict: Callable[..., jax.Array],
    x_0: Float[Array, "batch *shape"],
    *,
    schedule: Schedule,
    teacher: Denoiser | None = None,
    warm: ArrayLike = 1.0,
    normalised: bool = True,
    time_sampling: TimeSampling = uniform,
    t: Float[Array, " batch"] | None = None,
    cond: Any = None,
) -> Float[Array, " batch"]:
    """Eq. (2) for each example at a random t: distillation with a teacher, training without.

    Args:
      key: one key, or one per example [batch].
      predict: (x_t, t [batch], cond) -> v, of x_t's shape; differentiated forward.
      x_0: data [batch, ...], usually in [-1, 1].
      schedule: continuous, with alpha^2 + sigma^2 = 1, such as shifted_cosine.
      teacher: a denoiser to distil, with its guidance if any.
      warm: what multiplies the second term of g, 0 at first, 1 after some thousand steps; it may be traced.
      normalised: whether g is divided by its length.
      time_sampling: how times are drawn; the paper's is log_normal(-1, 1.4).
      t: the times, if the caller has drawn them.
      cond: passed to predict.

    >>> from jaxdiff import schedules
    >>> still = lambda x_t, t, cond=None: jnp.zeros_like(x_t)
    >>> how = {"schedule": schedules.shifted_cosine(), "warm": 0.0, "normalised": False}
    >>> continuous_consistency_loss(jax.random.key(0), still, jnp.ones((3, 4)), **how).shape
    (3,)
    """
    drawn = draw(key, x_0, schedule, time_sampling, t)
    t, x_t, m = drawn.t, drawn.x_t, drawn.m.like(x_0)
    way = from_x0_noise("v", *((x_0, drawn.noise) if teacher is None else teacher(x_t, t)[:2]), drawn.m)
    way = jax.lax.stop_gradient(way)

    def angle(t: Array) -> Array:
        m = schedule(t)
        return jnp.arctan2(m.sigma, m.alpha)

    rate = jax.jvp(angle, (t,), (jnp.ones_like(t),))[1]
    both = m.alpha * m.sigma
    tangents = both * way, drawn.m.alpha * drawn.m.sigma / rate
    f, slope = jax.jvp(lambda x, t: predict(x, t, cond), (x_t, t), tangents)
    g = -jnp.square(m.alpha) * (f - way) - warm * (both * x_t + slope)
    if normalised:
        g = g / like(jnp.sqrt(jnp.sum(jnp.square(g), axis=tuple(range(1, g.ndim)))) + 0.1, g)
    return mean_square(f - jax.lax.stop_gradient(f + g))
