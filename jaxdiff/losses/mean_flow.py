"""The MeanFlow loss: a network of two times whose output is the mean velocity between them, for sampling in one step.

With x_t = (1 - t) x_0 + t noise and v = noise - x_0, the mean velocity of the flow from t back to r <= t is

    u(x_t, r, t) = 1/(t - r) integral from r to t of v(x_s, s) ds = (x_t - x_r)/(t - r)                         (1)
    u = v - (t - r) d/dt u(x_t, r, t),   d/dt = v d/dx + d/dt along the flow                                    (2)
    loss = |u_network - stop_gradient(v - (t - r) (v d/dx + d/dt) u_network)|^2                                  (3)

(2) is (1) differentiated in t. The derivative is one `jax.jvp` with the tangents v, 0, 1 for x_t, r, t. At r = t the
loss is that of flow matching. With v of the example in place of the flow's, (3) has the same expected gradient: u is
where it vanishes, and there it has its floor, on N(m, s^2) data s^2 v_r/v_t^2 with v_t = (1 - t)^2 s^2 + t^2.

Guidance goes inside: v is replaced by w v + (1 - w) u(x_t, t, t) without the condition, so that one evaluation a step
is guided by w.

Sources: Geng et al. 2025 (MeanFlow), eq. 6, 10, 11; guidance: eq. 19 with kappa = 0; the weight: section 4.3.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.keys import example_keys
from jaxdiff.losses.denoising import draw
from jaxdiff.losses.time_sampling import TimeSampling, uniform, uniforms
from jaxdiff.schedules import flow

STRAIGHT = flow()
"""alpha = 1 - t, sigma = t."""


def mean_flow_loss(
    key: jax.Array,
    predict: Callable[..., jax.Array],
    x_0: Float[Array, "batch *shape"],
    *,
    equal: float = 0.75,
    power: float = 1.0,
    guidance: float = 1.0,
    away: Any = None,
    time_sampling: TimeSampling = uniform,
    t: Float[Array, " batch"] | None = None,
    r: Float[Array, " batch"] | None = None,
    cond: Any = None,
) -> Float[Array, " batch"]:
    """Eq. (3) for each example at two random times r <= t, over (itself + 1e-3)^power held constant.

    Args:
      key: one key, or one per example [batch].
      predict: (x_t, t [batch], cond with "r" [batch]) -> u, of x_t's shape; differentiated forward.
      x_0: data [batch, ...], usually in [-1, 1].
      equal: the share of examples with r = t.
      power: of the adaptive weight; 0 is the square itself, summed over an example.
      guidance: w, the scale of classifier-free guidance that u learns; 1 is none.
      away: the cond that says nothing, for guidance. An example whose own cond is this learns plain v.
      time_sampling: how both times are drawn.
      t: the later times, if the caller has drawn them.
      r: the earlier times, likewise.
      cond: passed to predict.

    Source: Geng et al. 2025 (MeanFlow), algorithm 1.

    >>> still = lambda x_t, t, cond: jnp.zeros_like(x_t)
    >>> mean_flow_loss(jax.random.key(0), still, jnp.ones((3, 4)), power=0.0).shape
    (3,)
    """
    split = jax.vmap(lambda k: jax.random.split(k, 4), out_axes=1)(example_keys(key, x_0.shape[0]))
    if t is None:
        t = time_sampling(uniforms(split[1]), STRAIGHT)
    if r is None:
        other = jnp.where(uniforms(split[3]) < equal, t, time_sampling(uniforms(split[2]), STRAIGHT))
        r, t = jnp.minimum(t, other), jnp.maximum(t, other)
    x_t, noise = (drawn := draw(split[0], x_0, STRAIGHT, time_sampling, t)).x_t, drawn.noise

    def u(x_t: Array, r: Array, t: Array, cond: Any = cond) -> Array:
        return predict(x_t, t, {**(cond or {}), "r": r})

    v = noise - x_0
    if guidance != 1.0:
        pairs = zip(*map(jax.tree.leaves, (cond, away)), strict=True)
        hidden = functools.reduce(jnp.logical_and, [jnp.reshape(a == b, (len(t), -1)).all(axis=1) for a, b in pairs])
        w = like(jnp.where(hidden, 1.0, guidance), v)
        v = jax.lax.stop_gradient(w * v + (1.0 - w) * u(x_t, t, t, away))
    prediction, slope = jax.jvp(u, (x_t, r, t), (v, jnp.zeros_like(r), jnp.ones_like(t)))
    goal = jax.lax.stop_gradient(v - like(t - r, v) * slope)
    error = jnp.sum(jnp.square(prediction - goal), axis=tuple(range(1, x_0.ndim)))
    return error / jax.lax.stop_gradient(error + 1e-3) ** power


def like(a: Array, x: Array) -> Array:
    """[batch] -> broadcasting against x, in its type."""
    return a.reshape(a.shape + (1,) * (x.ndim - 1)).astype(x.dtype)
