"""Layouts: the same numbers on every one, nothing copied that should be split, buffers given up."""

import dataclasses
import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxdiff import parallel
from jaxdiff.assembly.assemble import assemble
from jaxdiff.config import Config, Model, Optimizer, Parallel, Train
from jaxdiff.errors import UserError
from jaxdiff.keys import example_keys
from jaxdiff.losses import loss_aware
from jaxdiff.models import DiT
from jaxdiff.models.unet import UNet
from jaxdiff.objectives import Objective, timed
from jaxdiff.training import ema
from jaxdiff.training.optimizer import make_optimizer
from jaxdiff.training.state import init_state, leaf_name
from jaxdiff.training.step import make_train_step

ROWS, STEPS = 16, 3
OPTIMIZER = make_optimizer(1e-3, warmup_steps=2)
SGD = optax.sgd(0.1)
WIDTHS = (("in", 1, 8), ("out", 8, 4))


def conv(layer, x):
    y = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + layer["bias"][None, None, None]


def loss_fn(params, frozen, batch, keys):
    x = batch["image"].astype(jnp.float32) / 127.5 - 1
    phase = (jax.random.key_data(keys)[:, :1] % 1000).astype(jnp.float32)  # noise of a kind, cheap to compile
    noise = jnp.sin(phase + jnp.arange(16.0)[None]).reshape(x.shape)
    return jnp.mean((conv(params["out"], jnp.tanh(conv(params["in"], x + noise))) - noise) ** 2, axis=(1, 2, 3))


def init():
    def layer(fan_in, fan_out):
        kernel = 0.2 * np.sin(np.arange(9 * fan_in * fan_out, dtype=np.float32))
        return {"kernel": jnp.asarray(kernel.reshape(3, 3, fan_in, fan_out)), "bias": jnp.zeros(fan_out)}

    return init_state({name: layer(a, b) for name, a, b in WIDTHS}, OPTIMIZER)


def make_batch(n, rows=slice(None)):
    images = np.random.default_rng(n).integers(0, 256, (ROWS, 4, 4, 1), dtype=np.uint8)
    return {"image": images[rows], "row": np.arange(ROWS, dtype=np.int32)[rows]}


@functools.cache
def train(fsdp=1, mode="mesh", accumulate=1, devices=8, calls=(1, 1, 1), most=1):
    """Three steps; returns the state, the metrics, and the compiled step with the arguments of a next call."""
    mesh, traces = parallel.make_mesh(fsdp, jax.devices()[:devices]), []

    def counted(*args):
        traces.append(1)
        return loss_fn(*args)

    abstract = parallel.abstract_state(init, mesh)
    state = jax.device_put(init(), jax.tree.map(lambda leaf: leaf.sharding, abstract))
    step = make_train_step(Objective(counted), OPTIMIZER, functools.partial(ema.update, decay=0.9), accumulate)
    done, history = 0, []
    compiled = parallel.compile_step(step, abstract, mesh, mode, most)
    for count in calls:
        batches = [make_batch(n, parallel.local_rows(mesh, ROWS)) for n in range(done, done + count)]
        if most == 1:
            batch = parallel.shard_batch(batches[0], mesh, mode)
        else:
            batch = parallel.shard_batches(batches, most, mesh, mode)
        before, (state, metrics) = state, compiled(state, batch, jax.random.key(1))
        metrics = {name: np.ravel(value)[:count] for name, value in metrics.items()}
        history += [{name: value[i] for name, value in metrics.items()} for i in range(count)]
        done += count
    assert len(traces) == 1, "a later step compiles again"
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before)), "a second copy of the state stays in memory"
    return state, history, compiled, (state, batch, jax.random.key(1))


@pytest.fixture(scope="module")
def one_device():
    state, history, *_ = train(devices=1)
    return jax.device_get(state), history


