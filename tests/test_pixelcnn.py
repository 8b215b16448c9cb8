"""The autoregressive baseline of benchmarks/experiments: what it sees, and that its probabilities are some."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.experiments.pixelcnn import MIXTURE, PixelCNN, bits, draw, log_prob

MODEL = PixelCNN(channels=4, blocks=2, classes=2)


@pytest.fixture(scope="module")
def params():
    """Parameters, all of them random: at the usual start some biases are 0 and would hide what they let through."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 5, 6, 1)), jnp.zeros(1, jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), shapes)


def test_a_pixel_sees_those_before_it_and_no_other(params):
    """The derivative of the outputs at pixel (2, 3) by every pixel: nothing from itself on, nearly all before."""

    def at(x):
        return MODEL.apply({"params": params}, x[None, :, :, None], jnp.zeros(1, jnp.int32))[0, 2, 3]

    seen = np.abs(jax.jacobian(at)(jnp.zeros((5, 6)))).sum(axis=(0, 1)).reshape(-1)
    here = 2 * 6 + 3
    assert np.all(seen[here:] == 0)
    assert np.count_nonzero(seen[:here]) >= here - 1  # small masks leave a blind spot


def test_the_masses_of_all_levels_add_up_to_one():
    mixture = jnp.asarray(np.random.default_rng(1).normal(0, 2, (1, 1, 256, 3, MIXTURE)), jnp.float32)
    mixture = jnp.broadcast_to(mixture[:, :, :1], mixture.shape).at[..., 2, :].add(-3.0)
    levels = (jnp.arange(256) / 127.5 - 1.0).reshape(1, 1, 256, 1)
    assert float(jnp.exp(log_prob(mixture, levels)).sum()) == pytest.approx(1.0, abs=1e-4)


def test_a_sample_is_written_pixel_by_pixel_in_grey_levels(params):
    """One pixel less drawn leaves all before it as they are."""
    labels = jnp.arange(2)
    x = draw(MODEL, params, jax.random.key(0), labels, side=4, pixels=16)
    shorter = draw(MODEL, params, jax.random.key(0), labels, side=4, pixels=15)
    np.testing.assert_array_equal(x.reshape(2, -1)[:, :15], shorter.reshape(2, -1)[:, :15])
    images = jnp.round((x + 1.0) * 127.5).astype(jnp.uint8)
    np.testing.assert_allclose(images / 127.5 - 1.0, x, atol=1e-6)  # grey levels
    assert bool(jnp.all(jnp.isfinite(bits(MODEL, params, images, labels))))
