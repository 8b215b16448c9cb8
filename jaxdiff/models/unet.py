"""The U-Net of DDPM and ADM: what goes where. The layers are in layers.py.

Parameter names follow the picture: `conv_in`, `embedding`, `down_{level}_block_{j}`,
`down_{level}_attention_{j}`, `down_{level}_downsample`, `middle_block_0`, `middle_attention`,
`middle_block_1`, `up_{level}_block_{j}`, `up_{level}_attention_{j}`, `up_{level}_upsample`, `norm_out`,
`conv_out`. Level 0 is the full resolution, on the way down and on the way up alike: the way up runs from the
last level to 0. With `patch` > 1, level 0 is the image with each patch of pixels as one pixel of many channels.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdiff.models.layers import (
    Embedding,
    Keys,
    Norm,
    Padding,
    ResBlock,
    SelfAttention,
    TimeInjection,
    UpsampleConv,
    conv3x3,
    depth_to_space,
    group_norm,
    space_to_depth,
)


class UNet(nn.Module):
    """U-Net of the DDPM/ADM family, from noisy images and times to an image-shaped prediction.

    Down: at each level `blocks` residual blocks, each kept as a skip, then half the resolution, kept too.
    Middle: block, attention, block. Up: at each level `blocks + 1` residual blocks, each on [h, last skip],
    then twice the resolution. Attention follows each block of a level whose height is in
    `attention_resolutions`. The last layers of residual branches, of attention and of the network start at
    zero, so that a new network predicts zero.

    Attributes:
      out_channels: channels of the prediction (twice the image's for a learned variance).
      patch: side of the squares of pixels that level 0 sees as one pixel each: 2 makes a quarter of the products.
      channels: channels at level 0, a multiple of 4.
      channel_mults: channels of level i are channels * channel_mults[i].
      blocks: residual blocks a level.
      attention_resolutions: heights of the levels that have attention.
      head_dim: channels an attention head; None for a single head.
      num_heads: attention heads, at any width, in place of head_dim (Improved DDPM).
      dropout: rate inside residual blocks; active where dropout_keys are given.
      num_classes: 0 for an unconditional network; else labels are 0..num_classes, the last for "no class".
      time_injection: "add" (DDPM) or "scale_shift" (ADM).
      resample: "conv", strided and nearest + convolution (DDPM), or "resblock", inside residual blocks (ADM).
      downsample_padding: of strided convolutions, "end" (DDPM: one row and column after the image) or "both" (ADM).
      norm_groups: groups of every GroupNorm; None for as many as `group_count` finds.
      norm_eps: epsilon of every GroupNorm, 1e-6 (DDPM) or 1e-5 (ADM).
      frequency_shift: of the time embedding, 1 (DDPM) or 0 (ADM).
      dtype: compute dtype; parameters, norms, softmax, time embedding and output are float32 in any case.
      remat: recompute each block's inside in the backward pass rather than keep it.
      winograd: compute 3x3 convolutions in another way, quicker on CPUs; the same parameters, and within 1e-5 the
        same outputs.

    >>> import jax
    >>> net = UNet(3, channels=8, channel_mults=(1, 2), blocks=1, attention_resolutions=())
    >>> x, t = jnp.zeros((2, 8, 8, 3)), jnp.zeros(2)
    >>> params = net.init(jax.random.key(0), x, t)["params"]
    >>> net.apply({"params": params}, x, t).shape
    (2, 8, 8, 3)
    """

    out_channels: int
    patch: int = 1
    channels: int = 128
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    head_dim: int | None = None
    num_heads: int | None = None
    dropout: float = 0.0
    num_classes: int = 0
    time_injection: TimeInjection = "add"
    resample: Literal["conv", "resblock"] = "conv"
    downsample_padding: Padding = "end"
    norm_groups: int | None = None
    norm_eps: float = 1e-6
    frequency_shift: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    winograd: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        t: Float[Array, " batch"],
        cond: Int[Array, " batch"] | None = None,
        *,
        dropout_keys: Keys = None,
    ) -> Float[Array, "batch h w out_channels"]:
        """Predict.

        Args:
          x: noisy images, in about [-1, 1] at t = 0.
          t: noise time in [0, 1], one an image.
          cond: labels in 0..num_classes, if and only if there are classes; one beyond the last gives NaN.
          dropout_keys: one key an example; None turns dropout off.

        Returns:
          The prediction, float32.

        Raises:
          ValueError: sizes that do not fit (see `check`); t or cond not [batch]; cond missing or not wanted.
        """
        check(self, x.shape[1:])
        _check_inputs(self.num_classes, x, t, cond)
        emb = Embedding(self.channels, self.num_classes, self.frequency_shift, name="embedding")(t, cond)
        last = len(self.channel_mults) - 1

        h = conv3x3(self.channels, self.dtype, "conv_in")(space_to_depth(x, self.patch))
        skips = [h]
        for i in range(last + 1):
            for j in range(self.blocks):
                h = self._block(f"down_{i}_block_{j}", i, None, h, emb, dropout_keys)
                h = self._attention(f"down_{i}_attention_{j}", h)
                skips.append(h)
            if i < last:
                h = self._resample("down", i, h, emb, dropout_keys)
                skips.append(h)

        h = self._block("middle_block_0", last, None, h, emb, dropout_keys)
        h = self._attention("middle_attention", h, always=True)
        h = self._block("middle_block_1", last, None, h, emb, dropout_keys)

        for i in reversed(range(last + 1)):
            for j in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"up_{i}_block_{j}", i, None, h, emb, dropout_keys)
                h = self._attention(f"up_{i}_attention_{j}", h)
            if i > 0:
                h = self._resample("up", i, h, emb, dropout_keys)

        h = nn.silu(group_norm(h, "norm_out", self._norm())).astype(jnp.float32)
        h = conv3x3(self.out_channels * self.patch**2, jnp.float32, "conv_out", zero=True)(h)
        return depth_to_space(h, self.patch)

    def _block(self, name, level, resample, h, emb, dropout_keys):
        block = nn.remat(ResBlock) if self.remat else ResBlock
        channels = self.channels * self.channel_mults[level]
        how = (self.time_injection, self.dropout, self.dtype, resample, self._norm(), self.winograd)
        return block(channels, *how, name=name)(h, emb, dropout_keys)

    def _attention(self, name, h, always=False):
        if not always and h.shape[1] not in self.attention_resolutions:
            return h
        attention = nn.remat(SelfAttention) if self.remat else SelfAttention
        head_dim = h.shape[-1] // self.num_heads if self.num_heads else self.head_dim
        return attention(head_dim, self.dtype, self._norm(), name=name)(h)

    def _norm(self) -> Norm:
        return Norm(self.norm_groups, self.norm_eps)

    def _resample(self, direction, level, h, emb, dropout_keys):
        name = f"{direction}_{level}_{direction}sample"
        if self.resample == "resblock":
            return self._block(name, level, direction, h, emb, dropout_keys)
        if direction == "down":
            return conv3x3(h.shape[-1], self.dtype, name, stride=2, padding=self.downsample_padding)(h)
        return UpsampleConv(h.shape[-1], self.dtype, name=name)(h)


def _check_inputs(num_classes: int, x: Array, t: Array, cond: Array | None) -> None:
    if t.shape != x.shape[:1]:
        raise ValueError(f"t has shape {t.shape}; it must be one time an image, {x.shape[:1]}")
    if num_classes and cond is None:
        raise ValueError(f"this network has {num_classes} classes: pass cond ({num_classes} means no class)")
    if cond is not None and not num_classes:
        raise ValueError("this network has no classes (num_classes=0): cond must be None")
    if cond is not None and (cond.shape != t.shape or not jnp.issubdtype(cond.dtype, jnp.integer)):
        raise ValueError(f"cond is {cond.dtype}{list(cond.shape)}; it must be one integer an image")


def check(net: UNet, image_shape: tuple[int, ...]) -> None:
    """Refuse a network whose fields do not fit each other or the images.

    Args:
      net: a UNet, or anything with its fields.
      image_shape: (h, w, c).

    Raises:
      ValueError: what does not fit, and what would.

    >>> check(UNet(3, channel_mults=(1, 2, 2)), (30, 30, 3))
    Traceback (most recent call last):
    ...
    ValueError: images of 30x30 cannot be halved 2 times (3 channel_mults); sides must be multiples of 4
    """
    for field, choices in (
        ("time_injection", ("add", "scale_shift")),
        ("resample", ("conv", "resblock")),
        ("downsample_padding", ("end", "both")),
        ("frequency_shift", (0, 1)),
        ("dtype", ("float32", "bfloat16")),
    ):
        if getattr(net, field) not in choices:
            raise ValueError(f"{field} is {getattr(net, field)!r}; it must be one of {', '.join(map(str, choices))}")
    if not net.channel_mults or min(net.channel_mults) < 1:
        raise ValueError(f"channel_mults is {net.channel_mults}; it must be one or more positive integers")
    if net.channels < 4 or net.channels % 4:
        raise ValueError(f"channels is {net.channels}; it must be a multiple of 4 (groups of 4, sin and cos)")
    for field, value in (("blocks", net.blocks), ("out_channels", net.out_channels), ("patch", net.patch)):
        if value < 1:
            raise ValueError(f"{field} is {value}; it must be at least 1")
    widths = [net.channels * mult for mult in net.channel_mults]
    for field, value in (("norm_groups", net.norm_groups), ("num_heads", net.num_heads)):
        if value is not None and (value < 1 or any(width % value for width in widths)):
            raise ValueError(f"{field} is {value}; it must divide the channels of every level, {widths}")
    if net.num_heads is not None and net.head_dim is not None:
        raise ValueError(f"num_heads is {net.num_heads} and head_dim {net.head_dim}; give one of them")
    if net.num_classes < 0:
        raise ValueError(f"num_classes is {net.num_classes}; it must be 0 (unconditional) or more")
    if not 0.0 <= net.dropout < 1.0:
        raise ValueError(f"dropout is {net.dropout}; it must be in [0, 1)")
    _check_resolutions(net, image_shape)


def _check_resolutions(net: UNet, image_shape: tuple[int, ...]) -> None:
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"images have shape {tuple(image_shape)}; it must be (h, w, c), all positive")
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
    absent = [r for r in net.attention_resolutions if r not in heights]
    if absent:
        raise ValueError(f"attention_resolutions {absent} never occur; the levels have heights {heights}")
    # The middle, at the last level, always attends.
    for i in range(halvings + 1):
        width = net.channels * net.channel_mults[i]
        attends = i == halvings or heights[i] in net.attention_resolutions
        if attends and net.head_dim is not None and (net.head_dim < 1 or width % net.head_dim):
            where = f"the {width} channels at height {heights[i]}"
            raise ValueError(f"head_dim is {net.head_dim}; it must divide {where}")
