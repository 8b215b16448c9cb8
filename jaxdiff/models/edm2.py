"""The magnitude-preserving U-Net of EDM2: no norms of groups, no biases; layers that keep activations at magnitude 1.

Source: Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and Improving the Training Dynamics of Diffusion
Models, 2024 (EDM2), configuration G; equations below are of its appendix B.

Every weight is used as w/|w|: each output is a sum over inputs with weights of unit norm, so that inputs that are
uncorrelated and of variance 1 give outputs of variance 1. `EDM2.project`, applied after each update, also keeps
what is stored at that norm ("forced weight normalisation"): otherwise it grows, and the rate falls without being asked.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.models import conditions, ops
from jaxdiff.models.conditions import Cond
from jaxdiff.models.layers import ZEROS, Dropout, Image, Keys, downsample_average, upsample_nearest
from jaxdiff.models.network import NetworkOptions, check_common, checked_input

RES_BALANCE, LABEL_BALANCE = 0.3, 0.5  # the share of the second in a sum
CLIP = 256.0  # of activations, for half precision


@dataclasses.dataclass(frozen=True)
class EDM2(NetworkOptions):
    """The magnitude-preserving U-Net, see jaxdiff.models.edm2."""

    channels: int = 192
    """Channels at full resolution."""
    channel_mults: tuple[int, ...] = (1, 2, 3, 4)
    """Their multiples, a level each; each halves the resolution."""
    blocks: int = 3
    """Residual blocks a level."""
    attention_resolutions: tuple[int, ...] = (16, 8)
    """Heights of images at which pixels attend to each other."""
    head_dim: int = 64
    """Channels an attention head; a level narrower than that has one head."""
    dropout: float = 0.0
    """Dropout rate in the residual blocks."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What to compute in; parameters, embeddings and output are float32."""

    def check(self, shape: tuple[int, ...], cond: Mapping[str, Any] | Iterable[str] = ()) -> None:
        """Refuse options that do not fit each other, the images or the conditions.

        >>> EDM2(channel_mults=(1, 2)).check((6, 5, 3))
        Traceback (most recent call last):
        ...
        ValueError: channel_mults has 2 levels; they need sides that are multiples of 2, and images are 6x5
        """
        if min(self.channels, self.blocks, self.head_dim, *self.channel_mults, 1) < 1 or not self.channel_mults:
            raise ValueError("channels, channel_mults, blocks and head_dim must be positive")
        check_common(self, EDM2, shape)
        levels = len(self.channel_mults)
        if any(side % 2 ** (levels - 1) for side in shape[:2]):
            raise ValueError(
                f"channel_mults has {levels} levels; they need sides that are multiples of {2 ** (levels - 1)}, "
                f"and images are {shape[0]}x{shape[1]}"
            )
        widths = [self.channels * mult for mult in self.channel_mults]
        if any(width > self.head_dim and width % self.head_dim for width in widths):
            raise ValueError(f"head_dim is {self.head_dim}; it must divide the channels of the levels, {widths}")
        if other := set(cond) - {"label"}:
            raise ValueError(f"num_classes is all that this network is told; it has no place for {', '.join(other)}")
        conditions.check_names(cond, self.num_classes)

    def module(self, out_channels: int) -> "EDM2Module":
        """The network of these options."""
        return EDM2Module(out_channels, self)

    def project(self, params: Any) -> Any:
        """Every kernel with each output's weights at root mean square 1, where they begin (algorithm 1)."""

        def leaf(path: tuple, value: Array) -> Array:
            return unit_weights(value) if path[-1].key == "kernel" else value

        return jax.tree_util.tree_map_with_path(leaf, params)


def unit_weights(kernel: Float[Array, "*taps_and_inputs outputs"]) -> Float[Array, "*taps_and_inputs outputs"]:
    """Each output's weights over their root mean square.

    >>> (unit_weights(jnp.array([[3.0, 1.0], [4.0, 1.0]])) ** 2).sum(axis=0).round(3)
    Array([2., 2.], dtype=float32)
    """
    axes = tuple(range(kernel.ndim - 1))
    return kernel / (1e-4 + jnp.sqrt(jnp.mean(jnp.square(kernel), axis=axes, keepdims=True)))


