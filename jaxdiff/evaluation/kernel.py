"""Kernel distance: the squared maximum mean discrepancy under k(x, y) = (x.y/d + 1)^3; of Inception's features, KID.

    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)     (1)

is unbiased at any size, which FID is not. Computed on disjoint blocks of both sets and averaged, it needs the features
of one block at a time, and the blocks, being independent, give an honest error. (The usual 100 random subsets overlap:
their spread says little of the error.) Few blocks have few degrees of freedom: their standard error is multiplied by
Student's 97.5 % quantile over the normal one (6.5 with two blocks, 1.15 with ten), so that 1.96 of it cover 95 %.

Sources: Binkowski et al. 2018 (KID), section 4; Zaremba et al. 2013 (B-test), eq. 5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import ndtri, stdtrit


class KernelDistance(NamedTuple):
    """The mean over blocks of eq. (1), its standard error (for few blocks too), and how many features of each set."""

    value: float
    standard_error: float
    n: int


def block_mmd(x: Float[Array, "m d"], y: Float[Array, "m d"]) -> Float[Array, ""]:
    """Eq. (1) of one block, m >= 2; float32, so to about 1e-6 times the mean of k.

    >>> float(block_mmd(jnp.zeros((3, 2)), jnp.ones((3, 2))))  # 1 + 8 - 2
    7.0
    """
    m, d = x.shape

    def kernel(a: Float[Array, "m d"], b: Float[Array, "m d"]) -> Float[Array, "m m"]:
        return (jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST) / d + 1.0) ** 3

    k_xx, k_yy, k_xy = kernel(x, x), kernel(y, y), kernel(x, y)
    # every term with i != j at once: the large parts cancel pair by pair, not between three means
    pairs = k_xx + k_yy - k_xy - k_xy.T
    off = jnp.sum(jnp.where(jnp.eye(m, dtype=bool), 0.0, pairs)) / (m * (m - 1))
    return off + _cross_correction(k_xy)


def _cross_correction(k_xy: Float[Array, "m m"]) -> Float[Array, ""]:
    """2 (mean over i != j - mean over all) of k(x_i, y_j): eq. (1) has all pairs in its last mean."""
    m = k_xy.shape[0]
    total, diagonal = jnp.sum(k_xy), jnp.trace(k_xy)
    return 2.0 * ((total - diagonal) / (m * (m - 1)) - total / m**2)


def kernel_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n_y d"], block: int = 1000) -> KernelDistance:
    """Eq. (1), averaged over blocks; what does not fill a block is left out.

    Args:
      x: features of one set, in random order (class by class is not).
      y: of the other; as many blocks are used as both fill.
      block: rows a block.

    Raises:
      ValueError: fewer than 2 blocks, which give no standard error.
    """
    blocks = min(len(x), len(y)) // block
    if block < 2 or blocks < 2:
        raise ValueError(f"{len(x)} and {len(y)} features do not fill 2 blocks of {block}; use more, or smaller blocks")
    parts = [slice(i * block, (i + 1) * block) for i in range(blocks)]
    values = np.array([float(_block_mmd(x[part], y[part])) for part in parts])
    few = stdtrit(blocks - 1, 0.975) / ndtri(0.975)
    return KernelDistance(float(values.mean()), float(few * values.std(ddof=1) / np.sqrt(blocks)), blocks * block)


_block_mmd = jax.jit(block_mmd)
