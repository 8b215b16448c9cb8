"""3x3 convolutions by Winograd's minimal filtering, for CPUs: 2.25 or 4 times fewer products, as one batched matmul.

With an image cut into overlapping tiles d of m + 2 pixels a side, m of them new, a kernel g, and constant A, B, G,

    (1)  y = A^T [(G g G^T) * (B^T d B)] A        * elementwise, summed over input channels: F(m x m, 3 x 3)

is the m x m block of the convolution, in (m + 2)^2 products for 9 m^2. Transforms are additions, whose cost is repaid
where there are many channels and tiles. An XLA for TPUs or GPUs has better ways; the switch is `UNet.winograd`.

Source: Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# m: B^T, G, A^T of F(m x m, 3 x 3). Rounding grows with m: 2e-7 and 2e-6 of the largest output in float32.
_TRANSFORMS = {
    2: (
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
        ((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    4: (
        (
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        (
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
}


def conv_general_dilated(lhs: Array, rhs: Array, window_strides: Sequence[int], padding: Any, **options: Any) -> Array:
    """`lax.conv_general_dilated` in NHWC, by Winograd where that is quicker on a CPU: what `nn.Conv` is given.

    3x3 kernels of stride 1 and padding 1 on float32 images of 16 pixels a side and more; anything else is left to lax.
    """
    h, w, c_in = lhs.shape[1:]
    plain = tuple(window_strides) == (1, 1) and [tuple(pad) for pad in padding] == [(1, 1), (1, 1)]
    large = min(h, w) >= 16 and min(c_in, rhs.shape[-1]) >= 32
    if not plain or rhs.shape[:2] != (3, 3) or not large or lhs.dtype != jnp.float32:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    return conv3x3(lhs, rhs, 4 if min(h, w) >= 32 and c_in >= 256 else 2)


def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c o"], m: int) -> Float[Array, "b h w o"]:
    """The 3x3 convolution of stride 1 and padding 1 of images of any size, eq. (1).

    Args:
      x: images.
      kernel: taps, input and output channels.
      m: 2 or 4, new pixels a tile and side.

    >>> x, kernel = jnp.arange(25.0).reshape(1, 5, 5, 1), jnp.ones((3, 3, 1, 1))
    >>> conv3x3(x, kernel, 2)[0, 2, 2, 0].item()  # the mean of the nine is 12
    108.0
    """
    b_t, g, a_t = _TRANSFORMS[m]
    batch, h, w, c = x.shape
    rows, columns, size, o = -(-h // m), -(-w // m), m + 2, kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), (1, rows * m - h + 1), (1, columns * m - w + 1), (0, 0)))

    def tile_lines(x: Array, axis: int, count: int) -> list[Array]:
        """Line i of every tile, i = 0 .. m + 1."""
        return [lax.slice_in_dim(x, i, i + (count - 1) * m + 1, m, axis) for i in range(size)]

    lines = _combine(b_t, tile_lines(x, 1, rows))
    d = jnp.stack([v for line in lines for v in _combine(b_t, tile_lines(line, 2, columns))])
    g = jnp.asarray(g, kernel.dtype)
    weights = jnp.einsum("ia,jb,abco->ijco", g, g, kernel).reshape(size * size, c, o)
    products = jnp.einsum("kpc,kco->kpo", d.reshape(size * size, batch * rows * columns, c), weights)
    lines = _combine(a_t, list(products.reshape(size, size, batch, rows, columns, o)))
    blocks = [jnp.stack(_combine(a_t, list(line)), axis=3) for line in lines]
    return jnp.stack(blocks, axis=2).reshape(batch, rows * m, columns * m, o)[:, :h, :w]


def _combine(matrix: Sequence[Sequence[float]], parts: Sequence[jax.Array]) -> list[jax.Array]:
    """matrix @ parts, as additions: nothing is spent on its zeros and ones."""

    def weigh(row: Sequence[float]) -> list[jax.Array]:
        return [part if factor == 1 else factor * part for factor, part in zip(row, parts, strict=True) if factor]

    return [functools.reduce(jnp.add, weigh(row)) for row in matrix]
