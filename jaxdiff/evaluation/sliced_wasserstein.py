"""Sliced Wasserstein distance: images compared along random directions, where optimal transport is sorting.

    SW_2^2 = mean over unit vectors u of W_2^2(u.x, u.y),   W_2^2 in 1-D = mean_i (x_(i) - y_(i))^2     (1)

Only the projections are kept, a number a sample and direction.

Source: Bonneel et al. 2015, section 3.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


def directions(key: Key[Array, ""], dimensions: int, count: int) -> Float[Array, "dimensions count"]:
    """Random unit vectors, uniform on the sphere.

    >>> bool(jnp.allclose(jnp.sum(directions(jax.random.key(0), 5, 3) ** 2, axis=0), 1.0))
    True
    """
    u = jax.random.normal(key, (dimensions, count))
    return u / jnp.linalg.norm(u, axis=0, keepdims=True)


def project(x: Float[Array, "batch ..."], u: Float[Array, "dimensions count"]) -> Float[Array, "batch count"]:
    """The projections of a batch: all that eq. (1) needs of it."""
    return jnp.matmul(x.reshape(x.shape[0], -1), u, precision=jax.lax.Precision.HIGHEST)


def sliced_wasserstein(x: Float[np.ndarray, "n count"], y: Float[np.ndarray, "m directions"]) -> float:
    """The square root of eq. (1), from the projections of two sets of the same size on the same directions.

    Args:
      x: projections of one set.
      y: of the other.

    Raises:
      ValueError: the sets, or their directions, differ in number.

    >>> x = np.array([[0.0], [1.0]])
    >>> sliced_wasserstein(x, x[::-1] + 3.0)
    3.0
    """
    if x.shape != y.shape:
        raise ValueError(f"projections of shapes {x.shape} and {y.shape}: both sets must have the same size")
    gaps = np.sort(np.asarray(x, np.float64), axis=0) - np.sort(np.asarray(y, np.float64), axis=0)
    return float(np.sqrt(np.mean(gaps**2)))
