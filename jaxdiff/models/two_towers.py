"""Two towers: a picture and its text as two vectors, whose product says how well they go together.

    scores[i, j] = exp(s) <f(image_i), g(text_j)>,    |f| = |g| = 1                                      (1)

f is the hourglass's way down: patches, convolutions where there are many pixels, attention where there are few, and the
mean; g is the pooled text of the conditioner's encoder, which is trained along. It draws nothing: it is the judge of
what others draw from a text, see `jaxdiff.objectives.contrastive`.

Source: Radford et al. 2021 (CLIP), section 2.3.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.models import conditions
from jaxdiff.models.attention import rms_norm
from jaxdiff.models.conditions import Cond
from jaxdiff.models.dit import positions
from jaxdiff.models.hourglass import ConvBlock, Hourglass, Transformer
from jaxdiff.models.layers import Dense, Dropout, Keys, space_to_depth
from jaxdiff.models.network import NetworkOptions

MOST_SCALE = 100.0
"""The largest exp(s), as published."""


@dataclasses.dataclass(frozen=True)
class TwoTowers(NetworkOptions):
    """A judge of pictures and texts, see jaxdiff.models.two_towers; trained by the objective contrastive."""

    draws: ClassVar[bool] = False
    patch: int = 2
    """Side of the squares of pixels that the first level sees as one pixel each."""
    widths: tuple[int, ...] = (48, 96, 192)
    """Features of each level, multiples of 4; each has half the resolution of the one before, the last attends."""
    blocks: tuple[int, ...] = (1, 1, 2)
    """Blocks of each level: convolutions, of the last transformer blocks."""
    num_heads: int = 4
    """Attention heads, a divisor of the last width."""
    features: int = 128
    """Length of the vectors."""
    dropout: float = 0.0
    """Dropout rate of what attention and MLP add, and of both towers' last features."""

    def check(self, shape: tuple[int, ...], cond: Mapping[str, Any] | Iterable[str] = ()) -> None:
        """Refuse options that do not fit each other, the images or the conditions.

        >>> TwoTowers().check((32, 32, 3), ["label"])
        Traceback (most recent call last):
        ...
        ValueError: kind two_towers needs texts: set diffusion.conditioner to text, model.num_classes to 0
        """
        if not 1 <= self.features <= 8192:
            raise ValueError(f"features is {self.features}; it must be in 1..8192")
        if set(cond) - {"mask"} != {"text", "pooled"}:
            raise ValueError("kind two_towers needs texts: set diffusion.conditioner to text, model.num_classes to 0")
        same = ("patch", "widths", "blocks", "num_heads", "dropout")
        Hourglass(**{name: getattr(self, name) for name in same}).check(shape, cond)

    def module(self, out_channels: int) -> "TwoTowersModule":
        """The network of these options; it has no channels to put out."""
        del out_channels
        return TwoTowersModule(self)


class TwoTowersModule(nn.Module):
    """Both towers, from clean images and their texts to vectors of length exp(s / 2).

    Attributes:
      options: see `TwoTowers`.

    >>> import jax
    >>> net = TwoTowers(widths=(8, 16), blocks=(1, 1), num_heads=2, features=4).module(3)
    >>> given = jnp.zeros((2, 4, 8, 3)), jnp.zeros(2), {"text": jnp.ones((2, 3, 8)), "pooled": jnp.ones((2, 8))}
    >>> net.apply(net.init(jax.random.key(0), *given), *given).shape
    (2, 2, 4)
    """

    options: TwoTowers

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch h w c"],
        t: Float[Array, " batch"],
        cond: Cond = None,
        *,
        dropout_keys: Keys = None,
    ) -> Float[Array, "batch 2 features"]:
        """f(x) and g(text), both times exp(s / 2).

        Args:
          x: clean images, in about [-1, 1].
          t: not read.
          cond: the text, its mask and the pooled text, see `jaxdiff.models.conditions`.
          dropout_keys: one key an example; None turns dropout off.

        Raises:
          ValueError: sizes that do not fit, or no text (see `TwoTowers.check`).
        """
        del t
        options, cond = self.options, conditions.by_name(cond)
        options.check(x.shape[1:], cond)
        keys = dropout_keys if options.dropout else None

        def dense(features: int, name: str) -> nn.Dense:
            return Dense(features, name=name)

        y = dense(options.widths[0], "proj_in")(space_to_depth(x, options.patch))
        for i, count in enumerate(options.blocks[:-1]):
            for j in range(count):
                y = ConvBlock("float32", name=f"block_{i}_{j}")(y, None)
            y = dense(options.widths[i + 1], f"merge_{i}")(space_to_depth(y, 2))
        batch, h, w, width = y.shape
        tokens = y.reshape(batch, h * w, width) + positions(h, w, width)[None]
        for j in range(options.blocks[-1]):
            name = f"transformer_{j}"
            tokens = Transformer(options.num_heads, 4, options.dropout, "float32", name=name)(tokens, None, keys=keys)
        log_scale = self.param("log_scale", nn.initializers.constant(jnp.log(1 / 0.07)), ())
        towers = {"image": rms_norm(tokens, "norm_out").mean(axis=1), "text": cond["pooled"]}
        for name, value in towers.items():
            value = Dropout(options.dropout, name=f"dropout_{name}")(value, keys)
            value = dense(options.features, f"{name}_out")(value)
            towers[name] = value / jnp.linalg.norm(value, axis=-1, keepdims=True)
        scale = jnp.minimum(log_scale, jnp.log(MOST_SCALE))
        return jnp.stack([towers["image"], towers["text"]], axis=1) * jnp.exp(scale / 2)
