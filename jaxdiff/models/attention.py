"""Transformer blocks: attention within a sequence and to another one, feed-forward layers, and a block over pixels.

References:
  Vaswani et al., Attention Is All You Need, 2017.
  LDM:   Rombach, Blattmann, Lorenz, Esser, Ommer, High-Resolution Image Synthesis with Latent Diffusion Models,
         2022, appendix E.2.1: the block over pixels.
  GEGLU: Shazeer, GLU Variants Improve Transformer, 2020, eq. 6.

Norms and softmax are float32 whatever the compute dtype.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.models import ops
from jaxdiff.models.layers import ZEROS, Dense, Image, Norm, fan_average, group_norm

Features = Float[Array, "batch tokens features"]
Others = Float[Array, "batch others width"]
Mask = Bool[Array, "batch others"] | None  # which of the others count; None: all


def layer_norm(x: Features, name: str) -> Features:
    """LayerNorm in float32, back in x's dtype: the submodule `name` of the calling module."""
    layer = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, name=name)
    return layer(x).astype(x.dtype)


def rotated(
    x: Float[Array, "batch tokens heads d"], angles: Float[Any, "tokens half"]
) -> Float[Array, "batch tokens heads d"]:
    """RoPE: features (i, i + d/2) of a token turned by its angle i, in float32.

    The product of two rotated vectors depends on the difference of their angles alone.

    Source: Su et al. 2021 (RoFormer), eq. 15.

    >>> [round(float(y), 3) for y in rotated(jnp.array([[[[1.0, 0.0]]]]), jnp.full((1, 1), jnp.pi / 3)).ravel()]
    [0.5, 0.866]
    """
    cos, sin = (f(angles)[None, :, None].astype(jnp.float32) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def rms_norm(x: Float[Array, "batch *places features"], name: str | None = None) -> Array:
    """RMSNorm in float32 (Zhang, Sennrich 2019), back in x's dtype; with a name, a learned scale is its submodule."""
    return nn.RMSNorm(epsilon=1e-6, use_scale=name is not None, dtype=jnp.float32, name=name)(x).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head attention of every token of x to every token of a context: proj(softmax(q k^T / sqrt(d)) v).

    Attributes:
      heads: a divisor of x's features.
      dtype: compute dtype.
      bias: of query, key and value (proj has one in any case).
      causal: token i attends to tokens 0..i alone.
      zero: start proj at zero.
      qk_norm: RMSNorm of each head's query and key, with a learned scale.
    """

    heads: int
    dtype: Any
    bias: bool = False
    causal: bool = False
    zero: bool = False
    qk_norm: bool = False

    @nn.compact
    def __call__(self, x: Features, context: Others, mask: Mask = None, *, angles: Any = None) -> Features:
        """Attend from x to the context, which may be x itself; angles: of `rotated` queries and keys, or none."""
        batch, tokens, features = x.shape

        def project(name: str, source: Array) -> Array:
            dense = Dense(features, self.bias, dtype=self.dtype, name=name)
            return dense(source).reshape(batch, source.shape[1], self.heads, features // self.heads)

        query, key, value = project("query", x), project("key", context), project("value", context)
        if self.qk_norm:
            norms = (nn.RMSNorm(dtype=jnp.float32, use_fast_variance=False, name=f"{n}_norm") for n in ("query", "key"))
            query, key = (norm(x).astype(value.dtype) for norm, x in zip(norms, (query, key), strict=True))
        if angles is not None:
            query, key = rotated(query, angles), rotated(key, angles)
        seen = None if mask is None else mask[:, None, None, :]
        y = ops.attention(query, key, value, seen, causal=self.causal)
        y = y.reshape(batch, tokens, features)
        init = ZEROS if self.zero else fan_average
        return Dense(features, dtype=self.dtype, kernel_init=init, name="proj")(y)


class CrossBlock(nn.Module):
    """Self-attention, attention to the context, GEGLU feed-forward; each on the norm of x, and added to it.

    Attributes:
      heads: attention heads.
      dtype: compute dtype.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Features, context: Others, mask: Mask = None) -> Features:
        """Apply the block to x under the context."""
        features = x.shape[-1]
        y = layer_norm(x, "norm1")
        x += Attention(self.heads, self.dtype, name="self_attention")(y, y)
        x += Attention(self.heads, self.dtype, name="cross_attention")(layer_norm(x, "norm2"), context, mask)
        y = layer_norm(x, "norm3")
        y = Dense(8 * features, dtype=self.dtype, name="dense1")(y)
        y, gate = jnp.split(y.astype(jnp.float32), 2, axis=-1)
        y *= nn.gelu(gate, approximate=False)
        return x + Dense(features, dtype=self.dtype, name="dense2")(y)


class PixelTransformer(nn.Module):
    """x + proj_out(block(proj_in(norm(x)))) with every pixel as a token; proj_out zero-initialised.

    Whether the projections are written as 1x1 convolutions or as dense layers is the same thing here.

    Attributes:
      heads: attention heads.
      dtype: compute dtype.
      groups: of the norm, whose epsilon is 1e-6; None for those of `group_count`.
    """

    heads: int
    dtype: Any
    groups: int | None

    @nn.compact
    def __call__(self, x: Image, context: Others, mask: Mask = None) -> Image:
        """Apply the block to the pixels of x under the context."""
        batch, h, w, c = x.shape
        y = group_norm(x, "norm", Norm(self.groups, 1e-6)).reshape(batch, h * w, c)
        y = Dense(c, dtype=self.dtype, name="proj_in")(y)
        y = CrossBlock(self.heads, self.dtype, name="block")(y, context, mask)
        y = Dense(c, dtype=self.dtype, kernel_init=ZEROS, name="proj_out")(y)
        return x + y.reshape(x.shape)
