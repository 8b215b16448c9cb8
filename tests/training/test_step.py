"""One step: keys, mean, accumulation, guard, average. (Devices: test_parallel.)"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.keys import example_keys
from jaxdiff.losses import loss_aware
from jaxdiff.objectives import Objective, timed
from jaxdiff.training import ema
from jaxdiff.training.checkpoints import Checkpoints
from jaxdiff.training.optimizer import make_optimizer
from jaxdiff.training.state import init_state
from jaxdiff.training.step import make_train_step

ROWS = 16
AVERAGE = functools.partial(ema.update, decay=0.99)
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # sooner done


def make_params():
    values = np.random.default_rng(5).standard_normal((2, 8, 12)).astype(np.float32)
    return {"kernel": jnp.asarray(values[0]), "bias": jnp.zeros(12), "out": jnp.asarray(values[1].T)}


def loss_fn(params, frozen, batch, keys):
    """Predict each example's own noise (of its key, and cheap to compile) from the noisy example."""
    x = batch["image"].astype(jnp.float32) / 127.5 - 1
    phase = (jax.random.key_data(keys)[:, :1] % 1000).astype(jnp.float32)
    noise = jnp.sin(phase + jnp.arange(8.0)[None])
    hidden = jnp.tanh((x + noise) @ params["kernel"] + params["bias"][None])
    return batch["scale"] * jnp.mean((hidden @ params["out"] - noise) ** 2, axis=1)


def make_batch(seed=0, rows=ROWS):
    images = np.random.default_rng(seed).integers(0, 256, (rows, 8), dtype=np.uint8)
    return {"image": jnp.asarray(images), "scale": jnp.ones(rows), "row": jnp.arange(rows, dtype=jnp.int32)}


def run(step, count, nan_at=None):
    """The state and the metrics after some batches."""
    state, history = init_state(make_params(), make_optimizer(1e-2, 2)), []
    for n in range(count):
        batch = make_batch(n)
        if n == nan_at:
            batch["scale"] = jnp.full(ROWS, jnp.nan)
        state, metrics = step(state, batch, jax.random.key(1))
        history.append(metrics)
    return state, history


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def step():
    return compiled(make_train_step(Objective(loss_fn), make_optimizer(1e-2, 2), AVERAGE))


def test_keys_follow_step_and_row_alone():
    key = jax.random.key(3)
    data = jax.random.key_data
    whole = example_keys(jax.random.fold_in(key, 7), jnp.arange(8))
    for row in (0, 5):
        expected = jax.random.fold_in(jax.random.fold_in(key, 7), row)
        np.testing.assert_array_equal(data(whole[row]), data(expected))
    every = [tuple(k.tolist()) for s in range(4) for k in data(example_keys(jax.random.fold_in(key, s), jnp.arange(8)))]
    assert len(set(every)) == 32


def test_a_step_is_the_optimizers_update_of_the_mean_gradient(step):
    state = init_state(make_params(), make_optimizer(1e-2, 2))
    batch, key = make_batch(), jax.random.key(1)

    @compiled
    def expect(params):
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, 0), row))(jnp.arange(ROWS))
        grads = jax.grad(lambda p: loss_fn(p, (), batch, keys).sum() / ROWS)(params)
        optimizer = make_optimizer(1e-2, 2)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return loss_fn(params, (), batch, keys), grads, optax.apply_updates(params, updates)

    losses, grads, expected = jax.device_get(expect(state.params))
    new, metrics = step(state, batch, key)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses, dtype=np.float64), rtol=1e-6)
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads.values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert int(new.step) == 1 and float(metrics["skipped"]) == 0
    for name, value in expected.items():
        np.testing.assert_allclose(new.params[name], value, atol=2e-6)
        average = 0.1 * np.asarray(state.params[name]) + 0.9 * np.asarray(new.params[name])
        np.testing.assert_allclose(new.ema_params[name], average, atol=2e-6)


