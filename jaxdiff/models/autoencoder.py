"""The autoencoder of latent diffusion: images to a small Gaussian latent, and back.

Parameter names are those of unet.py, under `encoder` and `decoder`; `moments` and `latent` are the 1x1 convolutions
on either side of the latent.

Reference: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022, section 3.1 and
appendix G (the KL variant), and its released code.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.models.layers import (
    Dense,
    Image,
    Norm,
    ResBlock,
    SelfAttention,
    UpsampleConv,
    conv3x3,
    group_norm,
)


class Gaussian(NamedTuple):
    """A diagonal Gaussian over latents [batch, h, w, c]."""

    mean: Array
    log_variance: Array


class _Half(nn.Module):
    """What encoder and decoder share: the layers and their names."""

    out_channels: int
    channels: int
    channel_mults: tuple[int, ...]
    blocks: int
    norm_groups: int
    dtype: Literal["float32", "bfloat16"]

    def _block(self, name, level, h):
        channels = self.channels * self.channel_mults[level]
        return ResBlock(channels, "add", 0.0, self.dtype, norms=self._norm(), name=name)(h, None)

    def _middle(self, h):
        last = len(self.channel_mults) - 1
        h = self._block("middle_block_0", last, h)
        h = SelfAttention(None, self.dtype, self._norm(), name="middle_attention")(h)
        return self._block("middle_block_1", last, h)

    def _out(self, h):
        h = nn.silu(group_norm(h, "norm_out", self._norm())).astype(jnp.float32)
        return conv3x3(self.out_channels, jnp.float32, "conv_out")(h)

    def _norm(self) -> Norm:
        return Norm(self.norm_groups, 1e-6)


class Encoder(_Half):
    """Images [batch, h, w, c] -> [batch, h / 2^n, w / 2^n, out_channels], n one less than the levels."""

    @nn.compact
    def __call__(self, x: Image) -> Array:
        """Encode x; its sides are multiples of 2^n."""
        h = conv3x3(self.channels, self.dtype, "conv_in")(x).astype(self.dtype)
        for i in range(len(self.channel_mults)):
            for j in range(self.blocks):
                h = self._block(f"down_{i}_block_{j}", i, h)
            if i < len(self.channel_mults) - 1:
                h = conv3x3(h.shape[-1], self.dtype, f"down_{i}_downsample", stride=2)(h)
        h = self._out(self._middle(h))
        return Dense(self.out_channels, name="moments")(h)


class Decoder(_Half):
    """The way back; a level has one block more than the encoder's."""

    @nn.compact
    def __call__(self, z: Image) -> Array:
        """Decode z."""
        last = len(self.channel_mults) - 1
        h = Dense(z.shape[-1], name="latent")(z)
        h = conv3x3(self.channels * self.channel_mults[last], self.dtype, "conv_in")(h).astype(self.dtype)
        h = self._middle(h)
        for i in reversed(range(last + 1)):
            for j in range(self.blocks + 1):
                h = self._block(f"up_{i}_block_{j}", i, h)
            if i > 0:
                h = UpsampleConv(h.shape[-1], self.dtype, name=f"up_{i}_upsample")(h).astype(self.dtype)
        return self._out(h)


class Autoencoder(nn.Module):
    """Images in [-1, 1] to latents of 1/2^(levels - 1) the side, and back; the defaults are Stable Diffusion's.

    Attributes:
      out_channels: of the images.
      latent_channels: of the latents.
      channels: at full resolution.
      channel_mults: channels of level i are channels * channel_mults[i].
      blocks: residual blocks a level of the encoder; the decoder has one more.
      norm_groups: groups of every GroupNorm.
      dtype: compute dtype; parameters, norms, softmax and outputs are float32 in any case.

    >>> import jax
    >>> net = Autoencoder(channels=4, channel_mults=(1, 2), blocks=1, norm_groups=2)
    >>> params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    >>> net.apply(params, jnp.zeros((1, 8, 8, 3)), method="encode").mean.shape
    (1, 4, 4, 4)
    """

    out_channels: int = 3
    latent_channels: int = 4
    channels: int = 128
    channel_mults: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    norm_groups: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"

    def setup(self):
        """The two halves."""
        rest = (self.channels, self.channel_mults, self.blocks, self.norm_groups, self.dtype)
        self.encoder = Encoder(2 * self.latent_channels, *rest)
        self.decoder = Decoder(self.out_channels, *rest)

    def encode(self, x: Image) -> Gaussian:
        """The latent's distribution; log_variance is clipped to [-30, 20], as in training."""
        mean, log_variance = jnp.split(self.encoder(x), 2, axis=-1)
        return Gaussian(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, z: Image) -> Float[Array, "batch height width out_channels"]:
        """The image of a latent."""
        return self.decoder(z)

    def __call__(self, x: Image) -> Float[Array, "batch h w out_channels"]:
        """The image of x's mean latent."""
        return self.decode(self.encode(x).mean)
