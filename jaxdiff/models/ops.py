"""What one backend does otherwise than another: chosen here alone, by the platform that a program is lowered for.

Not by where it is traced: a program for TPUs may be compiled on a machine that has none, and one process may have
devices of two kinds. So all ways are traced, and lowering keeps one (`jax.lax.platform_dependent`). Shapes that no
backend does otherwise have one way only, and their programs are as if this file were not there.

| | CPU | GPU | TPU |
|---|---|---|---|
| 3x3 convolution, float32, many pixels or channels | Winograd's, large gradients XLA's | XLA's | XLA's |
| attention in half precision, no mask, many tokens and heads | XLA's | cuDNN's | XLA's |
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import linear_call
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxdiff.models import winograd

IN_CACHE = 2**19  # numbers of an image batch with which a CPU's cache still holds Winograd's tiles


def conv3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c o"], weights: Float[Array, "36 c o"] | None = None
) -> Float[Array, "b h w o"]:
    """The 3x3 convolution of stride 1 and padding 1.

    Args:
      x: images.
      kernel: of x's dtype.
      weights: the transformed kernel where it is known, see `winograd.prepared`.

    >>> conv3x3(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    h, w, c = x.shape[1:]
    if x.dtype != jnp.float32 or not winograd.pays(c, kernel.shape[-1], min(h, w)):
        return _direct(x, kernel, weights)
    return lax.platform_dependent(x, kernel, weights, cpu=_winograd, default=_direct)


def _direct(x: Array, kernel: Array, weights: Array | None) -> Array:
    del weights
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _winograd(x: Array, kernel: Array, weights: Array | None) -> Array:
    return _transformed(x, kernel) if weights is None else winograd.convolve(x, weights)


@jax.custom_jvp
def _transformed(x: Array, kernel: Array) -> Array:
    return winograd.convolve(x, winograd.transform(kernel))


@_transformed.defjvp
def _transformed_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    if x.size > IN_CACHE:  # the transpose in x of Winograd's then takes two to six times as long as the direct one's
        return _transformed(x, kernel), _direct(dx, kernel, None) + _transformed(x, dkernel)
    return _transformed(x, kernel), _transformed(dx, kernel) + _transformed(x, dkernel)


def dense_product(x: Array, kernel: Array, dimensions: Any, **options: Any) -> Array:
    """x [batch, ..., c] times a kernel [c, o], as a product of two matrices: a `dot_general` for `flax.linen.Dense`.

    Of more axes XLA for CPUs makes the kernel's gradient from a transposed copy, in three to seven times the time. To
    join axes costs nothing: on TPUs, too, where rows lie in eights.

    >>> dense_product(jnp.ones((2, 8, 4)), jnp.ones((4, 5)), (((2,), (0,)), ((), ()))).shape
    (2, 8, 5)
    """
    if x.ndim == 2 or math.prod(x.shape[1:-1]) % 8:
        return lax.dot_general(x, kernel, dimensions, **options)
    product = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


def attention(
    query: Float[Array, "b tokens heads d"],
    key: Float[Array, "b others heads d"],
    value: Float[Array, "b others heads d"],
    mask: Bool[Array, "b #heads #tokens others"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "b tokens heads d"]:
    """softmax(query key^T / sqrt(d)) value, the softmax in float32.

    Args:
      query: of every token.
      key: of what is attended to.
      value: likewise.
      mask: what counts; None: all.
      causal: token i attends to 0..i alone.
    """
    if mask is None and not causal and _suits_cudnn(query, key) and jax.default_backend() == "gpu":
        return checkpoint_name(_fused(query, key, value), "attention")  # a machine without one cannot even trace it
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)


def _suits_cudnn(query: Array, key: Array) -> bool:
    """Whether cuDNN has such attention, and is quicker: from some 2^25 products of queries and keys on an H200."""
    batch, tokens, heads, d = query.shape
    fits = query.dtype in (jnp.bfloat16, jnp.float16) and d <= 128 and d % 8 == tokens % 2 == key.shape[1] % 2 == 0
    return fits and batch * heads * tokens * key.shape[1] >= 2**25


_xla, _cudnn = (functools.partial(jax.nn.dot_product_attention, implementation=name) for name in ("xla", "cudnn"))


@jax.custom_jvp
def _fused(query: Array, key: Array, value: Array) -> Array:
    """Attention by cuDNN on GPUs of NVIDIA, forward and backward; its own derivative knows no forward mode."""
    return lax.platform_dependent(query, key, value, cuda=_cudnn, default=_xla)


@_fused.defjvp
def _fused_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    flat, unravel = ravel_pytree(tangents)  # one array: linear_call's transpose takes none that is constant

    def forward(primals, flat):
        return jax.jvp(_xla, primals, unravel(flat))[1]

    def backward(primals, cotangent):
        def pull(implementation):
            return lambda *primals: jax.vjp(implementation, *primals)[1](cotangent)

        return ravel_pytree(lax.platform_dependent(*primals, cuda=pull(_cudnn), default=pull(_xla)))[0]

    return _fused(*primals), linear_call(forward, backward, primals, flat)
