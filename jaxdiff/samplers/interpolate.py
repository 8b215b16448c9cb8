"""Interpolation between seeds: noise on the way from one x_T to another."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def slerp(a: Float[Array, "batch *shape"], b: Float[Array, "batch *shape"], fraction: float | jax.Array) -> jax.Array:
    """Spherical interpolation: sin((1 - f) w)/sin(w) a + sin(f w)/sin(w) b, w the angle between a and b.

    Noise in high dimensions lies near a sphere, which this follows; a straight line would leave it for the inside,
    and the samples lose contrast. Parallel a and b are interpolated on a line.

    Args:
      a: noise [batch, ...].
      b: noise of the same shape.
      fraction: f, 0 at a and 1 at b; a scalar or [batch].

    Source: Song et al. 2021 (DDIM), eq. 67.

    >>> halfway = slerp(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]]), 0.5)
    >>> round(float(jnp.linalg.norm(halfway)), 5)
    2.0
    """
    axes = tuple(range(1, a.ndim))
    fraction = jnp.asarray(fraction)
    f = jnp.broadcast_to(fraction.reshape((-1,) + (1,) * len(axes)), (len(a),) + (1,) * len(axes))

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))

    cosine = jnp.sum(a * b, axis=axes, keepdims=True) / (norm(a) * norm(b))
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    curved = jnp.sin(angle) > 1e-4
    safe = jnp.where(curved, angle, 1.0)
    weight_a = jnp.where(curved, jnp.sin((1.0 - f) * safe) / jnp.sin(safe), 1.0 - f)
    weight_b = jnp.where(curved, jnp.sin(f * safe) / jnp.sin(safe), f)
    return weight_a * a + weight_b * b
