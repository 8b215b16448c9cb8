"""The Shortcut loss: a network of two times that learns large steps from its own steps of half the size.

On x_t = (1 - t) x_0 + t noise, with u(x_t, r, t) the velocity of one step from t to r < t, and m = (t + r)/2:

    r = t     |u(x_t, t, t) - (noise - x_0)|^2, which is flow matching                                            (1)
    r < t     |u(x_t, r, t) - stop_gradient (u(x_t, m, t) + u(x_m, r, m))/2|^2,  x_m = x_t - (t - m) u(x_t, m, t)  (2)

The steps of (2) are 1, 1/2, ..., 2/`finest`, at t a multiple of the step; half of the last is taken with r = t. The
mean velocity of the flow is where (2) is zero, but for that last one, which is Euler's.

Source: Frans et al. 2025 (One Step Diffusion via Shortcut Models), eq. 3 to 5, algorithm 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.keys import example_keys
from jaxdiff.losses.denoising import draw, mean_square
from jaxdiff.losses.mean_flow import STRAIGHT, like
from jaxdiff.losses.time_sampling import TimeSampling, uniform, uniforms


def shortcut_loss(
    key: jax.Array,
    predict: Callable[..., jax.Array],
    x_0: Float[Array, "batch *shape"],
    *,
    share: float = 0.25,
    finest: int = 128,
    guidance: float = 1.0,
    away: Any = None,
    time_sampling: TimeSampling = uniform,
    t: Float[Array, " batch"] | None = None,
    cond: Any = None,
) -> Float[Array, " batch"]:
    """Eq. (2) for a random share of the examples, eq. (1) for the others.

    Args:
      key: one key, or one per example [batch].
      predict: (x_t, t [batch], cond with "r" [batch]) -> u, of x_t's shape.
      x_0: data [batch, ...], usually in [-1, 1].
      share: of examples that learn steps.
      finest: a power of two; steps of 1/finest are those of the velocity.
      guidance: scale of classifier-free guidance, which the velocity has where it is the half of the last step.
      away: the cond that says nothing, for guidance.
      time_sampling: how times of eq. (1) are drawn.
      t: those times, if the caller has drawn them.
      cond: passed to predict.

    Raises:
      ValueError: finest is no power of two.

    >>> still = lambda x_t, t, cond: jnp.zeros_like(x_t)
    >>> shortcut_loss(jax.random.key(0), still, jnp.ones((3, 4)), share=1.0).tolist()
    [0.0, 0.0, 0.0]
    """
    if finest < 2 or finest & (finest - 1):
        raise ValueError(f"finest is {finest}; it must be a power of two, such as 128")
    keys, *others = jax.vmap(lambda k: jax.random.split(k, 4), out_axes=1)(example_keys(key, x_0.shape[0]))
    steps = uniforms(others[0]) < share
    number = 2.0 ** jnp.floor(uniforms(others[1]) * (finest.bit_length() - 1))  # of steps from 1 to 0
    plain = draw(keys, x_0, STRAIGHT, time_sampling, t).t
    t = jnp.where(steps, jnp.ceil(uniforms(others[2]) * number) / number, plain)
    half = jnp.where(steps, 0.5 / number, 0.0)
    drawn = draw(keys, x_0, STRAIGHT, time_sampling, t)
    last = half <= 1.0 / finest

    def u(x: Array, r: Array, t: Array, cond: Any = cond) -> Array:
        return predict(x, t, {**(cond or {}), "r": r})

    def small(x: Array, t: Array) -> Array:
        r = jnp.where(last, t, t - half)
        velocity = u(x, r, t)
        if guidance == 1.0:
            return velocity
        return jnp.where(like(last, x), guidance * velocity + (1.0 - guidance) * u(x, r, t, away), velocity)

    first = small(drawn.x_t, t)
    second = small(drawn.x_t - like(half, x_0) * first, t - half)
    goal = jnp.where(like(steps, x_0), 0.5 * (first + second), drawn.noise - x_0)
    return mean_square(u(drawn.x_t, t - 2.0 * half, t) - jax.lax.stop_gradient(goal))
