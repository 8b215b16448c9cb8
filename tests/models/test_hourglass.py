"""The hourglass: what it begins as, and that each of its ways is there."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.models import Hourglass

KEY, X, T = jax.random.key(0), jax.random.normal(jax.random.key(1), (2, 8, 16, 3)), jnp.array([0.2, 0.9])
NET = Hourglass(widths=(8, 16), blocks=(1, 1), num_heads=2).module(3)


def test_a_new_network_predicts_zero():
    y, _ = jax.jit(NET.init_with_output)(KEY, X, T)
    np.testing.assert_array_equal(y, np.zeros_like(X))


def test_fine_detail_goes_by_the_skips():
    """With nothing in the middle and no convolutions, a patch still sees itself, and no other."""
    params = jax.jit(NET.init)(KEY, X, T)["params"]
    params["split_0"] = jax.tree.map(jnp.zeros_like, params["split_0"])
    params["proj_out"] = {"kernel": jnp.ones((8, 12)), "bias": jnp.zeros(12)}
    apply = jax.jit(NET.apply)
    change = np.abs(apply({"params": params}, X.at[0, 4, 6].add(1.0), T) - apply({"params": params}, X, T))
    assert change[0, 4:6, 6:8].min() > 1e-3
    change[0, 4:6, 6:8] = 0
    assert change.max() == 0
