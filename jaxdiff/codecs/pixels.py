"""Pixels themselves: bytes as numbers in [-1, 1]."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxdiff.codecs.base import Codec


def from_uint8(image: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """0..255 to [-1, 1]: image/127.5 - 1, float32.

    >>> from_uint8(jnp.array([0, 255], jnp.uint8)).tolist()
    [-1.0, 1.0]
    """
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(x: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Images in [-1, 1] to 0..255, rounded; what lies outside is clipped. The inverse of `from_uint8`.

    >>> to_uint8(np.array([-1.0, 0.0, 1.0, 7.0])).tolist()
    [0, 128, 255, 255]
    """
    return np.clip(np.rint((np.asarray(x, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def pixels() -> Codec:
    """x is the image itself, in [-1, 1].

    >>> pixels().shape((8, 8, 3))
    (8, 8, 3)
    """

    def encode(params: Any, image: jax.Array) -> jax.Array:
        del params
        return from_uint8(image)

    return Codec(lambda shape: shape, lambda shape: shape, encode, lambda params, x: x)