def unit_pixels(x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """Every vector along the last axis over its root mean square."""
    size = jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True))
    return (x / (1e-4 + size)).astype(x.dtype)


def mp_silu(x: Array) -> Array:
    """SiLU over 0.596, its root mean square of normal numbers (eq. 81)."""
    return nn.silu(x) / 0.596


def mp_sum(a: Array, b: Array, share: float = 0.5) -> Array:
    """(1 - share) a + share b, over the root of the sum of their squares (eq. 88)."""
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def mp_concatenate(a: Array, b: Array) -> Array:
    """Channels of a and b, so weighted that both contribute equally and all together are of magnitude 1 (eq. 103).

    >>> mp_concatenate(jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1, 1, 3)))[0, 0].round(2)
    Array([[1.41, 0.82, 0.82, 0.82]], dtype=float32)
    """
    n_a, n_b = a.shape[-1], b.shape[-1]
    both = math.sqrt((n_a + n_b) / 2)
    return jnp.concatenate([a * (both / math.sqrt(n_a)), b * (both / math.sqrt(n_b))], axis=-1)


class MPConv(nn.Module):
    """A convolution, or a dense layer where taps is 0, with normalised weights and without bias (eq. 66).

    Attributes:
      features: output channels.
      taps: 3, 1, or 0.
      dtype: compute dtype.
    """

    features: int
    taps: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, gain: Any = 1.0) -> Array:
        """Apply it to x, times a gain that may be learned."""
        shape = (*[self.taps] * (2 if self.taps > 1 else 0), x.shape[-1], self.features)
        # Drawn flat, as `layers.fan_average` is.
        kernel = self.param(
            "kernel", lambda key: unit_weights(jax.random.normal(key, (math.prod(shape),)).reshape(shape))
        )
        kernel = unit_weights(kernel) * (gain / math.sqrt(math.prod(shape[:-1])))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return ops.conv3x3(x, kernel) if self.taps > 1 else x @ kernel


class Fourier(nn.Module):
    """sqrt(2) cos(2 pi (f t + phase)), f normal and phases uniform: fixed, the same in every network (eq. 75).

    Attributes:
      features: how many.
    """

    features: int

    @nn.compact
    def __call__(self, t: Float[Array, " batch"]) -> Float[Array, "batch features"]:
        """Embed t, in float32."""
        generator = np.random.Generator(np.random.Philox(0))
        frequency = (2 * np.pi * generator.standard_normal(self.features)).astype(np.float32)
        phase = (2 * np.pi * generator.random(self.features)).astype(np.float32)
        return math.sqrt(2) * jnp.cos(t.astype(jnp.float32)[:, None] * frequency[None] + phase[None])


