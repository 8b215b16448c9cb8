"""Bits per dimension of 8-bit images: the variational bound, and the exact likelihood of the probability-flow ODE.

Images v in 0..255 are x = v/127.5 - 1. The ODE's model is a density; with u uniform in [0, 1),

    -log2 P(v) <= -log2 p(x + (2 u - 1)/255) - D log2(2/255)   in the mean over u                 (1)

Sources: Ho et al. 2020 (DDPM), eq. 5; Theis et al. 2016, section 3.1 (uniform dequantisation); Song et al. 2021 (score
SDE), appendix D.2.
"""

import math

import jax
from jaxtyping import Array, Float, Key, UInt8

from jaxdiff.codecs import from_uint8
from jaxdiff.denoisers import Denoiser
from jaxdiff.losses import bits_per_dim, variational_bound
from jaxdiff.schedules import Schedule

LEVEL = 2.0 / 255.0
"""The width of a grey level in [-1, 1]."""


def bound_bits(
    keys: Key[Array, " batch"], denoise: Denoiser, images: UInt8[Array, "batch h w c"], schedule: Schedule
) -> Float[Array, " batch"]:
    """The variational bound of each image, an upper bound of its bits per dimension; T network evaluations.

    Args:
      keys: one an image.
      denoise: the model, its x_0 not thresholded more than at [-1, 1].
      images: 8-bit.
      schedule: discrete.
    """
    x_0 = from_uint8(images)
    return bits_per_dim(variational_bound(keys, denoise, x_0, schedule=schedule).total, x_0.shape[1:])


def dequantise(keys: Key[Array, " batch"], images: UInt8[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
    """x + (2 u - 1)/255: images spread evenly over their grey levels.

    >>> import jax.numpy as jnp
    >>> x = dequantise(jax.random.split(jax.random.key(0), 1), jnp.full((1, 8, 8, 1), 255, jnp.uint8))
    >>> bool(jnp.all(abs(x - 1.0) <= LEVEL / 2))
    True
    """
    u = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(keys)
    return from_uint8(images) + (u - 0.5) * LEVEL


def flow_bits(
    keys: Key[Array, " batch"],
    denoise: Denoiser,
    images: UInt8[Array, "batch h w c"],
    schedule: Schedule,
    *,
    exact: bool = False,
    tolerance: float = 1e-4,
    t_min: float | None = None,
) -> Float[Array, " batch"]:
    """Eq. (1) of each image with one u, which is unbiased for its mean. Needs the extra `jaxdiff[ode]`.

    Args:
      keys: one an image.
      denoise: the model, at any t; thresholds would make its flow another model's.
      images: 8-bit.
      schedule: continuous; `schedules.interpolate` makes a discrete one so.
      exact: the exact divergence, D derivatives a step, in place of Hutchinson's unbiased estimate with one.
      tolerance: of the solver, relative and absolute.
      t_min: see `jaxdiff.ode.log_likelihood`.
    """
    from jaxdiff import ode  # diffrax is an extra

    dequantise_keys, sign_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    x_0 = dequantise(dequantise_keys, images)
    likelihood = ode.log_likelihood(
        denoise,
        x_0,
        schedule=schedule,
        keys=None if exact else sign_keys,
        t_min=t_min,
        rtol=tolerance,
        atol=tolerance,
    )
    return bits_per_dim(-likelihood.log_prob - math.prod(x_0.shape[1:]) * math.log(LEVEL), x_0.shape[1:])
