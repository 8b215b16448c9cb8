"""Text: a caption, encoded by a small transformer that is trained with the network, or by a frozen network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning.base import Cond, Conditioner
from jaxdiff.conditioning.words import WORDS, Words, frequent
from jaxdiff.models.caption_encoder import CaptionEncoder

SHOWN = 8  # captions of the data in a default picture


def text(
    *,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    max_tokens: int = 24,
    words: int = 4096,
    captions: Sequence[Sequence[str]] = (),
    known: Mapping[str, Sequence[str]] | None = None,
) -> Conditioner:
    """cond["tokens"], int32 [batch, max_tokens]: what a trained encoder makes text, mask and pooled of.

    Guidance goes away from the empty text, which is also what is said where the condition is hidden.

    Args:
      width: features of a token, a multiple of heads.
      layers: of the encoder.
      heads: of its attention.
      max_tokens: of a text, one of them for its beginning; what is beyond is not read.
      words: how many words the vocabulary has at most; others are spelled in bytes.
      captions: of the data's records; the vocabulary is made of them.
      known: the vocabulary, and texts to show, of a run that is there already, in place of captions.

    Raises:
      ValueError: a number out of range.

    >>> conditioner = text(max_tokens=4, captions=[["a red heart"], ["a red cross"]])
    >>> conditioner.parse(["red red"], 1)["tokens"].tolist(), conditioner.null(None, 1)["tokens"].tolist()
    ([[1, 259, 259, 0]], [[1, 0, 0, 0]])
    """
    for name, value, most in (
        ("width", width, 8192),
        ("layers", layers, 100),
        ("heads", heads, 1024),
        ("max_tokens", max_tokens, 4096),
        ("words", words, 1_000_000),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name} is {value}; it must be in 1..{most}")
    if width % heads or width % 4:
        raise ValueError(f"width is {width}; it must be a multiple of heads, {heads}, and of 4 (sin and cos)")
    if known is None:
        texts = [text for record in captions for text in record[:1]]
        shown = tuple(dict.fromkeys(texts[i] for i in np.linspace(0, len(texts) - 1, SHOWN, dtype=int) if texts))
        known = {"vocabulary": frequent((text for record in captions for text in record), words), "examples": shown}
    vocabulary = tuple(known.get("vocabulary", ()))[:words]
    tokenize = Words(vocabulary, max_tokens)
    empty = jnp.asarray(tokenize([""])["tokens"])

    def parse(prompts: Sequence[str], num: int) -> dict[str, np.ndarray]:
        if not prompts:
            raise ValueError('it draws what a text says: give --prompt "..."')
        return {"tokens": tokenize(prompts)["tokens"][np.arange(num) % len(prompts)]}

    return Conditioner(
        {"tokens": jax.ShapeDtypeStruct((max_tokens,), jnp.int32)},
        lambda params, batch: {"tokens": batch["tokens"]},
        lambda params, num: {"tokens": jnp.repeat(empty, num, axis=0)},
        parse,
        tuple(known.get("examples", ())),
        tokenize,
        dropped=tokenize.dropped,
        encoder=CaptionEncoder(WORDS + words, max_tokens, width, layers, heads),
        known={"vocabulary": vocabulary, "examples": tuple(known.get("examples", ()))},
    )


def frozen_text(
    network: Any, tokenize: Callable[[Sequence[str]], np.ndarray], width: int, dropped: Callable[[str], str]
) -> Conditioner:
    """cond["text"], float32 [batch, tokens, width]: a frozen text encoder's output; no words say nothing.

    Args:
      network: apply(variables, tokens [batch, n]) -> [batch, n, width]; the conditioner's params are its own.
      tokenize: texts -> int32 [texts, n].
      width: features a token.
      dropped: text -> what of it does not fit, "" if all does.

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

    spec = {"text": jax.ShapeDtypeStruct((empty.shape[1], width), jnp.float32)}
    return Conditioner(spec, embed, null, parse, dropped=dropped)
