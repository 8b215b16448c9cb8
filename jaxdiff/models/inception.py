"""InceptionV3 as FID uses it: the graph of 2015-12-05, in which some pools differ from the paper's and torchvision's.

Average pools do not count the padding, and the last block pools by the maximum. Batch norms are part of the
convolutions here (`jaxdiff.evaluation.inception.folded`), so every convolution has a bias.

References:
  Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016.
  Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017 (FID): the features are those of its last pool.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SIDE = 299
"""Pixels of a side of what it was trained on."""

Size = int | tuple[int, int]


class Inception(nn.Module):
    """The network, without its auxiliary head; 11 GFLOP an image. Names are those of the published weights.

    Computed in full float32 whatever the device would rather do: features in bfloat16 are others.

    >>> shapes = jax.eval_shape(Inception().init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
    23832736
    """

    @nn.compact
    def __call__(self, x: Float[Array, "batch 299 299 3"]) -> tuple[Float[Array, "batch 2048"], Array]:
        """Images in [-1, 1] to features, and the logits of 1008 classes without bias (Inception score)."""
        x = self._conv(x, "Conv2d_1a_3x3", 32, 3, 2, "VALID")
        x = self._conv(x, "Conv2d_2a_3x3", 32, 3, 1, "VALID")
        x = self._conv(x, "Conv2d_2b_3x3", 64, 3)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = self._conv(x, "Conv2d_3b_1x1", 80, 1)
        x = self._conv(x, "Conv2d_4a_3x3", 192, 3, 1, "VALID")
        x = nn.max_pool(x, (3, 3), (2, 2))
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self._block_a(x, name, pooled)
        x = self._block_b(x, "Mixed_6a")
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = self._block_c(x, name, width)
        x = self._block_d(x, "Mixed_7a")
        x = self._block_e(x, "Mixed_7b", _average)
        x = self._block_e(x, "Mixed_7c", lambda x: nn.max_pool(x, (3, 3), padding="SAME"))
        features = x.mean(axis=(1, 2))
        logits = nn.Dense(1008, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="fc")(features)
        return features, logits

    def _conv(self, x: Array, name: str, channels: int, size: Size, stride: int = 1, padding: str = "SAME") -> Array:
        size = (size, size) if isinstance(size, int) else size
        conv = nn.Conv(channels, size, stride, padding, precision=jax.lax.Precision.HIGHEST, name=name)
        return nn.relu(conv(x))

    def _chain(self, x: Array, name: str, *layers: tuple[int, Size]) -> Array:
        """Convolutions in a row, name_1, name_2, ...; those of the last layers may be strided."""
        for i, (channels, size) in enumerate(layers, 1):
            x = self._conv(x, f"{name}_{i}", channels, size)
        return x

    def _block_a(self, x: Array, name: str, pooled: int) -> Array:
        parts = [
            self._conv(x, f"{name}_branch1x1", 64, 1),
            self._chain(x, f"{name}_branch5x5", (48, 1), (64, 5)),
            self._chain(x, f"{name}_branch3x3dbl", (64, 1), (96, 3), (96, 3)),
            self._conv(_average(x), f"{name}_branch_pool", pooled, 1),
        ]
        return jnp.concatenate(parts, axis=-1)

    def _block_b(self, x: Array, name: str) -> Array:
        """Half the resolution."""
        y = self._chain(x, f"{name}_branch3x3dbl", (64, 1), (96, 3))
        parts = [
            self._conv(x, f"{name}_branch3x3", 384, 3, 2, "VALID"),
            self._conv(y, f"{name}_branch3x3dbl_3", 96, 3, 2, "VALID"),
            nn.max_pool(x, (3, 3), (2, 2)),
        ]
        return jnp.concatenate(parts, axis=-1)

    def _block_c(self, x: Array, name: str, width: int) -> Array:
        row, column = (1, 7), (7, 1)
        twice = ((width, 1), (width, column), (width, row), (width, column), (192, row))
        parts = [
            self._conv(x, f"{name}_branch1x1", 192, 1),
            self._chain(x, f"{name}_branch7x7", (width, 1), (width, row), (192, column)),
            self._chain(x, f"{name}_branch7x7dbl", *twice),
            self._conv(_average(x), f"{name}_branch_pool", 192, 1),
        ]
        return jnp.concatenate(parts, axis=-1)

    def _block_d(self, x: Array, name: str) -> Array:
        """Half the resolution."""
        y = self._chain(x, f"{name}_branch3x3", (192, 1))
        z = self._chain(x, f"{name}_branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)))
        parts = [
            self._conv(y, f"{name}_branch3x3_2", 320, 3, 2, "VALID"),
            self._conv(z, f"{name}_branch7x7x3_4", 192, 3, 2, "VALID"),
            nn.max_pool(x, (3, 3), (2, 2)),
        ]
        return jnp.concatenate(parts, axis=-1)

    def _block_e(self, x: Array, name: str, pool) -> Array:
        y = self._chain(x, f"{name}_branch3x3", (384, 1))
        z = self._chain(x, f"{name}_branch3x3dbl", (448, 1), (384, 3))
        parts = [
            self._conv(x, f"{name}_branch1x1", 320, 1),
            self._conv(y, f"{name}_branch3x3_2a", 384, (1, 3)),
            self._conv(y, f"{name}_branch3x3_2b", 384, (3, 1)),
            self._conv(z, f"{name}_branch3x3dbl_3a", 384, (1, 3)),
            self._conv(z, f"{name}_branch3x3dbl_3b", 384, (3, 1)),
            self._conv(pool(x), f"{name}_branch_pool", 192, 1),
        ]
        return jnp.concatenate(parts, axis=-1)


def _average(x: Array) -> Array:
    """The mean over 3x3 pixels, of those that are there."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
