"""The hourglass: convolutions where there are many pixels, attention where there are few; for small machines.

The image is cut into patches. Each level but the last has convolution blocks on the way down and on the way up; the
last has transformer blocks, which attend to the text where there is one. Between levels 2x2 squares are merged into
one pixel by a dense layer, and split again; what the way down leaves is added on the way up.

With e the embedding of time, class, pooled text and vectors, (a, b) = W silu(e), RMS(x; e) = RMSNorm(x) (1 + b) + a,

    convolution block   x <- x + conv(act(conv(RMS(x; e))))                                         (1)
    transformer block   x <- x + g_1 attention(RMS(x; e))                                           (2)
                        x <- x + cross_attention(RMSNorm(x), text)                                  (3)
                        x <- x + g_2 mlp(RMS(x; e))                                                 (4)

where act(x) = max(x, 0)^2 and queries and keys are normalised. The last layer of (1), W, the projection of (3) and the
network's last layer start at zero, so that each block is at first the identity, and a new network predicts zero.

References:
  Hourglass:    Nawrot et al., Hierarchical Transformers Are More Efficient Language Models, 2021; Crowson et al.,
                Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion Transformers, 2024.
  Squared ReLU: So et al., Primer, 2021, section 4.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.models import conditions
from jaxdiff.models.attention import Attention, Features, Mask, Others, rms_norm
from jaxdiff.models.conditions import Cond
from jaxdiff.models.dit import positions
from jaxdiff.models.layers import (
    ZEROS,
    Dense,
    Dropout,
    Embedding,
    Image,
    Keys,
    conv3x3,
    depth_to_space,
    space_to_depth,
)
from jaxdiff.models.network import NetworkOptions, check_common, checked_input


@dataclasses.dataclass(frozen=True)
class Hourglass(NetworkOptions):
    """Convolutions outside, attention inside, see jaxdiff.models.hourglass."""

    patch: int = 2
    """Side of the squares of pixels that the first level sees as one pixel each."""
    widths: tuple[int, ...] = (64, 128, 256)
    """Features of each level, multiples of 4; each has half the resolution of the one before, the last attends."""
    blocks: tuple[int, ...] = (1, 1, 4)
    """Blocks of each level: convolutions on the way down and as many on the way up; of the last, transformer blocks."""
    num_heads: int = 4
    """Attention heads, a divisor of the last width."""
    mlp_ratio: int = 4
    """Features inside a transformer block's MLP, as a multiple of the width."""
    dropout: float = 0.0
    """Dropout rate of what attention and MLP add."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What to compute in; parameters, norms, softmax, embeddings and output are float32."""

    def check(self, shape: tuple[int, ...], cond: Mapping[str, Any] | Iterable[str] = ()) -> None:
        """Refuse options that do not fit each other, the images or the conditions.

        >>> Hourglass().check((28, 28, 3))
        Traceback (most recent call last):
        ...
        ValueError: images of 28x28 do not fit patches of 2 and 3 widths; sides must be multiples of 8
        """
        ranges = {"patch": (1, 64), "num_heads": (1, 1024), "mlp_ratio": (1, 64), "num_classes": (0, 1_000_000)}
        check_common(self, Hourglass, shape, **ranges)
        if not 1 <= len(self.widths) <= 10 or any(w % 4 or not 4 <= w <= 8192 for w in self.widths):
            raise ValueError(f"widths is {self.widths}; it must be 1 to 10 multiples of 4, at most 8192")
        if len(self.blocks) != len(self.widths) or not all(1 <= n <= 100 for n in self.blocks):
            raise ValueError(f"blocks is {self.blocks}; it must be one number in 1..100 for each of the widths")
        if self.widths[-1] % self.num_heads:
            raise ValueError(f"num_heads is {self.num_heads}; it must divide the last width, {self.widths[-1]}")
        unit = self.patch * 2 ** (len(self.widths) - 1)
        if shape[0] % unit or shape[1] % unit:
            raise ValueError(
                f"images of {shape[0]}x{shape[1]} do not fit patches of {self.patch} and {len(self.widths)} widths; "
                f"sides must be multiples of {unit}"
            )
        conditions.check_names(cond, self.num_classes)

    def module(self, out_channels: int) -> "HourglassModule":
        """The network of these options."""
        return HourglassModule(out_channels, self)


def squared_relu(x: Array) -> Array:
    """max(x, 0)^2."""
    return jnp.square(nn.relu(x))


