"""The old way: a PixelCNN, which writes an image one pixel after another, each with all before it in view.

    p(x) = prod_i p(x_i | x_1 ... x_{i-1}),  every factor a mixture of logistics over the 256 grey levels     (1)

Masked convolutions give all factors in one pass, so training is as quick as a diffusion model's; sampling needs a pass
a pixel, since x_i must be there before x_{i+1} can be drawn.

Sources: van den Oord et al. 2016 (PixelRNN), section 3.4 (masks); Salimans et al. 2017 (PixelCNN++), section 2.1.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

MIXTURE = 5


def mask(size: int, sees_itself: bool) -> np.ndarray:
    """[size, size, 1, 1]: 1 on the rows above, and on this row to the left; the middle if a pixel may see itself.

    >>> mask(3, False)[:, :, 0, 0].tolist()
    [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    seen = np.zeros((size, size), np.float32)
    seen[: size // 2] = 1.0
    seen[size // 2, : size // 2 + sees_itself] = 1.0
    return seen[:, :, None, None]


class PixelCNN(nn.Module):
    """Grey images in [-1, 1], [batch, h, w, 1], and labels [batch] -> [batch, h, w, 3, MIXTURE] of eq. (1).

    A 7x7 convolution that does not see its own pixel, then residual blocks that may: 1x1, masked 3x3, 1x1.
    """

    channels: int = 32
    blocks: int = 4
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        h = _masked(x, self.channels, 7, sees_itself=False)
        h = h + nn.Embed(self.classes, self.channels)(labels)[:, None, None]
        for _ in range(self.blocks):
            inner = nn.Conv(self.channels // 2, (1, 1))(nn.silu(h))
            inner = _masked(nn.silu(inner), self.channels // 2, 3, sees_itself=True)
            h = h + nn.Conv(self.channels, (1, 1))(nn.silu(inner))
        out = nn.Conv(3 * MIXTURE, (1, 1))(nn.silu(h))
        return out.reshape(*out.shape[:-1], 3, MIXTURE)


def _masked(h: jax.Array, channels: int, size: int, sees_itself: bool) -> jax.Array:
    kept = jnp.broadcast_to(mask(size, sees_itself), (size, size, h.shape[-1], channels))
    return nn.Conv(channels, (size, size), mask=kept)(h)


def log_prob(mixture: jax.Array, x: jax.Array) -> jax.Array:
    """log p of each pixel [batch, h, w]: the mass between the borders of its level, open at the two ends.

    Args:
      mixture: [batch, h, w, 3, MIXTURE]: logits, means, log scales.
      x: [batch, h, w, 1], multiples of 2/255 from -1 to 1.
    """
    logits, means, log_scales = (mixture[..., i, :] for i in range(3))
    inverse = jnp.exp(-jnp.clip(log_scales, -7.0, None))
    above, below = (inverse * (x - means + side / 255.0) for side in (1.0, -1.0))
    mass = jnp.where(x > 0.999, 1.0, nn.sigmoid(above)) - jnp.where(x < -0.999, 0.0, nn.sigmoid(below))
    return nn.logsumexp(nn.log_softmax(logits) + jnp.log(jnp.maximum(mass, 1e-10)), axis=-1)


def bits(model: PixelCNN, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Bits per dimension of each uint8 image [batch]; exact."""
    x = images.astype(jnp.float32) / 127.5 - 1.0
    mixture: Any = model.apply({"params": params}, x, labels)
    return -log_prob(mixture, x).mean(axis=(1, 2)) / jnp.log(2.0)


def draw(model: PixelCNN, params: Any, key: jax.Array, labels: jax.Array, side: int, pixels: int) -> jax.Array:
    """Images in [-1, 1], of which the first `pixels` pixels are drawn, a pass of the network each."""

    def write(i: jax.Array, x: jax.Array) -> jax.Array:
        row, column = i // side, i % side
        mixture: Any = model.apply({"params": params}, x, labels)
        logits, means, log_scales = jnp.moveaxis(mixture[:, row, column], 1, 0)
        which_key, level_key = jax.random.split(jax.random.fold_in(key, i))
        which = jax.random.categorical(which_key, logits)[:, None]
        scales = jnp.exp(jnp.clip(log_scales, -7.0, None))
        mean, scale = (jnp.take_along_axis(p, which, 1)[:, 0] for p in (means, scales))
        level = jnp.clip(mean + scale * jax.random.logistic(level_key, mean.shape), -1.0, 1.0)
        return x.at[:, row, column, 0].set(jnp.round((level + 1.0) * 127.5) / 127.5 - 1.0)

    return jax.lax.fori_loop(0, pixels, write, jnp.zeros((len(labels), side, side, 1)))
