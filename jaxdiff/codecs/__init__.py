"""Codecs: how an image is written as the x that is diffused. Only they know of bytes."""

from jaxdiff.codecs.base import Codec
from jaxdiff.codecs.latents import latents
from jaxdiff.codecs.pixels import pixels
from jaxdiff.family import Family

CODECS = Family("codec", {"pixels": pixels})

__all__ = ["CODECS", "Codec", "latents", "pixels"]
