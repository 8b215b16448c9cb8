"""Latents: an autoencoder's mean of each image, scaled to about unit variance."""

from collections.abc import Callable
from typing import Any

import jax

from jaxdiff.codecs.base import Codec
from jaxdiff.codecs.pixels import pixels


def latents(network: Any, shrink: int, channels: int, scale: float) -> Codec:
    """x = scale mean(encoder(image)); its params are the autoencoder's.

    Args:
      network: a `jaxdiff.models.Autoencoder`.
      shrink: pixels a side of one latent.
      channels: of the latents.
      scale: what latents are multiplied by.

    Source: Rombach et al. 2022 (latent diffusion), section 3.1, and its released code for the scale.
    """

    def encode(params: Any, image: jax.Array) -> jax.Array:
        x = pixels().encode(None, image)
        return scale * network.apply({"params": params}, x, method="encode").mean

    def decode(params: Any, x: jax.Array) -> jax.Array:
        return network.apply({"params": params}, x / scale, method="decode")

    def shape(image: tuple[int, int, int]) -> tuple[int, int, int]:
        if image[2] != network.out_channels or image[0] % shrink or image[1] % shrink:
            wanted = f"{network.out_channels} channels and sides that are multiples of {shrink}"
            raise ValueError(f"images are {'x'.join(map(str, image))}; the autoencoder takes {wanted}")
        return image[0] // shrink, image[1] // shrink, channels

    def image_shape(x: tuple[int, int, int]) -> tuple[int, int, int]:
        return x[0] * shrink, x[1] * shrink, network.out_channels

    return Codec(shape, image_shape, encode, decode)


def autoencoder(open_autoencoder: Callable[[str], tuple[Any, Any]], folder: str = "", scale: float = 0.18215) -> Codec:
    """Latents of an AutoencoderKL, such as Stable Diffusion's, computed in the step; it is not trained.

    Args:
      open_autoencoder: folder -> (network, params).
      folder: of its config.json and weights, e.g. the `vae` of a Stable Diffusion folder; empty: Stable Diffusion's
        shapes without weights, which is enough for a plan.
      scale: what latents are multiplied by.
    """
    network, params = open_autoencoder(folder)
    codec = latents(network, 2 ** (len(network.channel_mults) - 1), network.latent_channels, scale)
    return codec._replace(params=params)