class ConvBlock(nn.Module):
    """Equation (1); without an embedding nothing is modulated.

    Attributes:
      dtype: compute dtype.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: Image, emb: Float[Array, "batch features"] | None) -> Image:
        """Apply the block to x under silu(e)."""
        width, shift, scale = x.shape[-1], 0.0, 0.0
        if emb is not None:
            each = Dense(2 * width, kernel_init=ZEROS, name="modulation")(emb)[:, None, None]
            shift, scale = jnp.split(each, 2, -1)
        y = (rms_norm(x) * (1 + scale) + shift).astype(self.dtype)
        y = squared_relu(conv3x3(width, self.dtype, "conv1")(y)).astype(self.dtype)
        return (x + conv3x3(width, self.dtype, "conv2", zero=True)(y)).astype(x.dtype)


class Transformer(nn.Module):
    """Equations (2) to (4); without an embedding nothing is modulated and the branches are added as they are.

    Attributes:
      heads: of attention.
      ratio: of the MLP's features to x's.
      dropout: rate.
      dtype: compute dtype.
    """

    heads: int
    ratio: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Features, emb: Array | None, text: Others | None = None, mask: Mask = None, keys: Keys = None
    ) -> Features:
        """Apply the block to x under silu(e), and the text, if there are any; without a text the mask is x's own."""
        width, dtype = x.shape[-1], self.dtype
        shift1, scale1, gate1, shift2, scale2, gate2 = (0.0, 0.0, 1.0) * 2
        if emb is not None:
            each = Dense(6 * width, kernel_init=ZEROS, name="modulation")(emb)[:, None]
            shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(each, 6, axis=-1)
        y = (rms_norm(x) * (1 + scale1) + shift1).astype(dtype)
        y = Attention(self.heads, dtype, qk_norm=True, name="attention")(y, y, mask if text is None else None)
        x = (x + gate1 * Dropout(self.dropout, name="dropout1")(y, keys)).astype(x.dtype)
        if text is not None:
            cross = Attention(self.heads, dtype, zero=True, qk_norm=True, name="cross_attention")
            x += cross(rms_norm(x), text, mask)
        y = (rms_norm(x) * (1 + scale2) + shift2).astype(dtype)
        y = squared_relu(Dense(self.ratio * width, dtype=dtype, name="dense1")(y))
        y = Dense(width, dtype=dtype, name="dense2")(y)
        return (x + gate2 * Dropout(self.dropout, name="dropout2")(y, keys)).astype(x.dtype)


class HourglassModule(nn.Module):
    """The hourglass, from noisy images and times to an image-shaped prediction.

    Attributes:
      out_channels: channels of the prediction (twice the image's for a learned variance).
      options: see `Hourglass`.

    >>> import jax
    >>> net = Hourglass(widths=(8, 16), blocks=(1, 1), num_heads=2).module(3)
    >>> x, t = jnp.zeros((2, 4, 8, 3)), jnp.zeros(2)
    >>> params = net.init(jax.random.key(0), x, t)["params"]
    >>> net.apply({"params": params}, x, t).shape
    (2, 4, 8, 3)
    """

    out_channels: int
    options: Hourglass

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        t: Float[Array, " batch"],
        cond: Cond = None,
        *,
        dropout_keys: Keys = None,
    ) -> Float[Array, "batch h w out_channels"]:
        """Predict, see `NetworkOptions.module`."""
        options, dtype = self.options, self.options.dtype
        made_for = lambda params: params["proj_in"]["kernel"].shape[0] // options.patch**2  # noqa: E731
        x, cond = checked_input(self, options, x, t, cond, made_for)
        width = options.widths[-1]
        emb = Embedding(256, options.num_classes, 0, width, 0.02, name="embedding")(t, cond)
        emb = nn.silu(emb)
        conv = nn.remat(ConvBlock) if options.remat else ConvBlock
        transformer = nn.remat(Transformer) if options.remat else Transformer

        def dense(features: int, name: str) -> nn.Dense:
            return Dense(features, dtype=dtype, name=name)

        y = dense(options.widths[0], "proj_in")(space_to_depth(x, options.patch))
        skips = []
        for i, count in enumerate(options.blocks[:-1]):
            for j in range(count):
                y = conv(dtype, name=f"down_{i}_block_{j}")(y, emb)
            skips.append(y)
            y = dense(options.widths[i + 1], f"merge_{i}")(space_to_depth(y, 2))

        batch, h, w, _ = y.shape
        tokens = y.reshape(batch, h * w, width)
        tokens += positions(h, w, width)[None].astype(tokens.dtype)
        given = (emb, cond.get("text"), cond.get("mask"), dropout_keys if options.dropout else None)
        for j in range(options.blocks[-1]):
            block = transformer(options.num_heads, options.mlp_ratio, options.dropout, dtype, name=f"transformer_{j}")
            tokens = block(tokens, *given)
        y = tokens.reshape(y.shape)

        for i in reversed(range(len(skips))):
            y = skips[i] + depth_to_space(dense(4 * options.widths[i], f"split_{i}")(y), 2)
            for j in range(options.blocks[i]):
                y = conv(dtype, name=f"up_{i}_block_{j}")(y, emb)
        y = rms_norm(y.astype(jnp.float32), "norm_out")
        y = Dense(options.patch**2 * self.out_channels, kernel_init=ZEROS, name="proj_out")(y)
        return depth_to_space(y, options.patch)
