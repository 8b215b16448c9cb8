"""CLIP's tokenizer from its folder: vocab.json and merges.txt, or tokenizer.json; the work is done by `tokenizers`.

Two files name the padding token, and do not always agree: special_tokens_map.json has the last word, unless
tokenizer_config.json lists added_tokens_decoder. That is how transformers reads them, and what tells Stable
Diffusion 1 (the end token) from 2 ("!").
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop.schedulers import read_json

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ROLES = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_LONGEST = 100_000  # characters of a prompt


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Texts to token ids.

    Attributes:
      backend: a `tokenizers.Tokenizer`.
      begin: id before each text.
      end: id after it.
      padding: id that fills the rest.
      max_tokens: of a text with begin and end.
      size: number of tokens.
    """

    backend: Any
    begin: int
    end: int
    padding: int
    max_tokens: int
    size: int

    def __call__(self, texts: Sequence[str], max_tokens: int | None = None) -> np.ndarray:
        """int32 [text, max_tokens]: begin, the text's tokens (as many as fit), end, padding."""
        most = min(self.max_tokens, max_tokens or self.max_tokens)
        rows = np.full((len(texts), most), self.padding, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.begin, *self._encode(text)[: most - 2], self.end]
            row[: len(ids)] = ids
        return rows

    def dropped(self, text: str, max_tokens: int | None = None) -> str:
        """What of a text does not fit, as text; empty if all fits."""
        most = min(self.max_tokens, max_tokens or self.max_tokens)
        return self.backend.decode(self._encode(text)[most - 2 :]).replace("</w>", " ").strip()

    def _encode(self, text: str) -> list[int]:
        if len(text) > _LONGEST:
            raise UserError(f"a prompt of {len(text):,} characters; at most {_LONGEST:,} are read")
        return self.backend.encode(text, add_special_tokens=False).ids


def read_tokenizer(folder: os.PathLike | str) -> Tokenizer:
    """The tokenizer of a CLIP text encoder, from a folder that transformers wrote.

    Raises:
      UserError: files are missing or damaged, or the package `tokenizers` is.
    """
    folder = Path(folder)
    config, special = _special_tokens(folder)
    backend = _backend(folder, special)
    ids = {role: backend.token_to_id(token) for role, token in special.items()}
    if absent := [special[role] for role, number in ids.items() if number is None]:
        raise UserError(f"{folder}: the vocabulary has no {' and no '.join(absent)}, which its config names")
    longest = config.get("model_max_length", 77)
    if not isinstance(longest, int | float) or longest < 2:
        raise UserError(f"{folder}: model_max_length is {longest!r}; it must be a number of tokens, 77 for CLIP")
    return Tokenizer(
        backend, ids["bos_token"], ids["eos_token"], ids["pad_token"], int(min(longest, 1e6)), backend.get_vocab_size()
    )


def _special_tokens(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """tokenizer_config.json, and which tokens begin, end and pad."""
    config_file, map_file = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = read_json(config_file) if config_file.is_file() else {}
    said = {role: config.get(role) for role in _ROLES}
    if map_file.is_file() and "added_tokens_decoder" not in config:
        said |= {role: token for role, token in read_json(map_file).items() if role in _ROLES}
    special = {}
    for role, token in said.items():
        token = token.get("content") if isinstance(token, dict) else token
        special[role] = _ROLES[role] if token is None else token
        if not isinstance(special[role], str):
            raise UserError(f"{folder}: {role} is {special[role]!r}; it must be a text")
    return config, special


def _backend(folder: Path, special: dict[str, str]) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError("prompts need the package tokenizers: pip install 'jaxdiff[text]'") from None
    words, merges, whole = (folder / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
    if not (words.is_file() and merges.is_file()) and not whole.is_file():
        raise UserError(f"{folder} has neither vocab.json and merges.txt nor tokenizer.json")
    try:
        if not whole.is_file():
            return _from_words(tokenizers, words, merges, special)
        backend = tokenizers.Tokenizer.from_file(str(whole))
    except Exception as error:  # tokenizers raises Exception itself
        raise UserError(f"{folder} holds no tokenizer that can be read: {error}") from None
    backend.no_padding()
    backend.no_truncation()
    return backend


def _from_words(tokenizers: Any, words: Path, merges: Path, special: dict[str, str]) -> Any:
    """CLIP's tokenizer, as transformers builds it (CLIPTokenizer)."""
    end = special["eos_token"]
    model = tokenizers.models.BPE.from_file(str(words), str(merges), unk_token=end, end_of_word_suffix="</w>")
    backend = tokenizers.Tokenizer(model)
    normalizers, regex = tokenizers.normalizers, tokenizers.Regex
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = tokenizers.pre_tokenizers.Split(regex(_WORDS), behavior="removed", invert=True)
    bytes_of = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, bytes_of])
    backend.decoder = tokenizers.decoders.ByteLevel()
    known = [token for token in dict.fromkeys(special.values()) if backend.token_to_id(token) is not None]
    backend.add_special_tokens(known)
    return backend
