"""Text: tokens of a sentence, encoded by a network of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning.base import Cond, Conditioner


def text(network: Any, tokenize: Callable[[Sequence[str]], np.ndarray], width: int) -> Conditioner:
    """cond["text"], float32 [batch, tokens, width]: a text encoder's output; no words say nothing.

    Args:
      network: apply(variables, tokens [batch, n]) -> [batch, n, width]; the conditioner's params are its own.
      tokenize: texts -> int32 [texts, n].
      width: features a token.

    Source: Rombach et al. 2022 (latent diffusion), section 3.3.
    """
    empty = tokenize([""])

    def embed(params: Any, batch: dict[str, jax.Array]) -> Cond:
        return {"text": network.apply({"params": params}, batch["tokens"])}

    def null(params: Any, num: int) -> Cond:
        return {"text": jnp.repeat(embed(params, {"tokens": jnp.asarray(empty)})["text"], num, axis=0)}

    def parse(words: Sequence[str], num: int) -> dict[str, np.ndarray]:
        if not words:
            raise ValueError('it makes images of a text: give --prompt "..."')
        return {"tokens": tokenize(words)[np.arange(num) % len(words)]}

    return Conditioner({"text": jax.ShapeDtypeStruct((empty.shape[1], width), jnp.float32)}, embed, null, parse)
