"""Words of captions as tokens: the frequent ones from a vocabulary, all others as UTF-8 bytes."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

PADDING, BEGIN = 0, 1
BYTES = 2  # the token of byte 0
WORDS = BYTES + 256  # the token of the vocabulary's first word
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")  # green, woman's, ; each other sign by itself


class Words(NamedTuple):
    """Texts to token ids: small and capital letters are one, and so are forms that Unicode calls compatible.

    A word that is not in the vocabulary is spelled, after a space, in UTF-8 bytes: every text of every language has its
    own tokens.

    Attributes:
      vocabulary: words, from `frequent`.
      max_tokens: of a text, its first included, which says that it begins.

    >>> words = Words(("green", "heart"), 5)
    >>> words(["Green heart", "", "a heart"])["tokens"].tolist()
    [[1, 258, 259, 0, 0], [1, 0, 0, 0, 0], [1, 34, 99, 259, 0]]
    >>> words.dropped("green green heart heart green")
    'green'
    """

    vocabulary: tuple[str, ...]
    max_tokens: int

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """{"tokens": int32 [texts, max_tokens], "cut": bool [texts], whether there were more}."""
        numbers = {word: WORDS + number for number, word in enumerate(self.vocabulary)}
        rows, cut = np.full((len(texts), self.max_tokens), PADDING, np.int32), np.zeros(len(texts), bool)
        for row, (line, text) in zip(rows, enumerate(texts), strict=True):
            ids = [BEGIN, *(token for word in split(text) for token in _tokens(word, numbers))]
            cut[line] = len(ids) > self.max_tokens
            row[: len(ids)] = ids[: self.max_tokens]
        return {"tokens": rows, "cut": cut}

    def dropped(self, text: str) -> str:
        """The words of a text that do not fit, the first of them perhaps in part; empty if all fit."""
        numbers, count, words = dict.fromkeys(self.vocabulary, 0), 1, split(text)
        for i, word in enumerate(words):
            count += len(_tokens(word, numbers))
            if count > self.max_tokens:
                return " ".join(words[i:])
        return ""


def split(text: str) -> list[str]:
    """The words and signs of a text.

    >>> split("A woman's HAT, 50% off!")
    ['a', "woman's", 'hat', ',', '50', '%', 'off', '!']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def frequent(texts: Iterable[str], most: int) -> tuple[str, ...]:
    """The words of at least two different texts, the most frequent first and in order of the alphabet, so many at most.

    A word of a single text is spelled instead, so that the tokens of bytes are learned too.

    >>> frequent(["green heart", "red heart", "a red, red rose"], 9)
    ('heart', 'red')
    """
    counts = Counter(word for text in set(texts) for word in set(split(text)))
    known = sorted((word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word))
    return tuple(known[:most])


def _tokens(word: str, numbers: dict[str, int]) -> list[int]:
    return [numbers[word]] if word in numbers else [BYTES + byte for byte in f" {word}".encode(errors="replace")]
