"""The U-Net of DDPM and ADM: what goes where. The layers are in layers.py.

Parameter names follow the picture: `conv_in`, `embedding`, `down_{level}_block_{j}`,
`down_{level}_attention_{j}`, `down_{level}_downsample`, `middle_block_0`, `middle_attention`,
`middle_block_1`, `up_{level}_block_{j}`, `up_{level}_attention_{j}`, `up_{level}_upsample`, `norm_out`,
`conv_out`. Level 0 is the full resolution, on the way down and on the way up alike: the way up runs from the
last level to 0. With `patch` > 1, level 0 is the image with each patch of pixels as one pixel of many channels.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.models import conditions
from jaxdiff.models.attention import PixelTransformer
from jaxdiff.models.conditions import Cond
from jaxdiff.models.layers import (
    Embedding,
    Keys,
    Norm,
    ResBlock,
    SelfAttention,
    UpsampleConv,
    conv3x3,
    depth_to_space,
    group_norm,
    space_to_depth,
)
from jaxdiff.models.network import NetworkOptions, check_common


@dataclasses.dataclass(frozen=True)
class Model(NetworkOptions):
    """The U-Net, see jaxdiff.models.UNet."""

    patch: int = 1
    """Side of the squares of pixels that the network sees as one pixel each; 2 makes it four times cheaper."""
    channels: int = 128
    """Channels at full resolution, a multiple of 4."""
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each level as multiples; each level has half the resolution of the one before."""
    blocks: int = 2
    """Residual blocks a level."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Heights, in pixels (with patch, in patches), at which there is self-attention."""
    attention_levels: tuple[int, ...] | None = None
    """Levels, from 0 at full resolution, that have attention at any height, in place of attention_resolutions."""
    head_dim: int | None = None
    """Channels an attention head; None for a single head."""
    num_heads: int | tuple[int, ...] | None = None
    """Attention heads at any width, or one number a level, in place of head_dim."""
    dropout: float = 0.0
    """Dropout rate in residual blocks."""
    time_injection: Literal["add", "scale_shift"] = "add"
    """How time enters: added (DDPM) or as scale and shift (ADM)."""
    resample: Literal["conv", "resblock"] = "conv"
    """Strided convolutions (DDPM) or resampling residual blocks (ADM)."""
    downsample_padding: Literal["end", "both"] = "end"
    """Padding of strided convolutions: after the image (DDPM) or around it (ADM)."""
    norm_groups: int | None = None
    """Groups of every GroupNorm; None for as many as divide the channels, up to 32 and no less than 4 wide."""
    norm_eps: float = 1e-6
    """Epsilon of every GroupNorm."""
    frequency_shift: Literal[0, 1] = 1
    """Time embedding's lowest frequency: 1 as DDPM, 0 as ADM."""
    time_scale: float = 1000.0
    """What times are multiplied by before their sinusoids: 1000, or some 20 where a loss differentiates in time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What to compute in; parameters, norms, softmax, time embedding and output are float32."""

    def check(self, shape: tuple[int, ...], cond: Mapping[str, Any] | Iterable[str] = ()) -> None:
        """Refuse options that do not fit each other, the images or the conditions.

        >>> Model(attention_resolutions=()).check((32, 32, 3), ["label"])
        Traceback (most recent call last):
        ...
        ValueError: num_classes is 0; label must be None then, or num_classes the number of classes
        """
        check(self, shape)
        conditions.check_names(cond, self.num_classes)

    def module(self, out_channels: int) -> "UNet":
        """The network of these options."""
        return UNet(out_channels, **vars(self))


