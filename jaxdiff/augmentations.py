"""Augmentation of training images on the device, by name (`AUGMENTATIONS`): crops, and EDM's non-leaking pipeline.

A member's function is pure: image i of step n is changed by its own key, which is of (seed, step, row). What must not
leak into samples tells the network what it did: a vector, the condition "augment", zero for an image left alone, which
is what samples are drawn under.

Source: Karras et al. 2022 (EDM), appendix F.2 and table 6; Karras et al. 2020 (ADA), appendix B.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from jaxdiff.family import Family

Image = Float[Array, "h w c"]


class Augmentation(NamedTuple):
    """How an image is changed.

    Attributes:
      apply: (key, image [h, w, c] in [-1, 1]) -> (image, what was done to it [size]).
      size: of that vector; 0 where the network is not told.
    """

    apply: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    size: int = 0


def none() -> None:
    """Images as they are.

    >>> none()
    """


def crop(padding: int = 4) -> Augmentation:
    """A crop of the image's size, anywhere in it once `padding` pixels are reflected at each side.

    Samples are of what it makes: moved images.

    Args:
      padding: >= 1,

    >>> crop(1).apply(jax.random.key(0), jnp.zeros((4, 4, 1)))[0].shape
    (4, 4, 1)
    """
    if padding < 1:
        raise ValueError(f"padding must be at least 1, got {padding}")

    def apply(key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        corner = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(padded, (*corner, 0), image.shape), jnp.zeros(0)

    return Augmentation(apply)


def edm(p: float = 0.12, scale: float = 0.2, stretch: float = 0.2, shift: float = 0.125) -> Augmentation:
    """EDM's non-leaking pipeline: flips, scaling, rotation, stretching along any axis, shifts; the network is told.

    The image is mirrored left to right half of the time. Each of the following happens with probability p: top to
    bottom (half of the time), scaling by 2^(scale z), rotation by any angle, stretching by 2^(stretch z) along an axis
    at angle r and shrinking across it, a shift by shift (z_1 w, z_2 h); z normal. The nine numbers of the vector are
    1 where mirrored, twice; z; cos - 1 and sin of the rotation; z (cos r, sin r); (z_1, z_2). Images are read
    bilinearly and reflected at their sides (EDM's code also doubles them by a wavelet filter first).

    Args:
      p: in [0, 1]; EDM's is 0.12 on CIFAR-10 and 0.15 on FFHQ and AFHQ.
      scale: standard deviation of the octaves.
      stretch: likewise.
      shift: standard deviation, as a share of the sides.

    >>> edm().apply(jax.random.key(0), jnp.zeros((4, 4, 1)))[1].shape
    (9,)
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p}")

    def apply(key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        flip_key, chance_key, uniform_key, normal_key = jax.random.split(key, 4)
        flip_x, flip_y = jax.random.bernoulli(flip_key, 0.5, (2,))
        flip_y, *happens = jax.random.bernoulli(chance_key, p, (5,)) & jnp.array([flip_y, True, True, True, True])
        theta, r = jax.random.uniform(uniform_key, (2,), minval=-1.0) * jnp.array([math.pi, math.pi / 2])
        z_scale, z_stretch, z_x, z_y = jax.random.normal(normal_key, (4,))
        z_scale, theta, z_stretch = (happens[i] * x for i, x in enumerate((z_scale, theta, z_stretch)))
        move = happens[3] * jnp.stack([z_x, z_y])

        image = jnp.where(flip_x, image[:, ::-1], image)
        image = jnp.where(flip_y, image[::-1], image)
        grow = jnp.exp2(stretch * z_stretch)
        matrix = jnp.exp2(-scale * z_scale) * _rotation(-theta)
        matrix = matrix @ _rotation(r) @ jnp.diag(jnp.stack([1 / grow, grow])) @ _rotation(-r)
        matrix = jnp.where(z_stretch == 0, jnp.exp2(-scale * z_scale) * _rotation(-theta), matrix)  # without rounding
        h, w, _ = image.shape
        parameters = [flip_x, flip_y, z_scale, jnp.cos(theta) - 1, jnp.sin(theta)]
        parameters += [z_stretch * jnp.cos(r), z_stretch * jnp.sin(r), *move]
        return warp(image, matrix, shift * move * jnp.array([w, h])), jnp.stack(parameters).astype(jnp.float32)

    return Augmentation(apply, 9)


def _rotation(angle: jax.Array) -> Float[Array, "2 2"]:
    return jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])


def warp(image: Image, matrix: Float[Array, "2 2"], shift: Float[Array, " 2"]) -> Image:
    """image(matrix (p - shift)) at every place p = (x, y), seen from the centre, y downwards.

    >>> quarter = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> warp(jnp.arange(4.0).reshape(2, 2, 1), quarter, jnp.zeros(2))[..., 0].tolist()
    [[2.0, 0.0], [3.0, 1.0]]
    """
    h, w, _ = image.shape
    centre = jnp.array([(w - 1) / 2, (h - 1) / 2])
    y, x = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    place = jnp.stack([x, y], axis=-1) - (centre + shift)[None, None]
    x, y = jnp.moveaxis(jnp.einsum("ij,hwj->hwi", matrix, place, precision="highest"), -1, 0) + centre[:, None, None]
    read = jax.vmap(lambda channel: map_coordinates(channel, [y, x], order=1, mode="mirror"), -1, -1)
    return read(image)


AUGMENTATIONS = Family("augmentation", {"none": none, "crop": crop, "edm": edm})
"""Members give an `Augmentation`, or None."""
