"""The U-Net of Stable Diffusion 1 and 2: ours (unet.py) with blocks that attend to a text in place of attention.

Parameter names are those of unet.py; `down_{level}_attention_{j}`, `middle_attention` and `up_{level}_attention_{j}`
are PixelTransformers.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.models.attention import PixelTransformer
from jaxdiff.models.layers import Embedding, Norm, Padding, ResBlock, UpsampleConv, conv3x3, group_norm


class TextUNet(nn.Module):
    """U-Net from noisy latents, times and an embedded text to a prediction; its defaults are Stable Diffusion 1.

    As `UNet`, but what attends is chosen by level and not by height, so that it serves latents of any size.

    Attributes:
      out_channels: channels of the prediction.
      channels: channels at level 0, a multiple of 4.
      channel_mults: channels of level i are channels * channel_mults[i].
      blocks: residual blocks a level.
      attends: whether level i has attention; the middle always has.
      num_heads: attention heads of level i, and of the middle the last level's.
      downsample_padding: of strided convolutions, "end" or "both".
      norm_groups: groups of every GroupNorm.
      norm_eps: epsilon of those outside of attention.
      frequency_shift: of the time embedding, 1 or 0.
      dtype: compute dtype; parameters, norms, softmax, time embedding and output are float32 in any case.

    Source: Rombach et al. 2022, and its released code.

    >>> import jax
    >>> net = TextUNet(channels=8, channel_mults=(1,), blocks=1, attends=(True,), num_heads=(2,), norm_groups=4)
    >>> x, t, text = jnp.zeros((2, 4, 4, 4)), jnp.zeros(2), jnp.zeros((2, 5, 6))
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), x, t, text)[0].shape
    (2, 4, 4, 4)
    """

    out_channels: int = 4
    channels: int = 320
    channel_mults: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attends: tuple[bool, ...] = (True, True, True, False)
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    downsample_padding: Padding = "both"
    norm_groups: int = 32
    norm_eps: float = 1e-5
    frequency_shift: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        t: Float[Array, " batch"],
        cond: Float[Array, "batch tokens features"],
    ) -> Float[Array, "batch h w out_channels"]:
        """Predict.

        Args:
          x: noisy latents; sides are multiples of 2^(levels - 1).
          t: noise time in [0, 1], one an image.
          cond: the embedded text, see `TextEncoder`.

        Returns:
          The prediction, float32.

        Raises:
          ValueError: fields of different lengths, or sides that cannot be halved.
        """
        last = len(self.channel_mults) - 1
        if not len(self.channel_mults) == len(self.attends) == len(self.num_heads):
            raise ValueError("channel_mults, attends and num_heads must have one entry a level")
        if x.shape[1] % 2**last or x.shape[2] % 2**last:
            raise ValueError(f"latents of {x.shape[1]}x{x.shape[2]}; sides must be multiples of {2**last}")
        emb = Embedding(self.channels, 0, self.frequency_shift, name="embedding")(t, None)

        h = conv3x3(self.channels, self.dtype, "conv_in")(x)
        skips = [h]
        for i in range(last + 1):
            for j in range(self.blocks):
                h = self._block(f"down_{i}_block_{j}", i, h, emb)
                h = self._attention(f"down_{i}_attention_{j}", i, h, cond) if self.attends[i] else h
                skips.append(h)
            if i < last:
                padding = self.downsample_padding
                h = conv3x3(h.shape[-1], self.dtype, f"down_{i}_downsample", stride=2, padding=padding)(h)
                skips.append(h)

        h = self._block("middle_block_0", last, h, emb)
        h = self._attention("middle_attention", last, h, cond)
        h = self._block("middle_block_1", last, h, emb)

        for i in reversed(range(last + 1)):
            for j in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(f"up_{i}_block_{j}", i, h, emb)
                h = self._attention(f"up_{i}_attention_{j}", i, h, cond) if self.attends[i] else h
            if i > 0:
                h = UpsampleConv(h.shape[-1], self.dtype, name=f"up_{i}_upsample")(h)

        h = nn.silu(group_norm(h, "norm_out", self._norm())).astype(jnp.float32)
        return conv3x3(self.out_channels, jnp.float32, "conv_out", zero=True)(h)

    def _block(self, name, level, h, emb):
        channels = self.channels * self.channel_mults[level]
        return ResBlock(channels, "add", 0.0, self.dtype, norms=self._norm(), name=name)(h, emb)

    def _attention(self, name, level, h, cond):
        return PixelTransformer(self.num_heads[level], self.dtype, self.norm_groups, name=name)(h, cond)

    def _norm(self) -> Norm:
        return Norm(self.norm_groups, self.norm_eps)
