"""AdamW with clipping and warm-up, against hand calculation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.training.optimizer import make_optimizer


def updates_of(optimizer, grads, params, count):
    state, result = optimizer.init(params), []
    for _ in range(count):
        updates, state = optimizer.update(grads, state, params)
        result.append(updates)
    return result


def test_the_rate_climbs_linearly_from_the_first_update_and_stays():
    # A constant gradient makes Adam's direction 1 at every step, so an update is minus the rate.
    params = {"bias": jnp.zeros(1)}
    rates = [-float(u["bias"][0]) for u in updates_of(make_optimizer(0.2, 4), {"bias": jnp.ones(1)}, params, 6)]
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.15, 0.2, 0.2, 0.2], rtol=1e-4)


def test_no_warm_up_starts_at_the_full_rate():
    [update] = updates_of(make_optimizer(0.2), {"bias": jnp.ones(1)}, {"bias": jnp.zeros(1)}, 1)
    np.testing.assert_allclose(update["bias"], [-0.2], rtol=1e-5)


def test_clips_the_global_norm_before_the_moments():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    optimizer = make_optimizer(0.1, clip_norm=1.0)
    _, state = optimizer.update({"a": jnp.array([30.0]), "b": jnp.array([40.0])}, optimizer.init(params), params)
    mean = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    mu = [float(leaf[0]) for path, leaf in mean.items() if ".mu" in jax.tree_util.keystr(path)]
    np.testing.assert_allclose(mu, [0.1 * 0.6, 0.1 * 0.8], rtol=1e-5)  # b1 = 0.9


def test_decay_is_decoupled_and_spares_vectors():
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    [update] = updates_of(make_optimizer(0.1, weight_decay=0.5), zeros, params, 1)
    np.testing.assert_allclose(update["kernel"], np.full((2, 2), -0.1 * 0.5 * 3.0), rtol=1e-6)
    np.testing.assert_array_equal(update["bias"], np.zeros(2))


@pytest.mark.parametrize(
    ("wrong", "bound"),
    [
        ({"learning_rate": 0.0}, "> 0"),
        ({"learning_rate": 1.0, "warmup_steps": -1}, ">= 0"),
        ({"learning_rate": 1.0, "weight_decay": -0.1}, ">= 0"),
        ({"learning_rate": 1.0, "clip_norm": 0.0}, "> 0"),
    ],
)
def test_refuses_what_cannot_work(wrong, bound):
    name = list(wrong)[-1]
    with pytest.raises(ValueError, match=f"{name}={wrong[name]} is out of range; it must be {bound}"):
        make_optimizer(**wrong)