class UNet(nn.Module):
    """U-Net of the DDPM/ADM family, from noisy images and times to an image-shaped prediction.

    Down: at each level `blocks` residual blocks, each kept as a skip, then half the resolution, kept too.
    Middle: block, attention, block. Up: at each level `blocks + 1` residual blocks, each on [h, last skip],
    then twice the resolution. Attention follows each block of a level that attends: self-attention, or under a
    text Stable Diffusion's transformer block, which attends to the text as well. The last layers of residual branches,
    of attention and of the network start at zero, so that a new network predicts zero.

    Attributes:
      out_channels: channels of the prediction (twice the image's for a learned variance).
      (others): those of `Model`, where they are described.

    >>> import jax
    >>> net = UNet(3, channels=8, channel_mults=(1, 2), blocks=1, attention_resolutions=())
    >>> x, t = jnp.zeros((2, 8, 8, 3)), jnp.zeros(2)
    >>> params = net.init(jax.random.key(0), x, t)["params"]
    >>> net.apply({"params": params}, x, t).shape
    (2, 8, 8, 3)
    """

    out_channels: int
    patch: int = Model.patch
    channels: int = Model.channels
    channel_mults: tuple[int, ...] = Model.channel_mults
    blocks: int = Model.blocks
    attention_resolutions: tuple[int, ...] = Model.attention_resolutions
    attention_levels: tuple[int, ...] | None = Model.attention_levels
    head_dim: int | None = Model.head_dim
    num_heads: int | tuple[int, ...] | None = Model.num_heads
    dropout: float = Model.dropout
    num_classes: int = Model.num_classes
    time_injection: Literal["add", "scale_shift"] = Model.time_injection
    resample: Literal["conv", "resblock"] = Model.resample
    downsample_padding: Literal["end", "both"] = Model.downsample_padding
    norm_groups: int | None = Model.norm_groups
    norm_eps: float = Model.norm_eps
    frequency_shift: Literal[0, 1] = Model.frequency_shift
    time_scale: float = Model.time_scale
    dtype: Literal["float32", "bfloat16"] = Model.dtype
    remat: bool = Model.remat

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
        check(self, x.shape[1:])
        cond = conditions.by_name(cond)
        conditions.check_names(cond, self.num_classes)
        params = {} if self.is_initializing() else self.variables["params"]
        channels = params["conv_in"]["kernel"].shape[2] // self.patch**2 if params else 0
        conditions.check_arrays(cond, x, t, params, channels)
        if "image" in cond:
            x = jnp.concatenate([x, cond["image"].astype(x.dtype)], axis=-1)
        size = {"frequency_shift": self.frequency_shift, "time_scale": self.time_scale}
        emb = Embedding(self.channels, self.num_classes, **size, name="embedding")(t, cond)
        last = len(self.channel_mults) - 1

        h = conv3x3(self.channels, self.dtype, "conv_in")(space_to_depth(x, self.patch)).astype(self.dtype)
        skips = [h]
        for i in range(last + 1):
            for j in range(self.blocks):
                h = self._block(f"down_{i}_block_{j}", i, None, h, emb, dropout_keys)
                h = self._attention(f"down_{i}_attention_{j}", i, h, cond)
                skips.append(h)
            if i < last:
                h = self._resample("down", i, h, emb, dropout_keys)
                skips.append(h)

        h = self._block("middle_block_0", last, None, h, emb, dropout_keys)
        h = self._attention("middle_attention", last, h, cond, always=True)
        h = self._block("middle_block_1", last, None, h, emb, dropout_keys)

        for i in reversed(range(last + 1)):
            for j in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"up_{i}_block_{j}", i, None, h, emb, dropout_keys)
                h = self._attention(f"up_{i}_attention_{j}", i, h, cond)
            if i > 0:
                h = self._resample("up", i, h, emb, dropout_keys)

        h = nn.silu(group_norm(h.astype(jnp.float32), "norm_out", self._norm()))
        h = conv3x3(self.out_channels * self.patch**2, jnp.float32, "conv_out", zero=True)(h)
        return depth_to_space(h, self.patch)

    def _block(self, name, level, resample, h, emb, dropout_keys):
        block = nn.remat(ResBlock) if self.remat else ResBlock
        channels = self.channels * self.channel_mults[level]
        how = (self.time_injection, self.dropout, self.dtype, resample, self._norm())
        return block(channels, *how, name=name)(h, emb, dropout_keys)

    def _attention(self, name, level, h, cond, always=False):
        if not always and not attends(self, level, h.shape[1]):
            return h
        heads = num_heads(self, level)
        if "text" in cond:
            transformer = nn.remat(PixelTransformer) if self.remat else PixelTransformer
            return transformer(heads, self.dtype, self.norm_groups, name=name)(h, cond["text"], cond.get("mask"))
        attention = nn.remat(SelfAttention) if self.remat else SelfAttention
        return attention(h.shape[-1] // heads, self.dtype, self._norm(), name=name)(h)

    def _norm(self) -> Norm:
        return Norm(self.norm_groups, self.norm_eps)

    def _resample(self, direction, level, h, emb, dropout_keys):
        name = f"{direction}_{level}_{direction}sample"
        if self.resample == "resblock":
            return self._block(name, level, direction, h, emb, dropout_keys)
        if direction == "down":
            return conv3x3(h.shape[-1], self.dtype, name, stride=2, padding=self.downsample_padding)(h)
        return UpsampleConv(h.shape[-1], self.dtype, name=name)(h).astype(self.dtype)


def attends(net: UNet | Model, level: int, height: int) -> bool:
    """Whether a level whose images have that height has attention; the middle has it in any case."""
    if net.attention_levels is None:
        return height in net.attention_resolutions
    return level in net.attention_levels


def num_heads(net: UNet | Model, level: int) -> int:
    """Attention heads of a level."""
    if isinstance(net.num_heads, tuple):
        return net.num_heads[level]
    return net.num_heads or (net.channels * net.channel_mults[level] // net.head_dim if net.head_dim else 1)


_MOST = {"patch": 64, "channels": 8192, "blocks": 64, "head_dim": 8192, "norm_groups": 8192, "num_classes": 1_000_000}


def check(net: UNet | Model, image_shape: tuple[int, ...]) -> None:
    """Refuse a network whose fields do not fit each other or the images.

    Args:
      net: a UNet, or its options.
      image_shape: (h, w, c).

    Raises:
      ValueError: what does not fit, and what would.

    >>> check(UNet(3, channel_mults=(1, 2, 2)), (30, 30, 3))
    Traceback (most recent call last):
    ...
    ValueError: images of 30x30 cannot be halved 2 times (3 channel_mults); sides must be multiples of 4
    """
    check_common(net, Model, image_shape, time_scale=(0.01, 100_000))
    if not net.channel_mults or min(net.channel_mults) < 1:
        raise ValueError(f"channel_mults is {net.channel_mults}; it must be one or more positive integers")
    for field, most in _MOST.items():
        if (getattr(net, field) or 0) > most:
            raise ValueError(f"{field} is {getattr(net, field)}; it must be at most {most}")
    if len(net.channel_mults) > 10 or max(net.channel_mults) > 64:
        raise ValueError(f"channel_mults is {net.channel_mults}; it must be at most 10 numbers of at most 64")
    if not 1e-12 <= net.norm_eps <= 0.1:
        raise ValueError(f"norm_eps is {net.norm_eps}; it must be in 1e-12..0.1")
    if net.channels < 4 or net.channels % 4:
        raise ValueError(f"channels is {net.channels}; it must be a multiple of 4 (groups of 4, sin and cos)")
    for field in ("blocks", "out_channels", "patch"):
        value = getattr(net, field, 1)  # options have no out_channels
        if value < 1:
            raise ValueError(f"{field} is {value}; it must be at least 1")
    widths = [net.channels * mult for mult in net.channel_mults]
    for field, value in (("norm_groups", net.norm_groups), ("num_heads", net.num_heads)):
        each = value if isinstance(value, tuple) else (value,) * len(widths)
        if len(each) != len(widths):
            raise ValueError(f"{field} is {value}; it must be one number, or one for each of {len(widths)} levels")
        if any(n is not None and (n < 1 or width % n) for width, n in zip(widths, each, strict=True)):
            raise ValueError(f"{field} is {value}; it must divide the channels of every level, {widths}")
    if net.num_classes < 0:
        raise ValueError(f"num_classes is {net.num_classes}; it must be 0 (unconditional) or more")
    if net.num_heads is not None and net.head_dim is not None:
        raise ValueError(f"num_heads is {net.num_heads} and head_dim {net.head_dim}; give one of them")
    _check_resolutions(net, image_shape)


def _check_resolutions(net: UNet | Model, image_shape: tuple[int, ...]) -> None:
    h, w, _ = image_shape
    halvings = len(net.channel_mults) - 1
    unit = net.patch * 2**halvings
    if h % unit or w % unit:
        patches = f"cut into patches of {net.patch} and " if net.patch > 1 else ""
        raise ValueError(
            f"images of {h}x{w} cannot be {patches}halved {halvings} times ({halvings + 1} channel_mults); "
            f"sides must be multiples of {unit}"
        )
    heights = [h // net.patch >> i for i in range(halvings + 1)]
    if net.attention_levels is not None:
        if net.attention_resolutions not in (Model.attention_resolutions, ()):
            raise ValueError(
                f"attention_levels is {net.attention_levels} and attention_resolutions {net.attention_resolutions}; "
                "give one of them"
            )
        if any(not 0 <= level <= halvings for level in net.attention_levels):
            raise ValueError(f"attention_levels is {net.attention_levels}; it must be of 0..{halvings}")
    absent = [r for r in net.attention_resolutions if r not in heights]
    if absent and net.attention_levels is None:
        raise ValueError(f"attention_resolutions {absent} never occur; the levels have heights {heights}")
    # The middle, at the last level, always attends.
    for i in range(halvings + 1):
        width = net.channels * net.channel_mults[i]
        if (
            (i == halvings or attends(net, i, heights[i]))
            and net.head_dim is not None
            and (net.head_dim < 1 or width % net.head_dim)
        ):
            where = f"the {width} channels at height {heights[i]}"
            raise ValueError(f"head_dim is {net.head_dim}; it must divide {where}")
