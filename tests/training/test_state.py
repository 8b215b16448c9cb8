"""The state is a pytree of arrays, safe to donate."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.training.optimizer import make_optimizer
from jaxdiff.training.state import TrainState, init_state, leaf_name

PARAMS = {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.zeros(3)}}


def test_holds_arrays_only():
    state = init_state(PARAMS, make_optimizer(1e-3))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert state.step.dtype == jnp.int32 and state.step.shape == ()
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert names[:3] == ["step", "params/dense/bias", "params/dense/kernel"]
    assert "opt_state/1/0/mu/dense/kernel" in names and len(set(names)) == len(names)


def test_the_average_starts_at_the_parameters_and_the_state_can_be_donated():
    state = init_state(jax.tree.map(jnp.copy, PARAMS), make_optimizer(1e-3))
    np.testing.assert_array_equal(state.ema_params["dense"]["kernel"], PARAMS["dense"]["kernel"])
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s), donate_argnums=0)(state)
    assert isinstance(doubled, TrainState)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
