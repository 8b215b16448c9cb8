"""Pixels themselves: bytes as numbers in [-1, 1]."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.codecs.base import Codec


def pixels() -> Codec:
    """x = image/127.5 - 1, float32.

    >>> x = pixels().encode(None, jnp.array([0, 255], jnp.uint8))
    >>> x.tolist()
    [-1.0, 1.0]
    """

    def encode(params: Any, image: jax.Array) -> jax.Array:
        del params
        return image.astype(jnp.float32) / 127.5 - 1.0

    return Codec(lambda shape: shape, lambda shape: shape, encode, lambda params, x: x)
