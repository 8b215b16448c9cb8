"""Compiled for TPUs that are not there: every generation, two slices, fsdp, too much memory, what bf16 computes in.

Needs libtpu (`uv sync --extra tpu`); a network of some thousand parameters takes its compiler some ten seconds.
"""

import dataclasses
import re

import jax
import pytest

from jaxdiff import plan
from jaxdiff.assembly.assemble import assemble
from jaxdiff.config import Config, Data, Model, Parallel, Train
from jaxdiff.data.description import Expected
from jaxdiff.parallel import make_mesh
from jaxdiff.plan.chips import topology_devices
from jaxdiff.training.state import leaf_name

pytest.importorskip("libtpu")
pytestmark = pytest.mark.slow

IMAGES = Expected((4, 4, 1), 2)
CONFIG = Config(
    data=Data(name="folder"),
    model=Model(channels=8, channel_mults=(1,), blocks=1, attention_resolutions=(), num_classes=2, dtype="bfloat16"),
    train=Train(batch_size=16),
)


@pytest.fixture(autouse=True)
def no_records(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def chip_of(name):
    return plan.parse_topology(name).chip


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1", "v5e:2x2@2"])
def test_a_small_step_compiles_on_every_generation(name):
    made = plan.plan(CONFIG, name, quick=True, images=IMAGES)
    assert made.compiled.fits and made.chips == 4 * made.slices and made.hosts == made.slices
    assert made.mesh == {"data": made.devices, "fsdp": 1}
    assert made.state_bytes <= made.compiled.arguments
    summed = [sent for sent in made.compiled.collectives if sent.kind == "all-reduce"]
    assert sum(sent.bytes for sent in summed) >= 2 * made.parameters  # every gradient, in bfloat16 or float32
    assert name in plan.plan_text(made)
    devices = topology_devices(plan.parse_topology(name))
    assert {plan.peak_flops(device.device_kind) for device in devices} == {chip_of(name).flops / chip_of(name).devices}


def test_what_does_not_fit_is_reported_as_such():
    """A batch whose images alone exceed the memory of a chip."""
    made = plan.plan(CONFIG, "v5e:1x1", batch_per_chip=900_000, quick=True, images=Expected((256, 256, 1), 2))
    assert not made.compiled.fits and made.compiled.peak > made.compiled.available == 15.75 * 2**30
    assert "DOES NOT FIT" in plan.plan_text(made) and "to make it fit" in plan.plan_text(made)


@pytest.fixture(scope="module")
def split():
    model = Model(channels=32, channel_mults=(1, 2), blocks=1, attention_resolutions=(4,), dtype="bfloat16")
    config = dataclasses.replace(CONFIG, model=model, parallel=Parallel(fsdp=4))
    program = assemble(config, Expected((8, 8, 3), 0), topology_devices(plan.parse_topology("v5e:2x2"))).program
    return program, program.lower().compile()


def test_nothing_is_replicated_by_accident(split):
    """Read from the program that a TPU would run: what the rules split is split, going in and coming out."""
    program, compiled = split
    (state_in, batch_in, _), _ = compiled.input_shardings
    for shardings in (state_in, compiled.output_shardings[0]):
        leaves = jax.tree_util.tree_leaves_with_path(program.abstract)
        for (path, leaf), found in zip(leaves, jax.tree.leaves(shardings), strict=True):
            assert found.shard_shape(leaf.shape) == leaf.sharding.shard_shape(leaf.shape), leaf_name(path)
    assert sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(program.abstract)) > 20
    assert {sharding.shard_shape((16,)) for sharding in jax.tree.leaves(batch_in)} == {(4,)}


def operations(split, kind):
    """(dtype, shape, where in the network) of each operation of a kind in the compiled program."""
    found = re.findall(rf'= (\w+)\[([\d,]*)\]\S* {kind}\(.*?op_name="(.*?)"', split[1].as_text())
    return [(dtype, tuple(int(n) for n in shape.split(",") if n), name) for dtype, shape, name in found]


def test_bfloat16_convolutions_are_bfloat16_forward_and_backward(split):
    """None but the last, conv_out, whose output is float32 on purpose, puts out float32 images or gradients."""
    found = [(dtype, name) for dtype, _, name in operations(split, "convolution") if "conv_general_dilated" in name]
    assert sum("transpose(" in name for _, name in found) > 10 and "bf16" in {dtype for dtype, _ in found}
    assert all("conv_out" in name for dtype, name in found if dtype == "f32"), found


def test_nothing_is_transposed_around_convolutions(split):
    """Images keep the layout they have: vectors aside, no operation changes the order of axes."""
    assert operations(split, "convolution") != []
    assert [found for found in operations(split, "transpose") if len(found[1]) > 2] == []


def test_of_what_is_gathered_all_are_weights(split):
    """An all-gather is of a parameter, in bfloat16 where it is computed with so, and never of an activation."""
    gathered = operations(split, "all-gather")
    assert len(gathered) > 20
    assert [found for found in gathered if not found[2].startswith("state.params")] == []
    assert {dtype for dtype, shape, name in gathered if "conv1" in name} == {"bf16"}


def test_parameters_are_split_over_a_part_of_a_slice_s_side():
    """4 of the 8 chips of a side, as imagenet256_sit wants it."""
    assert make_mesh(4, topology_devices(plan.parse_topology("v5e:8x8"))).shape == {"data": 16, "fsdp": 4}