@pytest.mark.parametrize(
    ("fsdp", "mode", "accumulate"),
    [(1, "mesh", 1), (4, "mesh", 2), (1, "pmap", 1), (1, "pmap", 2)],
)
def test_the_numbers_do_not_depend_on_the_layout(one_device, fsdp, mode, accumulate):
    """Loss and gradient within 1e-6 relative (float32 sums of 1,024 terms), parameters after three steps too."""
    expected, expected_history = one_device
    state, history, *_ = train(fsdp, mode, accumulate)
    for metrics, reference in zip(history, expected_history, strict=True):
        np.testing.assert_allclose(metrics["loss"], reference["loss"], rtol=1e-6)
        np.testing.assert_allclose(metrics["grad_norm"], reference["grad_norm"], rtol=1e-6)
    for field in ("params", "ema_params"):
        for a, b in zip(jax.tree.leaves(getattr(state, field)), jax.tree.leaves(getattr(expected, field)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert int(state.step) == STEPS


@pytest.mark.parametrize(("fsdp", "mode", "devices"), [(4, "mesh", 8), (1, "pmap", 8)])
def test_loss_aware_times_do_not_depend_on_the_layout(fsdp, mode, devices):
    """Bit for bit: every device keeps the losses of the whole batch, of which none is a sum over examples."""
    times = loss_aware(4, history=2)

    def begin():
        return init_state({"w": jnp.ones(8)}, SGD, objective=times.init())

    def loss(params, frozen, batch, keys):
        return (jnp.square(batch["t"]) + (jax.random.key_data(keys)[:, 0] % 8)) * params["w"][0]

    ends = []
    for layout in ((1, "mesh", 1), (fsdp, mode, devices)):
        mesh = parallel.make_mesh(layout[0], jax.devices()[: layout[2]])
        abstract = parallel.abstract_state(begin, mesh)
        state = jax.device_put(begin(), jax.tree.map(lambda leaf: leaf.sharding, abstract))
        step = make_train_step(timed(loss, times), optax.sgd(0.0), lambda average, params, step: average)
        run = parallel.compile_step(step, abstract, mesh, layout[1])
        for n in range(3):
            state, _ = run(state, parallel.shard_batch(make_batch(n), mesh, layout[1]), jax.random.key(1))
        ends.append(jax.device_get(state.objective))
    np.testing.assert_array_equal(ends[0].losses, ends[1].losses)
    np.testing.assert_array_equal(ends[0].counts, ends[1].counts)
    assert ends[0].counts.sum() == 3 * ROWS and len(np.unique(ends[0].losses)) == 8


@pytest.mark.parametrize(("fsdp", "mode"), [(4, "mesh"), (1, "pmap")])
def test_several_steps_a_call(one_device, fsdp, mode):
    """The numbers of one a call, within 1e-6; and however many a call does, by the same program, the same bits."""
    state, history, *_ = train(fsdp, mode, calls=(2, 1), most=2)
    other, other_history, *_ = train(fsdp, mode, most=2)
    assert history == other_history and len(history) == STEPS
    expected, expected_history = one_device
    for a, b, c in zip(jax.tree.leaves(state), jax.tree.leaves(other), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        np.testing.assert_allclose(a, c, atol=1e-6)
    for metrics, reference in zip(history, expected_history, strict=True):
        np.testing.assert_allclose(metrics["loss"], reference["loss"], rtol=1e-6)


@pytest.fixture(scope="module")
def sharded():
    _, _, compiled, args = train(4, "mesh", 2)
    return compiled.lower(*args).compile(), args


def test_the_compiled_step_copies_nothing_by_accident(sharded):
    """Read from the program: with fsdp=4, kernels, averages and moments are split, going in and coming out."""
    program, (state, *_) = sharded
    (state_in, batch_in, _), _ = program.input_shardings
    state_out, _ = program.output_shardings
    split = 0
    for shardings in (state_in, state_out):
        pairs = zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(shardings), strict=True)
        for (path, leaf), sharding in pairs:
            if leaf.ndim > 1:
                assert np.prod(sharding.shard_shape(leaf.shape)) == leaf.size / 4, leaf_name(path)
                split += 1
    assert split == 2 * 4 * len(WIDTHS)  # parameters, average and two moments of each kernel
    for sharding in jax.tree.leaves(batch_in):
        assert sharding.shard_shape((ROWS,)) == (ROWS // 8,)


def test_a_device_holds_its_share_of_the_state(sharded):
    _, (state, *_) = sharded
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    held = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(state))
    assert held < 0.32 * whole  # a quarter, and the biases


def test_the_state_is_updated_in_place(sharded):
    program, (state, *_) = sharded
    held = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes >= held


def collectives(text):
    """(kind, result) of every collective in a compiled program."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    return [(kind, result) for result, kind in re.findall(rf"= (.+?) ({kinds})(?:-start)?\(", text)]


def test_rows_stay_on_their_device_with_micro_batches_too(sharded):
    assert {kind for kind, _ in collectives(sharded[0].as_text())} == {"all-gather", "all-reduce"}


def test_of_a_unet_nothing_but_weights_and_gradients_travels():
    """The compiled program gathers each split parameter once, and sums gradients once; no activation moves."""
    net = UNet(out_channels=1, channels=8, channel_mults=(1,), blocks=1, attention_resolutions=(4,), num_classes=3)
    mesh = parallel.make_mesh(4)

    def init_net(key):
        return init_state(net.init(key, jnp.zeros((1, 4, 4, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"], SGD)

    def loss(params, frozen, batch, keys):
        del keys
        x = batch["image"].astype(jnp.float32)
        return net.apply({"params": params}, x, jnp.zeros(ROWS), batch["label"]).mean((1, 2, 3)) ** 2

    rows = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    batch = {"image": jax.ShapeDtypeStruct((ROWS, 4, 4, 1), jnp.uint8), "label": rows, "row": rows}
    abstract = parallel.abstract_state(init_net, mesh, jax.random.key(0))
    step = make_train_step(Objective(loss), SGD, lambda average, params, step: average)
    lowered = parallel.compile_step(step, abstract, mesh).lower(abstract, batch, jax.random.key(0))
    program = lowered.compile({"xla_backend_optimization_level": 0})  # partitioned all the same, and sooner done
    found = collectives(program.as_text())
    whole = [p.shape for p in jax.tree.leaves(abstract.params) if not p.sharding.is_fully_replicated]
    gathered = [re.search(r"\[([\d,]+)\]", result)[1] for kind, result in found if kind == "all-gather"]
    assert sorted(tuple(map(int, shape.split(","))) for shape in gathered) == sorted(whole)
    assert [kind for kind, _ in found if kind != "all-gather"] == ["all-reduce"]


@pytest.mark.parametrize("fsdp", [1, 4])
def test_noise_is_the_same_bits_on_every_layout(fsdp):
    def draw(key, rows):
        return jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(example_keys(jax.random.fold_in(key, 7), rows))

    alone = jax.jit(draw)(jax.random.key(0), jnp.arange(ROWS))
    rows = parallel.shard_batch({"row": np.arange(ROWS, dtype=np.int32)}, parallel.make_mesh(fsdp))["row"]
    spread = jax.jit(draw)(jax.random.key(0), rows)
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_array_equal(np.asarray(alone), np.asarray(spread))


def test_rules_are_found_by_name():
    mesh = parallel.make_mesh(4)
    shardings = parallel.state_shardings(jax.eval_shape(init), mesh)
    by_name = {leaf_name(path): s.spec for path, s in jax.tree_util.tree_leaves_with_path(shardings)}
    assert by_name["step"] == PartitionSpec()
    assert by_name["params/in/kernel"] == PartitionSpec(None, None, None, "fsdp")
    assert by_name["ema_params/out/kernel"] == PartitionSpec(None, None, "fsdp")
    assert by_name["opt_state/1/0/nu/in/kernel"] == PartitionSpec(None, None, None, "fsdp")
    assert by_name["opt_state/1/0/count"] == by_name["params/out/bias"] == PartitionSpec()
    with pytest.raises(ValueError, match="no sharding rule covers the leaf params/in/bias"):
        parallel.state_shardings(jax.eval_shape(init), mesh, ((r"^step$", parallel.replicated),))


def test_the_largest_axis_that_divides_is_split():
    assert parallel.largest_axis((3, 3, 256, 128), 8) == PartitionSpec(None, None, "fsdp")
    assert parallel.largest_axis((11, 256), 8) == PartitionSpec(None, "fsdp")
    assert parallel.largest_axis((300, 16), 8) == PartitionSpec(None, "fsdp")
    assert parallel.largest_axis((7, 9), 8) == parallel.largest_axis((64, 64), 1) == PartitionSpec()


def test_the_mesh_has_two_auto_axes():
    mesh = parallel.make_mesh(fsdp=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    with pytest.raises(UserError, match=r"parallel.fsdp=3 does not divide the 8 devices .* use one of 1, 2, 4, 8"):
        parallel.make_mesh(fsdp=3)


def test_over_slices_fsdp_stays_inside_one():

    class Device(SimpleNamespace):
        __hash__ = object.__hash__

    devices = [
        Device(id=n, process_index=n // 4, slice_index=n // 4, platform="gpu", device_kind="fake") for n in range(8)
    ]
    mesh = parallel.make_mesh(fsdp=2, devices=devices[::-1])
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    for row in mesh.devices:
        assert len({device.slice_index for device in row}) == 1
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))
    with pytest.raises(UserError, match=r"parallel.fsdp=8 does not divide the 4 devices of a slice"):
        parallel.make_mesh(fsdp=8, devices=devices)


def test_a_batch_keeps_its_order_over_both_axes():
    mesh = parallel.make_mesh(fsdp=4)
    batch = parallel.shard_batch(make_batch(0), mesh)
    np.testing.assert_array_equal(batch["row"], np.arange(ROWS))
    assert batch["image"].dtype == jnp.uint8 and batch["image"].shape == (ROWS, 4, 4, 1)
    assert [shard.data.shape for shard in batch["row"].addressable_shards] == [(2,)] * 8
    spread = parallel.shard_batch(make_batch(0), parallel.make_mesh(), "pmap")
    np.testing.assert_array_equal(spread["row"].reshape(-1), np.arange(ROWS))


def test_each_process_reads_its_own_rows(monkeypatch):
    mesh = parallel.make_mesh()
    np.testing.assert_array_equal(parallel.local_rows(mesh, ROWS), np.arange(ROWS))
    with pytest.raises(UserError, match=r"train.batch_size=12 does not divide over 8 devices; use .* such as 16"):
        parallel.local_rows(mesh, 12)


def test_what_pmap_cannot_do_is_refused():
    state = jax.eval_shape(init)
    with pytest.raises(UserError, match=r"set parallel\.fsdp=1 or mode=mesh"):
        parallel.compile_step(lambda *a: a, state, parallel.make_mesh(2), "pmap")
    with pytest.raises(ValueError, match="mode='shard' is unknown"):
        parallel.compile_step(lambda *a: a, state, parallel.make_mesh(), "shard")


@pytest.mark.slow
def test_blocks_split_over_a_third_axis_give_the_numbers_of_one_device():
    """A DiT with every kind of split leaf, on 2 x 2 x 2 devices; each holds half of every head and MLP kernel."""
    model, found = DiT(patch=2, width=16, depth=1, num_heads=2, mlp="swiglu", qk_norm=True, num_classes=2), []
    images = SimpleNamespace(shape=(4, 4, 1), num_classes=2)
    for devices, layout in ((1, Parallel()), (8, Parallel(fsdp=2, tensor=2))):
        config = Config(model=model, optimizer=Optimizer(warmup_steps=0), train=Train(batch_size=8), parallel=layout)
        program = assemble(config, images, jax.devices()[:devices]).program
        shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
        noisy = lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape)  # noqa: E731
        state = jax.jit(program.init)(program.keys["init"])
        state = jax.device_put(dataclasses.replace(state, params=jax.tree.map(noisy, state.params)), shardings)
        rows = parallel.local_rows(program.mesh, 8)
        np.testing.assert_array_equal(rows, np.arange(8))
        batch = {"image": make_batch(0)["image"][:8], "label": np.arange(8, dtype=np.int32) % 2}
        batch |= {"row": rows.astype(np.int32)}
        losses = []
        for _ in range(2):
            state, metrics = program.step(state, program.place([batch]), program.keys["train"])
            losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        found.append((losses, state))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    blocks = found[1][1].params["blocks"]
    for leaf, axis in (("attention/query", 2), ("attention/proj", 1), ("dense1", 2), ("dense2", 1)):
        kernel = functools.reduce(dict.__getitem__, leaf.split("/"), blocks)["kernel"]
        assert kernel.sharding.spec[axis] == "tensor", leaf
        assert kernel.addressable_shards[0].data.size == kernel.size // 4, "half for tensor, half for fsdp"
    one, other = (jax.device_get(state.params) for _, state in found)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), one, other)


@pytest.mark.parametrize(
    ("model", "layout", "right"),
    [
        (
            DiT(num_heads=3, width=24),
            Parallel(tensor=2),
            "tensor=2 must divide the heads of a model dit; this one has 3",
        ),
        (Model(), Parallel(tensor=2), "this one has none"),
        (DiT(num_heads=6, width=24), Parallel(tensor=3), "tensor=3 does not divide the 8 devices"),
    ],
)
def test_a_third_axis_that_does_not_fit_is_refused(model, layout, right):
    images = SimpleNamespace(shape=(16, 16, 1), num_classes=0)
    with pytest.raises(UserError, match=right):
        assemble(Config(model=model, train=Train(batch_size=24), parallel=layout), images)
