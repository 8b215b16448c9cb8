"""3x3 convolutions by Winograd's minimal filtering, for CPUs: 4 times fewer products, as one batched matmul.

With an image cut into overlapping tiles d of 6x6 pixels, 4x4 of them new, a kernel g, and constant A, B, G,

    (1)  y = A^T [(G g G^T) * (B^T d B)] A        * elementwise, summed over input channels: F(4x4, 3x3)

is the 4x4 block of the convolution, in 36 products for 144. The other transforms are additions, whose cost is repaid
where there are many channels and tiles. `ops` says where that is.

Source: Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks, section 4.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

NEW, TILE = 4, 6  # pixels a side of a tile: new ones, and all
LEAST_CHANNELS = {16: 32, 4: 128}  # by the least side of an image, from which it is quicker than XLA on CPUs

_B_T = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_A_T = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def prepared(params: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a network with its kernels transformed, to be made once for many calls of `apply`.

    Inside a `scan` a kernel would be transformed at every step: XLA for CPUs does not move it out. To be called in the
    program that uses them: what no layer asks for is left out of it, which is all of it but on CPUs.

    Args:
      params: of any network; transformed are 3x3 kernels of so many channels that it pays on large images.

    >>> variables = prepared({name: {"kernel": jnp.ones((3, 3, c, 32))} for name, c in (("conv1", 3), ("conv2", 32))})
    >>> {name: leaf["weights"].shape for name, leaf in variables["winograd"].items()}
    {'conv2': (36, 32, 32)}
    """

    def weights(tree: Mapping[str, Any]) -> dict[str, Any]:
        inner = {name: weights(sub) for name, sub in tree.items() if isinstance(sub, Mapping)}
        transformed: dict[str, Any] = {name: sub for name, sub in inner.items() if sub}
        shape = getattr(tree.get("kernel"), "shape", ())
        if len(shape) == 4 and shape[:2] == (3, 3) and pays(*shape[2:], side=max(LEAST_CHANNELS)):
            transformed["weights"] = transform(tree["kernel"])
        return transformed

    transformed = weights(params)
    return {"params": params, "winograd": transformed} if transformed else {"params": params}


def pays(c_in: int, c_out: int, side: int) -> bool:
    """Whether there are pixels and channels enough for it to be quicker than XLA's convolution on a CPU."""
    return any(side >= least and min(c_in, c_out) >= channels for least, channels in LEAST_CHANNELS.items())


def transform(kernel: Float[Array, "3 3 c o"]) -> Float[Array, "36 c o"]:
    """G g G^T for every pair of channels: one product with the Kronecker square of G, 20 times as fast as two."""
    c, o = kernel.shape[2:]
    g = jnp.asarray(np.kron(_G, _G), kernel.dtype)
    return (g @ kernel.reshape(9, c * o)).reshape(TILE * TILE, c, o)


@jax.jit  # inlined by XLA; traced once for all layers of a shape
def convolve(x: Float[Array, "b h w c"], weights: Float[Array, "36 c o"]) -> Float[Array, "b h w o"]:
    """The 3x3 convolution of stride 1 and padding 1 of images of any size, eq. (1).

    Args:
      x: images.
      weights: the transformed kernel.

    >>> x, kernel = jnp.arange(25.0).reshape(1, 5, 5, 1), jnp.ones((3, 3, 1, 1))
    >>> round(convolve(x, transform(kernel))[0, 2, 2, 0].item(), 3)  # the mean of the nine is 12
    108.0
    """
    batch, h, w, c = x.shape
    rows, columns, o = -(-h // NEW), -(-w // NEW), weights.shape[-1]
    x = jnp.pad(x, ((0, 0), (1, rows * NEW - h + 1), (1, columns * NEW - w + 1), (0, 0)))

    def tile_lines(x: Array, axis: int, count: int) -> list[Array]:
        """Line i of every tile, i = 0 .. 5."""
        return [lax.slice_in_dim(x, i, i + (count - 1) * NEW + 1, NEW, axis) for i in range(TILE)]

    lines = _combine(_B_T, tile_lines(x, 1, rows))
    d = jnp.stack([v for line in lines for v in _combine(_B_T, tile_lines(line, 2, columns))])
    products = jnp.einsum("kpc,kco->kpo", d.reshape(TILE * TILE, batch * rows * columns, c), weights)
    lines = _combine(_A_T, list(products.reshape(TILE, TILE, batch, rows, columns, o)))
    blocks = [jnp.stack(_combine(_A_T, list(line)), axis=3) for line in lines]
    return jnp.stack(blocks, axis=2).reshape(batch, rows * NEW, columns * NEW, o)[:, :h, :w]


def _combine(matrix: Sequence[Sequence[float]], parts: Sequence[jax.Array]) -> list[jax.Array]:
    """matrix @ parts, as additions: nothing is spent on its zeros and ones."""

    def weigh(row: Sequence[float]) -> list[jax.Array]:
        return [part if factor == 1 else factor * part for factor, part in zip(row, parts, strict=True) if factor]

    return [functools.reduce(jnp.add, weigh(row)) for row in matrix]
