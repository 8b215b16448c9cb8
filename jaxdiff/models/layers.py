"""Layers of the DDPM/ADM U-Net: time embedding, dropout, sampling up and down, residual block, attention.

References:
  DDPM: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, appendix B.
  ADM:  Dhariwal, Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021, section 3.

Images are [batch, h, w, c]. Parameters are float32; `dtype` is what convolutions and products compute in,
while norms, softmax and the time embedding stay in float32.
"""

import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from jaxdiff.models import ops
from jaxdiff.models.conditions import VECTORS, Cond, by_name

TimeInjection = Literal["add", "scale_shift"]
Padding = Literal["end", "both"]
Image = Float[Array, "batch h w c"]
Keys = Key[Array, " batch"] | None

ZEROS = nn.initializers.zeros
GUIDANCE_SINUSOIDS = 256  # of a guidance scale, at any width


def fan_average(key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Uniform kernels [..., c_in, c_out] of variance 1 / (taps (c_in + c_out) / 2), as in the DDPM code base.

    Flax's `variance_scaling(1, "fan_avg", "uniform")`, the same numbers, but drawn flat: XLA compiles the
    initialisation of a network three times as fast.

    >>> kernel = fan_average(jax.random.key(0), (3, 3, 64, 64))
    >>> bool(abs(kernel.std() * 24 - 1) < 0.01)
    True
    """
    *taps, c_in, c_out = shape
    limit = math.sqrt(6 / (math.prod(taps) * (c_in + c_out)))
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


Dense = functools.partial(nn.Dense, kernel_init=fan_average, dot_general=ops.dense_product)
"""A dense layer over the last axis, as quick backwards as forwards."""


def timestep_embedding(
    t: Float[Array, " batch"], features: int, frequency_shift: int = 1
) -> Float[Array, "batch features"]:
    """Sinusoids of the noise time, in float32 whatever the compute dtype (DDPM's `get_timestep_embedding`).

    With half = features / 2: [sin(1000 t f_0), ..., cos(1000 t f_0), ...], f_i = 10^(-4 i / (half - shift)).

    Args:
      t: noise time in [0, 1]; k / 1000 gives what a network trained on integer steps calls k.
      features: an even number, at least 4.
      frequency_shift: 1 (DDPM) or 0 (ADM).

    Returns:
      The embedding, float32, within 2e-4 of exact arithmetic (the rounding of 1000 t at t = 1).

    >>> timestep_embedding(jnp.zeros(1), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    half = features // 2
    frequencies = np.power(10.0, -4.0 * np.arange(half) / (half - frequency_shift)).astype(np.float32)
    angles = (1000.0 * t.astype(jnp.float32))[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def group_count(channels: int) -> int:
    """Groups of a GroupNorm: the most that divide the channels, at most 32, with at least 4 channels each.

    That is the 32 of DDPM and ADM for every multiple of 32 from 128 up. Narrower networks get fewer groups:
    with one channel a group the norm would erase each channel's mean.

    >>> [group_count(c) for c in (32, 48, 128, 192, 384)]
    [8, 12, 32, 32, 32]
    """
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))


class Norm(NamedTuple):
    """How GroupNorm is done: its groups, None for those of `group_count`, and its epsilon."""

    groups: int | None = None
    eps: float = 1e-6


def group_norm(x: Image, name: str, norm: Norm) -> Image:
    """GroupNorm in float32, back in x's dtype: the submodule `name` of the calling module."""
    groups = norm.groups or group_count(x.shape[-1])
    layer = nn.GroupNorm(groups, epsilon=norm.eps, dtype=jnp.float32, use_fast_variance=False, name=name)
    return layer(x).astype(x.dtype)


class Conv3x3(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1, see `ops.conv3x3`; parameters are those of `nn.Conv`.

    The bias is added in float32, and stays so: what comes next rounds.

    Attributes:
      channels: output channels.
      dtype: compute dtype.
      kernel_init: of the kernel.
    """

    channels: int
    dtype: Any
    kernel_init: Any

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "batch h w channels"]:
        """Convolve x."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.channels), jnp.float32)
        bias = self.param("bias", ZEROS, (self.channels,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = ops.conv3x3(x, kernel, self.get_variable("winograd", "weights"))  # None unless `winograd.prepared`
        return y.astype(jnp.float32) + bias.reshape(1, 1, 1, -1)


def conv3x3(
    channels: int,
    dtype: Any,
    name: str,
    *,
    stride: int = 1,
    padding: Padding = "end",
    zero: bool = False,
) -> nn.Module:
    """A 3x3 convolution, `zero`-initialised or not; strided, it pads at the "end" (DDPM) or on "both" sides (ADM)."""
    init = ZEROS if zero else fan_average
    if stride == 1:
        return Conv3x3(channels, dtype, init, name=name)
    pads: Any = ((0, 1), (0, 1)) if padding == "end" else 1
    return nn.Conv(channels, (3, 3), stride, pads, dtype=dtype, kernel_init=init, name=name)


def upsample_nearest(x: Image) -> Float[Array, "batch 2*h 2*w c"]:
    """Each pixel becomes a 2x2 square.

    >>> upsample_nearest(jnp.arange(2.0).reshape(1, 1, 2, 1))[0, :, :, 0].tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def downsample_average(x: Image) -> Float[Array, "batch h//2 w//2 c"]:
    """The mean of each 2x2 square.

    >>> downsample_average(jnp.arange(4.0).reshape(1, 2, 2, 1)).item()
    1.5
    """
    batch, h, w, c = x.shape
    return x.reshape(batch, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def space_to_depth(x: Image, patch: int) -> Array:
    """Each patch x patch square becomes one pixel of patch^2 c channels, row by row.

    >>> space_to_depth(jnp.arange(4.0).reshape(1, 2, 2, 1), 2)[0, 0, 0].tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    batch, h, w, c = x.shape
    x = x.reshape(batch, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Image, patch: int) -> Array:
    """The inverse of `space_to_depth`.

    >>> depth_to_space(jnp.arange(4.0).reshape(1, 1, 1, 4), 2)[0, :, :, 0].tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    batch, h, w, c = x.shape
    x = x.reshape(batch, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, h * patch, w * patch, c // patch**2)


class Dropout(nn.Module):
    """Dropout whose masks belong to the examples: example i's depends on its key and this layer's path alone.

    So masks are the same however a batch is split over devices, hosts or calls.

    Attributes:
      rate: the probability of a zero, in [0, 1).
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."], keys: Keys) -> Float[Array, "batch ..."]:
        """Drop entries of x and rescale the rest by 1 / (1 - rate); with keys None, x unchanged."""
        if keys is None or self.rate == 0.0:
            return x
        layer = np.uint32(zlib.crc32("/".join(self.path).encode()))

        def keep_one(key):
            # Drawn flat: the same bits as in x's shape, which XLA takes up to nine times as long to compile.
            size = math.prod(x.shape[1:])
            return jax.random.bernoulli(jax.random.fold_in(key, layer), 1.0 - self.rate, (size,))

        keep = jax.vmap(keep_one)(keys).reshape(x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))


def _phase_kernels(kernel: Array, axis: int) -> Sequence[Array]:
    """The two 2-tap kernels, of even and of odd outputs, in equation (1) of UpsampleConv."""
    first, middle, last = jnp.split(kernel, 3, axis)
    even = jnp.concatenate([first, middle + last], axis)
    odd = jnp.concatenate([first + middle, last], axis)
    return even, odd


class UpsampleConv(nn.Module):
    """Nearest x2 upsampling, then a 3x3 convolution, computed at the low resolution: 4/9 of the products.

    In one dimension, with u[2i] = u[2i+1] = x[i] and a kernel k over u[m-1], u[m], u[m+1],

        y[2i]   = k_0 x[i-1] + (k_1 + k_2) x[i]
        y[2i+1] = (k_0 + k_1) x[i] + k_2 x[i+1]                                                     (1)

    exactly, at the borders too; in two dimensions four 2x2 convolutions. (One convolution to 4 times the
    channels is up to a quarter faster forward on CPU, but its gradient, as XLA compiles it, 10 to 70 times
    slower.)

    Attributes:
      channels: output channels.
      dtype: compute dtype.
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Image) -> Float[Array, "batch h2 w2 channels"]:
        """Upsample x; parameters are those of the plain 3x3 convolution, `kernel` and `bias`."""
        batch, h, w, c = x.shape
        kernel = self.param("kernel", fan_average, (3, 3, c, self.channels), jnp.float32)
        bias = self.param("bias", ZEROS, (self.channels,), jnp.float32)
        x = x.astype(self.dtype)
        rows = []
        for a, row_kernel in enumerate(_phase_kernels(kernel, axis=0)):
            columns = [
                lax.conv_general_dilated(
                    x,
                    phase.astype(self.dtype),  # taps are summed in float32, then rounded once
                    window_strides=(1, 1),
                    padding=((1 - a, a), (1 - b, b)),
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )
                for b, phase in enumerate(_phase_kernels(row_kernel, axis=1))
            ]
            rows.append(jnp.stack(columns, axis=3))
        y = jnp.stack(rows, axis=2).reshape(batch, 2 * h, 2 * w, self.channels)
        return y.astype(jnp.float32) + bias.reshape(1, 1, 1, -1)


class Mlp(nn.Module):
    """dense2(silu(dense1(x))), in float32.

    Attributes:
      features: of both layers.
      zero: start dense2 at zero.
    """

    features: int
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch width"]) -> Float[Array, "batch features"]:
        """Apply both layers to x."""
        x = nn.silu(Dense(self.features, name="dense1")(x))
        return Dense(self.features, kernel_init=ZEROS if self.zero else fan_average, name="dense2")(x)


class Embedding(nn.Module):
    """What the blocks are conditioned on: an MLP of the time's sinusoids, plus those of vectors, plus a row a class.

    All float32. A guidance scale's sinusoids enter that MLP, as LCM has it. What a vector or a scale adds is zero at
    first, so that a network that was trained without it may go on with it.

    Attributes:
      channels: the sinusoids.
      num_classes: 0 for none; otherwise the table has one row more, the last, for "no class".
      frequency_shift: of `timestep_embedding`.
      features: of the embedding; None for 4 times the sinusoids.
      classes_std: of a new table's entries.
      time_scale: what times are multiplied by before their sinusoids.
    """

    channels: int
    num_classes: int
    frequency_shift: int = 1
    features: int | None = None
    classes_std: float = 1.0
    time_scale: float = 1000.0

    @nn.compact
    def __call__(self, t: Float[Array, " batch"], cond: Cond = None) -> Float[Array, "batch features"]:
        """Embed times in [0, 1] and what cond has of label and VECTORS, see `jaxdiff.models.conditions`."""
        cond = by_name(cond)
        features = self.features or 4 * self.channels
        slower = self.time_scale / 1000.0
        emb = timestep_embedding(slower * t, self.channels, self.frequency_shift)
        emb = Dense(features, name="dense1")(emb)
        if "guidance" in cond:
            scale = timestep_embedding(cond["guidance"].astype(jnp.float32) - 1.0, GUIDANCE_SINUSOIDS)
            emb += Dense(features, use_bias=False, kernel_init=ZEROS, name="guidance")(scale)
        emb = Dense(features, name="dense2")(nn.silu(emb))
        if self.num_classes:
            init = nn.initializers.normal(self.classes_std)
            emb += nn.Embed(self.num_classes + 1, features, embedding_init=init, name="classes")(cond["label"])
        for name in VECTORS:
            if name in cond:
                value = cond[name].astype(jnp.float32)
                if value.ndim == 1:
                    value = timestep_embedding(slower * value, self.channels, self.frequency_shift)
                emb += Mlp(features, zero=True, name=name)(value)
        return emb


class ResBlock(nn.Module):
    """norm, SiLU, resample, conv, time, norm, SiLU, dropout, zero-initialised conv; plus the resampled input.

    Without an embedding the step "time" is left out, as in autoencoders.

    Attributes:
      channels: output channels; a 1x1 shortcut where the input has another number.
      time_injection: "add" (DDPM), norm(h + e), or "scale_shift" (ADM), norm(h) (1 + scale) + shift.
      dropout: rate.
      dtype: compute dtype.
      resample: None, or ADM's "down" (average) and "up" (nearest) inside the block, on both branches.
      norms: groups and epsilon of the norms.
    """

    channels: int
    time_injection: TimeInjection
    dropout: float
    dtype: Any
    resample: Literal["down", "up"] | None = None
    norms: Norm = Norm()

    @nn.compact
    def __call__(self, x: Image, emb: Float[Array, "batch features"] | None, dropout_keys: Keys = None) -> Array:
        """Apply the block to x under the embedding, if any; dropout only with keys."""
        h = nn.silu(group_norm(x.astype(jnp.float32), "norm1", self.norms))
        if self.resample == "up":
            h, x = UpsampleConv(self.channels, self.dtype, name="conv1")(h), upsample_nearest(x)
        else:
            if self.resample == "down":
                h, x = downsample_average(h), downsample_average(x)
            h = conv3x3(self.channels, self.dtype, "conv1")(h)

        if emb is None:
            h = group_norm(h, "norm2", self.norms)
        else:
            h = self._norm_with_time(h, emb)
        h = Dropout(self.dropout, name="dropout")(nn.silu(h), dropout_keys)
        h = conv3x3(self.channels, self.dtype, "conv2", zero=True)(h)
        if x.shape[-1] != self.channels:
            x = Dense(self.channels, dtype=self.dtype, name="shortcut")(x)
        return (x + h).astype(self.dtype)

    def _norm_with_time(self, h: Image, emb: Float[Array, "batch features"]) -> Image:
        scale_shift = self.time_injection == "scale_shift"
        width = 2 * self.channels if scale_shift else self.channels
        e = Dense(width, dtype=self.dtype, name="time")(nn.silu(emb))[:, None, None, :]
        if scale_shift:
            scale, shift = jnp.split(e, 2, axis=-1)
            return group_norm(h, "norm2", self.norms) * (1 + scale) + shift
        return group_norm(h + e, "norm2", self.norms)


class SelfAttention(nn.Module):
    """Every pixel attends to every pixel of its image: x + proj(attention(norm(x))), proj zero-initialised.

    Attributes:
      head_dim: channels a head, a divisor of x's channels; None for a single head.
      dtype: compute dtype; the softmax is float32.
      norms: groups and epsilon of the norm.
    """

    head_dim: int | None
    dtype: Any
    norms: Norm = Norm()

    @nn.compact
    def __call__(self, x: Image) -> Image:
        """Apply self-attention to x."""
        batch, h, w, c = x.shape
        head_dim = self.head_dim or c
        heads = (batch, h * w, c // head_dim, head_dim)
        y = group_norm(x, "norm", self.norms)
        query, key, value = (
            Dense(c, dtype=self.dtype, name=name)(y).reshape(heads) for name in ("query", "key", "value")
        )
        y = ops.attention(query, key, value).reshape(batch, h, w, c)
        return x + Dense(c, dtype=self.dtype, kernel_init=ZEROS, name="proj")(y)
