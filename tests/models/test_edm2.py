"""The magnitude-preserving U-Net: published size, magnitudes at first and after training, structure, refusals."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from jaxdiff.models import EDM2
from jaxdiff.training.optimizer import projected

SMALL = EDM2(channels=16, channel_mults=(1, 2), blocks=1, attention_resolutions=(), head_dim=16, num_classes=3)
X = jnp.asarray(np.random.default_rng(0).standard_normal((8, 8, 8, 3)), jnp.float32)
T, LABEL = jnp.linspace(-1.5, 1.1, 8), {"label": jnp.arange(8) % 4}


def test_edm2_s_has_its_published_size():
    """280.2 million at 64x64x4 with 1000 classes (table 2); a row for no class is ours, log-variance theirs."""
    net = EDM2(num_classes=1000).module(4)
    x, t = jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x, t, jax.ShapeDtypeStruct((1,), jnp.int32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) - 768 == pytest.approx(280.2e6, abs=0.05e6)


def magnitudes(net, params):
    """The prediction, and the root mean square of what every block and layer of the path gives."""
    y, found = net.apply({"params": params}, X, T, LABEL, capture_intermediates=True, mutable="intermediates")
    named = jax.tree_util.tree_leaves_with_path(found["intermediates"])
    last = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in named}
    kept = {name: leaf for name, leaf in last.items() if name.count("/") == 2 and "conv_out" not in name}
    return y, {name: jnp.sqrt(jnp.mean(jnp.square(leaf))) for name, leaf in kept.items()}


jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_magnitudes_of_a_new_network_are_1_and_it_predicts_zero():
    net = SMALL.module(3)
    y, sizes = jit(lambda key: magnitudes(net, net.init(key, X, T, LABEL)["params"]))(jax.random.key(0))
    np.testing.assert_array_equal(y, 0.0)
    assert len(sizes) > 10 and all(0.65 < size < 1.3 for size in sizes.values()), sizes


@pytest.mark.slow
def test_magnitudes_stay_near_1_in_training_and_weights_at_1():
    """30 steps of Adam at a rate that moves every weight by its own size and more."""
    net, optimizer = SMALL.module(3), projected(optax.adam(0.1), SMALL.project)
    targets = jnp.roll(X, 1, axis=1)

    def step(carry, _):
        def loss(params):
            y, sizes = magnitudes(net, params)
            return jnp.mean((y - targets) ** 2), sizes

        (value, sizes), grads = jax.value_and_grad(loss, has_aux=True)(carry[0])
        updates, state = optimizer.update(grads, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), (value, sizes)

    @jit
    def train(key):
        params = net.init(key, X, T, LABEL)["params"]
        (after, _), history = jax.lax.scan(step, (params, optimizer.init(params)), length=30)
        return params, after, history

    before, after, (losses, sizes) = train(jax.random.key(0))
    assert losses[-1] < 0.9 * losses[0] and losses[0] == pytest.approx(float(jnp.mean(X**2)))  # it predicted zero
    assert all(1 / 3 < size.min() <= size.max() < 3 for size in sizes.values()), sizes
    changes, named = [], jax.tree_util.tree_leaves_with_path(after)
    for (path, new), old in zip(named, jax.tree.leaves(before), strict=True):
        if path[-1].key == "kernel":
            size = np.sqrt(np.mean(np.square(new), axis=tuple(range(new.ndim - 1))))
            np.testing.assert_allclose(size, 1.0, atol=1e-3, err_msg=str(path))
            changes.append(float(jnp.std(new - old)))
    assert np.mean(changes) > 0.5
    assert not any(path[-1].key in ("bias", "scale") for path, _ in named)


@pytest.mark.parametrize(
    ("changes", "shape", "cond", "right"),
    [
        ({}, (7, 8, 3), ["label"], "multiples of 2, and images are 7x8"),
        ({"head_dim": 12}, (8, 8, 3), ["label"], "head_dim is 12; it must divide"),
        ({"dropout": 1.0}, (8, 8, 3), ["label"], r"\[0, 1\)"),
        ({"blocks": 0}, (8, 8, 3), ["label"], "must be positive"),
        ({}, (8, 8, 3), ["label", "text"], "no place for text"),
        ({}, (8, 8, 3), [], "num_classes is 3"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(changes, shape, cond, right, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    SMALL.check((8, 12, 3), ["label"])
    with pytest.raises(ValueError, match=right):
        EDM2(**vars(SMALL) | changes).check(shape, cond)