def test_no_noise_is_used_twice():
    """With parameters that cannot move, the loss differs from step to step on the same batch."""
    frozen = compiled(make_train_step(Objective(loss_fn), optax.set_to_zero(), AVERAGE))
    state = init_state(make_params(), optax.set_to_zero())
    losses = []
    for _ in range(4):
        state, metrics = frozen(state, make_batch(), jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 4
    assert_same_bits(state.params, state.ema_params)


def test_accumulation_equals_the_whole_batch(step):
    accumulated = compiled(make_train_step(Objective(loss_fn), make_optimizer(1e-2, 2), AVERAGE, accumulate=4))
    (a, a_metrics), (b, b_metrics) = run(accumulated, 3), run(step, 3)
    for m, n in zip(a_metrics, b_metrics, strict=True):
        np.testing.assert_allclose(m["loss"], n["loss"], rtol=1e-6)
        np.testing.assert_allclose(m["grad_norm"], n["grad_norm"], rtol=2e-6)
    for name in a.params:
        np.testing.assert_allclose(a.params[name], b.params[name], atol=3e-6)


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="batch of 16 a device does not split into accumulate=3"):
        run(make_train_step(Objective(loss_fn), make_optimizer(1e-2), AVERAGE, accumulate=3), 1)
    with pytest.raises(ValueError, match="accumulate=0 is out of range"):
        make_train_step(Objective(loss_fn), make_optimizer(1e-2), AVERAGE, accumulate=0)


def test_loss_aware_times_follow_the_loss_whatever_the_accumulation_and_restarts(tmp_path):
    """The history holds every loss at its time; once it is full, large losses come oftener; it resumes bit for bit."""

    def by_time(w, frozen, batch, keys):
        del keys
        return w * batch["t"] ** 8 + 0.0 * batch["row"]

    optimizer, times, ends = optax.sgd(0.0), loss_aware(4, history=2, uniform_share=0.1), []
    begin = init_state(jnp.ones(()), optimizer, objective=times.init())
    for accumulate in (1, 4):
        step = compiled(make_train_step(timed(by_time, times), optimizer, AVERAGE, accumulate))
        state = begin
        for n in range(4):
            state, _ = step(state, make_batch(n), jax.random.key(1))
            if n == 1 and accumulate == 4:
                with Checkpoints(tmp_path) as checkpoints:
                    checkpoints.save(state, wait=True)
                    state, _ = checkpoints.restore(begin)
        ends.append(state)
    assert_same_bits(*ends)
    history = ends[0].objective
    assert int(history.counts.sum()) == 4 * ROWS and int(history.counts.argmax()) == 3 and int(history.counts[3]) > ROWS
    sizes = np.float32(np.arange(1, 5) / 4) ** 8
    np.testing.assert_allclose(history.losses, np.repeat(sizes[:, None], 2, axis=1), rtol=1e-6)


def test_a_batch_of_nan_changes_nothing_but_the_count(step):
    before, _ = run(step, 2)
    after, history = run(step, 3, nan_at=2)
    assert float(history[2]["skipped"]) == 1 and not np.isfinite(history[2]["loss"])
    assert int(after.step) == 3
    for field in ("params", "ema_params", "opt_state"):
        assert_same_bits(getattr(before, field), getattr(after, field))
    assert sum(float(m["skipped"]) for m in history) == 1


def test_a_gradient_that_overflows_changes_nothing():
    """A finite loss with an infinite gradient is caught too."""
    step = compiled(
        make_train_step(Objective(lambda w, frozen, batch, keys: jnp.sqrt(w - batch["x"])), optax.sgd(1.0), AVERAGE)
    )
    batch = {"x": jnp.ones(4), "row": jnp.arange(4)}
    state, metrics = step(init_state(jnp.ones(()), optax.sgd(1.0)), batch, jax.random.key(0))
    assert float(metrics["loss"]) == 0 and float(metrics["skipped"]) == 1
    assert float(state.params) == 1 and float(state.ema_params) == 1
