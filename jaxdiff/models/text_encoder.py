"""The text encoder of CLIP, which Stable Diffusion is conditioned on: a causal transformer over tokens.

Reference: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 2.4.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.models.attention import Attention, Features, layer_norm
from jaxdiff.models.layers import Dense

Activation = Literal["quick_gelu", "gelu"]


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x sigmoid(1.702 x), CLIP's approximation of GELU.

    >>> quick_gelu(jnp.array([0.0, 20.0])).tolist()
    [0.0, 20.0]
    """
    return x * jax.nn.sigmoid(1.702 * x)


class TextLayer(nn.Module):
    """Causal self-attention, then two dense layers; each on the norm of x, and added to it.

    Attributes:
      heads: attention heads.
      hidden: features between the dense layers.
      activation: between them.
      dtype: compute dtype.
    """

    heads: int
    hidden: int
    activation: Activation
    dtype: Any

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Apply the layer to x."""
        features = x.shape[-1]
        y = layer_norm(x, "norm1")
        x += Attention(self.heads, self.dtype, bias=True, causal=True, name="attention")(y, y)
        y = layer_norm(x, "norm2")
        y = Dense(self.hidden, dtype=self.dtype, name="dense1")(y)
        y = quick_gelu(y) if self.activation == "quick_gelu" else nn.gelu(y, approximate=False)
        return x + Dense(features, dtype=self.dtype, name="dense2")(y)


class TextEncoder(nn.Module):
    """Tokens to a sequence of features, the norm of the last layer's; the defaults are Stable Diffusion 1 (ViT-L).

    Stable Diffusion 2 takes the last layer but one of OpenCLIP's ViT-H: 23 layers of 1024 features, 16 heads, 4096
    hidden, gelu.

    Attributes:
      vocabulary: number of tokens.
      max_tokens: of a text, its first and last token included.
      features: of a token.
      layers: how many.
      heads: of attention; a divisor of features.
      hidden: features between the dense layers of each layer.
      activation: "quick_gelu" (OpenAI's CLIP) or "gelu" (OpenCLIP).
      dtype: compute dtype; parameters, norms, softmax and the result are float32 in any case.

    >>> net = TextEncoder(10, 7, 8, 1, 2, 16)
    >>> tokens = jnp.zeros((2, 7), jnp.int32)
    >>> net.apply(net.init(jax.random.key(0), tokens), tokens).shape
    (2, 7, 8)
    """

    vocabulary: int = 49408
    max_tokens: int = 77
    features: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: Activation = "quick_gelu"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch n"]) -> Float[Array, "batch n features"]:
        """Embed tokens in 0..vocabulary - 1, at most max_tokens of them."""
        init = nn.initializers.normal(0.02)
        x = nn.Embed(self.vocabulary, self.features, embedding_init=init, name="tokens")(tokens)
        places = nn.Embed(self.max_tokens, self.features, embedding_init=init, name="places")
        x = (x + places(jnp.arange(tokens.shape[1]))[None]).astype(self.dtype)
        for i in range(self.layers):
            x = TextLayer(self.heads, self.hidden, self.activation, self.dtype, name=f"layer_{i}")(x)
        return layer_norm(x, "norm_out").astype(jnp.float32)