class MPBlock(nn.Module):
    """A residual block of the encoder or the decoder, with attention or without (figure 21).

    Attributes:
      channels: output channels.
      options: of the network.
      encoder: which of the two; the encoder's normalises every pixel.
      attention: whether pixels attend to each other.
      resample: None, "down" or "up", before all else.
    """

    channels: int
    options: EDM2
    encoder: bool
    attention: bool = False
    resample: Literal["down", "up"] | None = None

    @nn.compact
    def __call__(self, x: Image, emb: Float[Array, "batch features"], keys: Keys) -> Array:
        """Apply the block to x under the embedding."""
        dtype = self.options.dtype
        if self.resample is not None:
            x = downsample_average(x) if self.resample == "down" else upsample_nearest(x)
        skip = MPConv(self.channels, 1, dtype, name="skip") if x.shape[-1] != self.channels else lambda x: x
        if self.encoder:
            x = unit_pixels(skip(x))
        y = MPConv(self.channels, 3, dtype, name="conv1")(mp_silu(x))
        gain = self.param("gain", ZEROS, (), jnp.float32)
        c = 1 + MPConv(self.channels, name="embedding")(emb, gain)
        y = mp_silu((y * c[:, None, None]).astype(dtype))
        y = Dropout(self.options.dropout, name="dropout")(y, keys)
        y = MPConv(self.channels, 3, dtype, name="conv2")(y)
        x = mp_sum(x if self.encoder else skip(x), y, RES_BALANCE)
        if self.attention:
            batch, h, w, c = x.shape
            heads = max(1, c // self.options.head_dim)
            query, key, value = (
                unit_pixels(MPConv(c, 1, dtype, name=name)(x).reshape(batch, h * w, heads, c // heads))
                for name in ("query", "key", "value")
            )
            y = ops.attention(query, key, value).reshape(batch, h, w, c)
            x = mp_sum(x, MPConv(c, 1, dtype, name="proj")(y), RES_BALANCE)
        return jnp.clip(x, -CLIP, CLIP).astype(dtype)


class EDM2Module(nn.Module):
    """The network, from noisy images of magnitude about 1 and times to an image-shaped prediction.

    Attributes:
      out_channels: channels of the prediction.
      options: see `EDM2`.

    >>> net = EDM2(channels=4, channel_mults=(1, 2), blocks=1, attention_resolutions=()).module(3)
    >>> x, t = jnp.zeros((2, 4, 8, 3)), jnp.zeros(2)
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), x, t)[0].shape
    (2, 4, 8, 3)
    """

    out_channels: int
    options: EDM2

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        t: Float[Array, " batch"],
        cond: Cond = None,
        *,
        dropout_keys: Keys = None,
    ) -> Float[Array, "batch h w out_channels"]:
        """Predict, see `NetworkOptions.module`; zero of a new network.

        Prediction "edm" hands in images of magnitude 1, and log(sigma)/4 in the place of t.
        """
        own = self.options
        x, cond = checked_input(self, own, x, t, cond, lambda params: params["conv_in"]["kernel"].shape[2] - 1)
        widths = [own.channels * mult for mult in own.channel_mults]
        keys = dropout_keys if own.dropout else None
        block = nn.remat(MPBlock, prevent_cse=False) if own.remat else MPBlock

        emb = MPConv(max(widths), name="time")(Fourier(own.channels, name="fourier")(t))
        if own.num_classes:
            said = jax.nn.one_hot(cond["label"], own.num_classes + 1) * math.sqrt(own.num_classes + 1)
            emb = mp_sum(emb, MPConv(max(widths), name="classes")(said), LABEL_BALANCE)
        emb = mp_silu(emb)

        y = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)  # in the place of a bias
        y = MPConv(widths[0], 3, own.dtype, name="conv_in")(y)
        skips = [y]
        for level, width in enumerate(widths):
            attend = (x.shape[1] >> level) in own.attention_resolutions
            if level:
                y = block(y.shape[-1], own, True, resample="down", name=f"down{level}")(y, emb, keys)
                skips.append(y)
            for i in range(own.blocks):
                y = block(width, own, True, attend, name=f"encoder{level}_{i}")(y, emb, keys)
                skips.append(y)
        y = block(y.shape[-1], own, False, True, name="middle1")(y, emb, keys)
        y = block(y.shape[-1], own, False, name="middle2")(y, emb, keys)
        for level, width in reversed(list(enumerate(widths))):
            attend = (x.shape[1] >> level) in own.attention_resolutions
            for i in range(own.blocks + 1):
                y = mp_concatenate(y, skips.pop())
                y = block(width, own, False, attend, name=f"decoder{level}_{i}")(y, emb, keys)
            if level:
                y = block(width, own, False, resample="up", name=f"up{level}")(y, emb, keys)
        gain = self.param("gain", ZEROS, (), jnp.float32)
        return MPConv(self.out_channels, 3, name="conv_out")(y, gain).astype(jnp.float32)
