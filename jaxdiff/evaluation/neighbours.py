"""Precision, recall, density and coverage: fidelity and diversity apart, from balls around features.

B(x) is the ball around x that reaches to its k-th nearest neighbour in its own set. With R real and F generated
features:

    precision = share of F in some B(R_i)         recall   = share of R in some B(F_j)
    density   = mean over F of #{i: f in B(R_i)}/k   coverage = share of R whose B(R_i) holds some f

Sources: Kynkaanniemi et al. 2019, eq. 1-2 (k = 3); Naeem et al. 2020, eq. 3 and 5 (k = 5).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_ROWS = 500  # distances are computed so many rows at a time


class Neighbours(NamedTuple):
    """The four, of the same real and generated features."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbours(
    real: Float[np.ndarray, "n d"],
    generated: Float[np.ndarray, "m d"],
    k_precision: int = 3,
    k_density: int = 5,
) -> Neighbours:
    """All four, exactly: every distance is computed, a block of rows at a time, in O(rows n) memory.

    Both sets are held as features. They are centred on the real mean first, which changes no distance and saves
    float32 from cancellation.

    Args:
      real: features of real images.
      generated: of generated ones; use n = m, since all four depend on both.
      k_precision: neighbours for precision and recall.
      k_density: neighbours for density and coverage.

    Raises:
      ValueError: a set has no k neighbours.

    >>> x = np.arange(12.0)[:, None]
    >>> neighbours(x, x + 100.0)
    Neighbours(precision=0.0, recall=0.0, density=0.0, coverage=0.0)
    """
    k = max(k_precision, k_density)
    if min(k_precision, k_density) < 1 or min(len(real), len(generated)) <= k:
        raise ValueError(f"{min(len(real), len(generated))} features have no {k} neighbours each; use more, or k >= 1")
    centre = real.mean(axis=0, dtype=np.float64)
    r, f = (jnp.asarray(x - centre[None], jnp.float32) for x in (real, generated))
    radii, fake_radii = _radii(r, k), _radii(f, k)
    # of each generated feature: in how many real balls; of each real one: in how many fake balls
    inside = np.asarray(_count(f, r, radii[:, k_precision - 1]))
    dense = np.asarray(_count(f, r, radii[:, k_density - 1]))
    covered = np.asarray(_count(r, f, fake_radii[:, k_precision - 1]))
    near = np.asarray(_nearest(r, f) <= radii[:, k_density - 1])
    return Neighbours(
        float(np.mean(inside > 0)), float(np.mean(covered > 0)), float(dense.mean() / k_density), float(near.mean())
    )


def _by_rows(function: Callable[[jax.Array], jax.Array], x: Float[Array, "n d"]) -> Array:
    """function of blocks of rows of x, one after another; the last block is padded with its first row and cut."""
    n = x.shape[0]
    blocks = -(-n // _ROWS)
    padded = jnp.pad(x, ((0, blocks * _ROWS - n), (0, 0)), mode="edge")
    out = jax.lax.map(function, padded.reshape(blocks, _ROWS, -1))
    return out.reshape(blocks * _ROWS, *out.shape[2:])[:n]


def _squares(rows: Float[Array, "rows d"], x: Float[Array, "n d"]) -> Float[Array, "rows n"]:
    product = jnp.matmul(rows, x.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(rows**2, 1)[:, None] - 2.0 * product + jnp.sum(x**2, 1)[None], 0.0)


@jax.jit
def _nearest(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, " n"]:
    """Squared distance of each x to the nearest y."""
    return _by_rows(lambda rows: jnp.min(_squares(rows, y), axis=1), x)


@jax.jit
def _count(x: Float[Array, "n d"], y: Float[Array, "m d"], radii: Float[Array, " m"]) -> Array:
    """In how many of the balls around y each x lies; radii squared."""
    return _by_rows(lambda rows: jnp.sum(_squares(rows, y) <= radii[None], axis=1), x)


def _radii(x: Float[Array, "n d"], k: int) -> Float[Array, "n k"]:
    """Squared distances to the 1st to k-th nearest neighbour, itself aside."""

    def nearest(rows: Float[Array, "rows d"]) -> Float[Array, "rows k"]:
        return -jax.lax.top_k(-_squares(rows, x), k + 1)[0][:, 1:]  # the nearest is itself

    return jax.jit(lambda x: _by_rows(nearest, x))(x)
