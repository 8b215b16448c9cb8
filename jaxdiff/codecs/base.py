"""The contract of a codec: from images to what is diffused, and back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Codec(NamedTuple):
    """A representation x of images.

    Attributes:
      shape: (h, w, c) of an image -> the shape of its x.
      image_shape: the way back.
      encode: (params, uint8 [batch, h, w, c]) -> float32 [batch, *shape], about [-1, 1]; params are the codec's own.
      decode: (params, x) -> float [batch, h, w, c], an image's range being [-1, 1].
      params: where it has parameters: theirs, or their shapes and dtypes alone.
    """

    shape: Callable[[tuple[int, int, int]], tuple[int, int, int]]
    image_shape: Callable[[tuple[int, int, int]], tuple[int, int, int]]
    encode: Callable[[Any, jax.Array], jax.Array]
    decode: Callable[[Any, jax.Array], jax.Array]
    params: Any = None
