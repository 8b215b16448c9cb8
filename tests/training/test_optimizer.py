"""Optimizers and learning-rate schedules: against hand calculation, and every member against optax's own."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxdiff.training.checkpoints import Checkpoints
from jaxdiff.training.optimizer import LEARNING_RATES, OPTIMIZERS, is_matrix, make_learning_rate, make_optimizer
from jaxdiff.training.state import init_state


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


# Every member: two updates of two leaves, with what optax's own function of that name gives under the same mask.
PARAMS = {"dense": {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([0.3, -0.4])}}
GRADS = {"dense": {"kernel": jnp.array([[0.2, -0.1], [0.05, 0.3]]), "bias": jnp.array([0.1, -0.2])}}
MASK = {"dense": {"kernel": True, "bias": False}}
OWN = {
    "adamw": (
        {"b1": 0.8, "b2": 0.95, "eps": 1e-6, "nesterov": True},
        optax.adamw(0.1, b1=0.8, b2=0.95, eps=1e-6, nesterov=True, weight_decay=0.5, mask=MASK),
    ),
    "adam": ({"b2": 0.95}, optax.adam(0.1, b2=0.95)),
    "lion": ({"b1": 0.8}, optax.lion(0.1, b1=0.8, weight_decay=0.5, mask=MASK)),
    "adafactor": (
        {"min_dim_size_to_factor": 2, "momentum": 0.9},
        optax.adafactor(
            0.1, min_dim_size_to_factor=2, momentum=0.9, weight_decay_rate=0.1 * 0.5, weight_decay_mask=MASK
        ),
    ),
    "muon": ({"beta": 0.9, "ns_steps": 3}, contrib.muon(0.1, beta=0.9, ns_steps=3, weight_decay=0.5)),
    "sgd": (
        {"momentum": 0.9},
        optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.5, MASK), optax.scale_by_learning_rate(0.1)),
    ),
}


def test_every_optimizer_is_in_the_table():
    assert list(OWN) == list(OPTIMIZERS.members)


@pytest.mark.parametrize("name", OPTIMIZERS.members)
def test_an_optimizer_is_optaxs_own_with_its_options_and_our_mask(name):
    options, own = OWN[name]
    ours = make_optimizer(0.1, weight_decay=0.0 if name == "adam" else 0.5, clip_norm=1e9, name=name, options=options)
    for update, expected in zip(updates_of(ours, GRADS, PARAMS, 3), updates_of(own, GRADS, PARAMS, 3), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), update, expected)


def test_sgd_and_lion_by_hand():
    [update] = updates_of(make_optimizer(0.1, weight_decay=0.5, name="sgd"), GRADS, PARAMS, 1)
    kernel, grad = np.asarray(PARAMS["dense"]["kernel"]), np.asarray(GRADS["dense"]["kernel"])
    np.testing.assert_allclose(update["dense"]["kernel"], -0.1 * (grad + 0.5 * kernel), rtol=1e-6)
    np.testing.assert_allclose(update["dense"]["bias"], [-0.01, 0.02], rtol=1e-6)
    [update] = updates_of(make_optimizer(0.1, weight_decay=0.5, name="lion"), GRADS, PARAMS, 1)
    np.testing.assert_allclose(update["dense"]["kernel"], -0.1 * (np.sign(grad) + 0.5 * kernel), rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (3, 3, 2, 4), (2, 4, 3), (2, 3, 3, 2, 4)])
def test_muon_makes_the_update_of_a_matrix_nearly_orthogonal(shape):
    """Singular values near 1 (0.7 to 1.2 after five steps) for matrices, convolutions, and stacks of either."""
    grads = {"kernel": jax.random.normal(jax.random.key(0), shape)}
    [update] = updates_of(make_optimizer(1.0, name="muon"), grads, jax.tree.map(jnp.zeros_like, grads), 1)
    stack = shape[0] if len(shape) % 2 else 1
    matrices = np.asarray(update["kernel"]).reshape(stack, -1, shape[-1])
    scale = max(1.0, shape[-1] / matrices.shape[1]) ** 0.5
    values = np.linalg.svd(matrices, compute_uv=False) / scale
    assert values.min() > 0.5 and values.max() < 1.3


def test_decay_and_muon_spare_norms_biases_embeddings_and_tokens_however_stacked():
    names = {
        "kernel": ((2, 3), True),
        "conv/kernel": ((3, 3, 2, 4), True),
        "stack/kernel": ((5, 2, 3), True),
        "bias": ((3,), False),
        "stack/bias": ((5, 3), False),
        "stack/scale": ((5, 3), False),
        "gain": ((5, 1), False),
        "classes/embedding": ((11, 4), False),
        "pos_embed": ((1, 16, 4), False),
        "register_tokens": ((4, 8), False),
        "embed_patches/kernel": ((2, 3), True),
        "vector": ((7,), False),
    }
    found = is_matrix({name: jnp.zeros(shape) for name, (shape, _) in names.items()})
    assert found == {name: expected for name, (_, expected) in names.items()}


# Names, options and optax's own; our warm-up of 4 updates is optax's shifted by one, its decay the same.
WARMUP, STEPS = 4, 40
RATES = {
    "constant": ({}, lambda n: 1.0),
    "cosine": ({"end": 0.1}, optax.cosine_decay_schedule(1.0, STEPS - WARMUP, alpha=0.1)),
    "linear": ({"end": 0.1}, optax.linear_schedule(1.0, 0.1, STEPS - WARMUP)),
    "inverse_sqrt": ({"decay_from": 10}, lambda n: 1 / max((n + WARMUP) / 10, 1) ** 0.5),
    "wsd": ({"decay": 0.25, "end": 0.1}, optax.linear_schedule(1.0, 0.1, 10, transition_begin=26)),
}


def test_every_schedule_is_in_the_table():
    assert list(RATES) == list(LEARNING_RATES.members)


@pytest.mark.parametrize("name", LEARNING_RATES.members)
def test_a_schedule_is_optaxs_own_after_its_warm_up(name):
    options, own = RATES[name]
    rate = make_learning_rate(0.2, WARMUP, name, options, STEPS)
    for n in range(STEPS + 2):
        expected = 0.2 * (float(own(n - WARMUP)) if n >= WARMUP else (n + 1) / WARMUP)
        for array in (np.asarray(n), jnp.asarray(n)):
            assert float(rate(array)) == pytest.approx(expected, rel=1e-5)
        assert not isinstance(rate(np.asarray(n)), jax.Array)  # a log line asks no device


@pytest.mark.parametrize("name", LEARNING_RATES.members)
def test_updates_follow_the_schedule(name):
    """sgd with a gradient of 1: the updates are the rates."""
    options, _ = RATES[name]
    optimizer = make_optimizer(0.2, 2, name="sgd", schedule=name, schedule_options=options, steps=9)
    updates = updates_of(optimizer, {"bias": jnp.ones(1)}, {"bias": jnp.zeros(1)}, 9)
    rate = make_learning_rate(0.2, 2, name, options, 9)
    np.testing.assert_allclose([-float(u["bias"][0]) for u in updates], [rate(np.asarray(n)) for n in range(9)], 1e-5)


def test_wsd_by_a_root_and_a_longer_run():
    rate = make_learning_rate(1.0, 0, "wsd", {"decay": 0.4, "shape": "sqrt"}, 10)
    at = lambda n: float(rate(np.asarray(n)))  # noqa: E731
    assert [at(0), at(6), at(7), at(10)] == pytest.approx([1.0, 1.0, 0.5, 0.0])
    longer = make_learning_rate(1.0, 0, "wsd", {"decay": 0.4}, 20)
    assert all(float(longer(np.asarray(n))) == at(n) for n in range(7))


@pytest.mark.parametrize("name", OPTIMIZERS.members)
def test_an_optimizer_goes_on_in_the_same_bits_from_its_saved_state(name, tmp_path):
    optimizer = make_optimizer(0.01, 2, name=name, schedule="cosine", steps=4)
    x = jnp.arange(8.0).reshape(4, 2)

    def error(params):
        return jnp.mean((x @ params["dense"]["kernel"] + params["dense"]["bias"][None]) ** 2)

    @jax.jit
    def step(state):
        updates, opt_state = optimizer.update(jax.grad(error)(state.params), state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)

    def run(state, count):
        for _ in range(count):
            state = step(state)
        return state

    begin = init_state(PARAMS, optimizer)
    straight = run(begin, 4)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(run(begin, 2), wait=True)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), straight)
        restored, _ = checkpoints.restore(abstract)
    jax.tree.map(np.testing.assert_array_equal, run(restored, 2), straight)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "adamm"}, "unknown optimizer 'adamm'; choose one of adamw, adam, lion, adafactor, muon, sgd"),
        ({"options": {"beta": 1}}, "adamw has no option 'beta'; it takes b1, b2, eps, nesterov"),
        ({"options": {"rate": 1}}, "adamw has no option 'rate'"),
        ({"schedule": "cos"}, "unknown learning-rate schedule 'cos'; choose one of constant, cosine, linear"),
        ({"schedule_options": {"end": 0.1}}, "constant has no option 'end'; it takes none"),
        ({"name": "adam", "weight_decay": 0.1}, "adam has no weight decay; set weight_decay to 0, not 0.1, or"),
        ({"schedule": "cosine"}, "the cosine schedule needs to know the steps of the run"),
        ({"schedule": "linear", "warmup_steps": 9, "steps": 9}, "more steps than the warm-up: steps=9, warmup_steps=9"),
        ({"schedule": "cosine", "steps": 9, "schedule_options": {"end": 2.0}}, "end=2.0 is out of range"),
        ({"schedule": "wsd", "steps": 9, "schedule_options": {"decay": 0.0}}, "decay=0.0 is out of range"),
        ({"schedule": "inverse_sqrt", "schedule_options": {"decay_from": 0}}, "decay_from=0 is out of range"),
    ],
)
def test_a_wrong_name_or_option_is_refused_with_the_choices(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_optimizer(**{"learning_rate": 0.1, **wrong})
