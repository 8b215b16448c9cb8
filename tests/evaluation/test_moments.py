"""Streamed moments against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.evaluation import moments


def streamed(x, batch, shift):
    state = moments.init(jnp.asarray(shift, jnp.float32))
    for start in range(0, len(x), batch):
        rows = x[start : start + batch]
        short = batch - len(rows)
        weight = np.r_[np.ones(len(rows)), np.zeros(short)].astype(np.float32)
        padded = np.concatenate([rows, np.full((short, x.shape[1]), 1e3, np.float32)])
        state = add(state, jnp.asarray(padded), jnp.asarray(weight))
    return moments.finish(state)


add = jax.jit(moments.add)


def relative(covariance, expected):
    scale = np.sqrt(np.diag(expected))
    return np.abs(covariance - expected) / np.outer(scale, scale)


def test_as_good_as_float64_far_from_zero():
    """Means dozens of standard deviations away: float32 sums without shift or pairs would be good to 1e-4 at best."""
    rng = np.random.default_rng(0)
    x = (100.0 + rng.standard_normal((20_100, 5)) @ rng.standard_normal((5, 5))).astype(np.float32)
    found = streamed(x, 64, x[:64].mean(axis=0))
    wide = x.astype(np.float64)
    assert found.n == len(x)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-9)
    assert relative(found.covariance, np.cov(wide.T)).max() < 1e-6


def test_sums_do_not_decay_with_their_number():
    """Plain float32 would stop counting at 2^24 + 1."""
    total = moments.Sum(jnp.float32(2.0**24), jnp.float32(0.0))
    total = jax.lax.fori_loop(0, 1000, lambda _, total: total.add(jnp.float32(1.0)), total)
    assert total.float64() == 2.0**24 + 1000


def test_rows_over_devices_give_the_same():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    x = np.random.default_rng(1).standard_normal((64, 3)).astype(np.float32)
    state = moments.init(jnp.zeros(3))
    spread = add(state, jax.device_put(x, rows), jax.device_put(np.ones(64, np.float32), rows))
    np.testing.assert_allclose(moments.finish(spread).covariance, np.cov(x.astype(np.float64).T), rtol=1e-5, atol=1e-7)


def test_one_feature_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2"):
        moments.finish(moments.add(moments.init(jnp.zeros(2)), jnp.ones((1, 2)), jnp.ones(1)))
