"""A small text encoder that is trained with the network that it tells: tokens to text, mask and pooled vector."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array

from jaxdiff.models.attention import rms_norm
from jaxdiff.models.conditions import Cond
from jaxdiff.models.dit import positions
from jaxdiff.models.hourglass import Transformer
from jaxdiff.models.layers import Keys


class CaptionEncoder(nn.Module):
    """A bidirectional transformer over tokens, of which 0 is padding: as if it were not there.

    Attributes:
      vocabulary: number of tokens.
      max_tokens: of a text.
      width: features of a token, a multiple of heads and of 4.
      layers: how many.
      heads: of attention.

    >>> import jax, jax.numpy as jnp
    >>> net = CaptionEncoder(9, 5, 8, 1, 2)
    >>> cond = {"tokens": jnp.array([[1, 7, 8, 0, 0]])}
    >>> said = net.apply(net.init(jax.random.key(0), cond), cond)
    >>> said["text"].shape, said["mask"].tolist(), said["pooled"].shape
    ((1, 5, 8), [[True, True, True, False, False]], (1, 8))
    """

    says: ClassVar[tuple[str, ...]] = ("text", "mask", "pooled")
    vocabulary: int
    max_tokens: int
    width: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, cond: Mapping[str, Array]) -> dict[str, Array]:
        """text [batch, tokens, width], mask [batch, tokens], and pooled, the mean of the tokens that the mask keeps."""
        tokens = cond["tokens"]
        mask = tokens != 0
        init = nn.initializers.normal(1.0)
        x = nn.Embed(self.vocabulary, self.width, embedding_init=init, name="tokens")(tokens)
        x += 0.5 * positions(1, tokens.shape[1], self.width)[None]
        for i in range(self.layers):
            x = Transformer(self.heads, 4, 0.0, "float32", name=f"layer_{i}")(x, None, None, mask)
        x = rms_norm(x, "norm_out")
        counted = mask[..., None].astype(x.dtype)
        pooled = (x * counted).sum(1) / counted.sum(1)
        return {"text": x, "mask": mask, "pooled": pooled}


class Encoded(nn.Module):
    """A network and the encoder of what it is told, as one: parameters `network` and `encoder`, trained together.

    Attributes:
      encoder: cond -> cond.
      network: (x_t, t, cond, dropout_keys=None) -> prediction.
    """

    encoder: nn.Module
    network: nn.Module

    def __call__(self, x: Array, t: Array, cond: Cond = None, *, dropout_keys: Keys = None) -> Any:
        """The network's prediction under a cond that is encoded, or will be."""
        assert isinstance(cond, Mapping)
        return self.network(x, t, self.encode(cond), dropout_keys=dropout_keys)

    def encode(self, cond: Mapping[str, Array]) -> Mapping[str, Array]:
        """The cond as the network takes it; what has been encoded stays as it is."""
        if "tokens" not in cond:
            return cond
        rest = {name: value for name, value in cond.items() if name != "tokens"}
        return {**rest, **self.encoder(cond)}
