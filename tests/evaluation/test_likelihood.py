"""Bits per dimension against densities known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxdiff import schedules
from jaxdiff.evaluation import likelihood
from tests.oracles import gaussian

SHAPE = (2, 2, 1)
MEAN, SCALE = 0.2, 0.3


def denoiser(schedule):
    flat = gaussian([MEAN] * 4, [SCALE] * 4).denoiser(schedule)

    def denoise(x_t, t):
        p = flat(x_t.reshape(-1, 4), t)
        return jax.tree.map(lambda a: a.reshape(x_t.shape), p)

    return denoise


def images(count):
    x = np.random.default_rng(0).normal(MEAN, SCALE, (count, *SHAPE))
    return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)


def level_bits(v):
    """-log2 of each grey level's mass under N(MEAN, SCALE^2), mean over an image's pixels."""
    x = v / 127.5 - 1.0
    mass = norm.cdf(x + 1 / 255, MEAN, SCALE) - norm.cdf(x - 1 / 255, MEAN, SCALE)
    return -np.log2(mass).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("exact", [True, False])
def test_flow_gives_the_bits_of_the_grey_levels(exact):
    """The density hardly varies within a level, so that uniform noise costs nothing: bits to 1 % of a bit."""
    schedule = schedules.continuous_vp()
    v = images(6)
    keys = jax.random.split(jax.random.key(1), 6)
    bits = jax.jit(lambda keys, v: likelihood.flow_bits(keys, denoiser(schedule), v, schedule, exact=exact, t_min=0.0))(
        keys, jnp.asarray(v)
    )
    np.testing.assert_allclose(np.mean(bits), np.mean(level_bits(v)), atol=0.01)


def test_bound_is_above_the_bits_and_near_them():
    """With the variance beta, which is nearly the best at every step of a fine schedule, the first included."""
    schedule = schedules.cosine(200)
    plain = denoiser(schedule)

    def denoise(x_t, t):
        return plain(x_t, t)._replace(fraction=jnp.ones_like(x_t))

    v = images(64)
    keys = jax.random.split(jax.random.key(2), 64)
    bits = jax.jit(lambda keys, v: likelihood.bound_bits(keys, denoise, v, schedule))(keys, jnp.asarray(v))
    gap = np.mean(bits) - np.mean(level_bits(v))
    error = np.std(np.asarray(bits) - level_bits(v)) / 8
    assert -3 * error < gap < 0.15


def test_dequantised_images_fill_their_levels_evenly():
    v = jnp.full((400, 4, 4, 1), 7, jnp.uint8)
    x = np.asarray(likelihood.dequantise(jax.random.split(jax.random.key(0), 400), v))
    place = (x - (7 / 127.5 - 1)) * 127.5  # in levels, from -1/2 to 1/2
    assert np.abs(place).max() <= 0.5 + 1e-4
    assert abs(place.mean()) < 4 / np.sqrt(12 * place.size)
    assert place.var() == pytest.approx(1 / 12, rel=0.05)
