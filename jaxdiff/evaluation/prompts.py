"""How well pictures follow their prompts: retrieval among candidates, the colour that is named, and copies.

Vectors of pictures and texts are those of a judge, see `jaxdiff.models.two_towers`; the judge's own mistakes are in
every number, so that real pictures and shuffled prompts, measured alike, are the ceiling and the floor.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

PROMPTED = ("prompt", "style", "colour", "nearest")
"""prompt: a picture's own text is the best, or one of the 5 best, of 100; style: and of all styles the named one;
colour: by hue, the named one; nearest: the median distance to the training picture that is most alike."""
CANDIDATES = 100
"""Texts among which a picture's own is looked for."""


def candidates(texts: Sequence[str], pool: Sequence[str]) -> Int[np.ndarray, "n candidates"]:
    """For each text the numbers, in the pool, of itself and of CANDIDATES - 1 other texts, the same every time.

    Args:
      texts: of the pictures, all of them in the pool.
      pool: distinct texts, at least CANDIDATES.

    Raises:
      ValueError: the pool is too small.
    """
    if len(pool) < CANDIDATES:
        raise ValueError(f"{len(pool)} different texts, and one is to be found among {CANDIDATES}")
    numbers, rng = {text: i for i, text in enumerate(pool)}, np.random.Generator(np.random.Philox(0))
    rows = np.empty((len(texts), CANDIDATES), np.int64)
    for row, text in zip(rows, texts, strict=True):
        others = rng.permutation(len(pool) - 1)[: CANDIDATES - 1]
        row[0], row[1:] = numbers[text], others + (others >= numbers[text])
    return rows


def ranks(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "m d"], rows: Int[np.ndarray, "n k"]
) -> Int[np.ndarray, " n"]:
    """How many of its candidates' texts go better with a picture than the first of them, its own.

    >>> ranks(np.eye(2), np.array([[1.0, 0.0], [2.0, 1.0]]), np.array([[0, 1], [1, 0]])).tolist()
    [1, 0]
    """
    scores = np.take_along_axis(images @ texts.T, rows, axis=1)
    return (scores[:, 1:] >= scores[:, :1]).sum(axis=1)


def nearest(
    images: UInt8[np.ndarray, "n h w c"], known: UInt8[np.ndarray, "m h w c"], chunk: int = 1024
) -> Float[np.ndarray, " n"]:
    """Root mean square difference to the most alike of the known pictures, of pixels in [0, 1].

    >>> nearest(np.full((1, 1, 2, 1), 51, np.uint8), np.array([[[[0], [0]]], [[[255], [255]]]], np.uint8)).round(6)
    array([0.2])
    """
    flat = images.reshape(len(images), -1).astype(np.float64) / 255
    squares, least = (flat**2).sum(1), np.full(len(images), np.inf)
    for start in range(0, len(known), chunk):
        other = known[start : start + chunk].reshape(-1, flat.shape[1]).astype(np.float64) / 255
        least = np.minimum(least, (squares[:, None] + (other**2).sum(1) - 2 * flat @ other.T).min(1))
    return np.sqrt(np.maximum(least, 0.0) / flat.shape[1])


HUES = (  # degrees from which each begins
    (0, "red"),
    (9, "orange"),
    (36, "yellow"),
    (65, "green"),
    (180, "blue"),
    (255, "purple"),
    (300, "pink"),
    (345, "red"),
)


def colour_of(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """The colour that most of a picture has, apart from its white ground; "white" where there is nothing else.

    By hue; with little of it black, grey or white; dark orange is brown, and pale red pink.

    >>> colour_of(np.array([[[255, 255, 255], [250, 220, 30]]], np.uint8))
    'yellow'
    """
    rgb = image.reshape(-1, 3).astype(np.float64) / 255
    high, low = rgb.max(1), rgb.min(1)
    chroma = high - low
    ground = low > 0.9
    if ground.mean() > 0.97:
        return "white"
    rgb, high, chroma = rgb[~ground], high[~ground], chroma[~ground]
    r, g, b = rgb.T
    with np.errstate(divide="ignore", invalid="ignore"):
        sector = np.select([high == r, high == g], [(g - b) / chroma % 6, (b - r) / chroma + 2], (r - g) / chroma + 4)
    hue = np.where(chroma > 0, 60 * sector, 0.0)
    names = np.select([hue >= start for start, _ in reversed(HUES)], [name for _, name in reversed(HUES)], "red")
    names = np.where((hue >= 9) & (hue < 45) & (high < 0.8) & (chroma < 0.75 * high), "brown", names)
    names = np.where((names == "red") & (chroma < 0.35 * high) & (high > 0.85), "pink", names)
    grey = chroma < 0.15
    names = np.where(grey, np.select([high < 0.35, high < 0.75], ["black", "grey"], "white"), names)
    kinds, counts = np.unique(names, return_counts=True)
    return str(kinds[counts.argmax()])


def coloured(images: UInt8[np.ndarray, "n h w 3"], named: Mapping[int, str]) -> Bool[np.ndarray, " k"]:
    """Whether each picture that has a colour in `named`, by its number, is mostly of it."""
    return np.array([colour_of(images[i]) == colour for i, colour in named.items()])
