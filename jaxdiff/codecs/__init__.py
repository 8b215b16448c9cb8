"""Codecs: how an image is written as the x that is diffused. Only they know of bytes."""

from jaxdiff.codecs.base import Codec
from jaxdiff.codecs.latents import autoencoder, latents
from jaxdiff.codecs.pixels import from_uint8, pixels, to_uint8
from jaxdiff.family import Family

CODECS = Family("codec", {"pixels": pixels, "autoencoder": autoencoder}, given=("open_autoencoder",))

__all__ = ["CODECS", "Codec", "autoencoder", "from_uint8", "latents", "pixels", "to_uint8"]
