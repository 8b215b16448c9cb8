"""The plan: names, records, search and report by known answers; the step planned is the step train.py runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff import plan
from jaxdiff.assembly import assemble as assembling
from jaxdiff.assembly.assemble import assemble
from jaxdiff.commands import main
from jaxdiff.commands.parser import CONFIGS
from jaxdiff.config import Config, Data, Model, Train
from jaxdiff.config.files import load
from jaxdiff.data.description import Expected, expect_dataset
from jaxdiff.data.sources import open_dataset
from jaxdiff.errors import UserError
from jaxdiff.job import execution
from jaxdiff.job import training as training_job
from jaxdiff.parallel import make_mesh
from jaxdiff.plan import compiling, planning

GiB = 2**30
CONFIG = Config(
    workdir="unused",
    data=Data(name="digits"),
    model=Model(channels=4, channel_mults=(1,), blocks=1, attention_resolutions=(), num_classes=10),
    train=Train(steps=1, batch_size=16, sample_every=0),
)


def compiled(peak, available=1000, temporaries=0, sent=()):
    return plan.Compiled(peak <= available, peak, available, 100, 0, temporaries, 0, sent, 1.0, "abc", "none")


def test_the_planned_step_is_the_step_that_train_runs(tmp_path, monkeypatch):
    """The same StableHLO: from a config alone, as the plan makes it, and out of a real job with its data and state."""
    hashes = []

    class Spied(assembling.Program):
        def compiled(self):
            return self._step

    def run(state, step, batches, key, *rest, steps, **more):
        _, batch = next(batches)
        hashes.append(plan.stablehlo_hash(step.lower(state, batch, key)))
        return state, steps

    monkeypatch.setattr(assembling, "Program", Spied)
    monkeypatch.setattr(execution, "run", run)
    config = dataclasses.replace(CONFIG, workdir=str(tmp_path / "run"))
    assert training_job.train(config, 0.0)[0] == 0
    monkeypatch.undo()
    planned = assemble(CONFIG, expect_dataset("digits"), jax.devices()).program
    assert hashes == [plan.stablehlo_hash(planned.lower())]
    other = assemble(planning.changed(CONFIG, "train.batch_size", 32), expect_dataset("digits")).program
    assert hashes != [plan.stablehlo_hash(other.lower())]


def test_collectives_of_a_known_program():
    """A sum over a batch on 8 devices is one all-reduce of the sum's bytes; a gathered array one all-gather of its."""
    mesh = make_mesh()
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    x = jax.ShapeDtypeStruct((16, 6, 10), jnp.float32)
    summed = jax.jit(lambda x: x.sum(0), in_shardings=rows, out_shardings=whole).lower(x).compile()
    assert plan.collectives(summed.as_text(), 8) == (plan.Collective("all-reduce", 8, 1, 6 * 10 * 4),)
    gathered = jax.jit(lambda x: x + 1, in_shardings=rows, out_shardings=whole).lower(x).compile()
    assert plan.collectives(gathered.as_text(), 8) == (plan.Collective("all-gather", 8, 1, 16 * 6 * 10 * 4),)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "%a = (f32[]{:T(128)}, bf16[3,3,8,8]{3,2,1,0:T(8,128)(2,1)S(1)}) all-reduce(%x, %y), "
            "replica_groups=mesh['data'=4,'fsdp'=2] {'data'}, to_apply=%add",
            ("all-reduce", 4, 1, 4 + 2 * 576),
        ),
        ("%a = f32[8]{0} all-reduce-start(%x), replica_groups=[2,4]<=[8], to_apply=%add", ("all-reduce", 4, 1, 32)),
        (
            "%a = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}",
            ("all-gather", 4, 1, 256),
        ),
        (
            "%a = f32[2,8]{1,0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, dimensions={0}",
            ("reduce-scatter", 4, 1, 256),
        ),
        (
            "%a = (bf16[8]{0}, bf16[8]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}",
            ("collective-permute", 8, 1, 16),
        ),
    ],
)
def test_collectives_of_every_spelling(line, expected):
    assert plan.collectives(line, 8) == (plan.Collective(*expected),)
    assert plan.collectives(line.replace("-start(", "-done("), 8) == () or "-start(" not in line


def test_bytes_sent_in_a_ring():
    """All-reduce: each device sends 2 (n - 1) / n of the bytes; all-gather and reduce-scatter: half of that."""
    assert plan.Collective("all-reduce", 4, 1, 400).sent == 600
    assert plan.Collective("all-gather", 4, 1, 400).sent == plan.Collective("reduce-scatter", 4, 1, 400).sent == 300
    assert plan.Collective("collective-permute", 4, 1, 400).sent == 400


@pytest.mark.parametrize("name", ["v5e:17x17", "v9:2x2", "v5e", "v5e:2x2@0", "v5e:2x2@two"])
def test_a_wrong_topology_is_refused(name):
    with pytest.raises(UserError, match="unknown topology"):
        plan.parse_topology(name)


def test_topologies():
    pod = plan.parse_topology("v5e:16x16@2")
    assert (pod.chips, pod.devices, str(pod)) == (512, 512, "v5e:16x16@2")
    ironwood = plan.parse_topology("tpu7x:2x2x1")
    assert (ironwood.chips, ironwood.devices, ironwood.hbm) == (4, 8, ironwood.chip.hbm // 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "v5e:2x2"], ["--topology", "--dry-run"]),
        (["--dry-run", "--plan-out", "x.json"], ["--plan-out", "--topology"]),
        (["--dry-run", "--topology", "v5e:2x2,v7e:2x2"], ["v7e:2x2", "v5e:{1x1,2x2", "tpu7x:{"]),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["train", "digits", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and all(word in line for word in words)


@pytest.mark.parametrize("slope", [0.01, 1, 37.5])
@pytest.mark.parametrize("first", [1, 16])
@pytest.mark.parametrize("kink", [0, 4])
def test_the_largest_batch_is_bracketed(slope, first, kink):
    """On affine memory, and on memory in steps of `kink` batches: the end that fits does, the other does not."""

    def peak(size):
        return 300 + slope * (size if not kink else -(-size // kink) * kink)

    calls = []

    def compile_size(size):
        calls.append(size)
        return compiled(int(peak(size)), 1000, temporaries=int(200 + slope * size))

    found = plan.largest_batch(compile_size, 2 * first, compile_size(2 * first), unit=2)
    truth = max(size for size in range(0, 140_000, 2) if int(peak(size)) <= 1000)
    assert found.fits <= truth < found.too_large and found.too_large - found.fits <= max(2, found.fits / 16)
    assert {found.fits, found.too_large} - {0} <= set(calls) and found.peak == int(peak(found.fits or found.too_large))
    assert len(calls) == len(set(calls)) == found.compilations <= (5 if not kink and slope == 1 else 24)


def test_nothing_fits():
    found = plan.largest_batch(lambda size: compiled(2000 + size), 8, compiled(2008), unit=4)
    assert (found.fits, found.too_large) == (0, 4)


def test_planned_state_bytes_are_those_of_a_count():
    """Parameters, average and two moments in float32, three int32 counters; with fsdp=4, kernels a quarter."""
    for fsdp in (1, 4):
        config = dataclasses.replace(CONFIG, parallel=dataclasses.replace(CONFIG.parallel, fsdp=fsdp))
        program = assemble(config, Expected((8, 8, 1), 10)).program
        expected, counters = 0, len([leaf for leaf in jax.tree.leaves(program.abstract) if leaf.shape == ()])
        for leaf in jax.tree.leaves(program.abstract.params):
            split = fsdp if leaf.ndim > 1 and any(n % fsdp == 0 for n in leaf.shape) else 1
            expected += 4 * 4 * leaf.size // split
        assert counters == 3
        assert planning.state_bytes(program.abstract) == expected + 4 * counters


class _Lowered:
    """A program whose compilation is scripted."""

    def __init__(self, error=None):
        self.compilations, self._error = 0, error

    def as_text(self):
        return "module"

    def compile(self):
        self.compilations += 1
        if self._error:
            raise jax.errors.JaxRuntimeError(self._error)
        return jax.jit(lambda x: x + 1).lower(jnp.zeros((256, 256))).compile()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling.importlib.metadata, "version", lambda package: "1.2")
    return tmp_path / "jaxdiff" / "plans"


def test_running_out_of_memory_is_a_result_and_kept(cache):
    message = (
        "RESOURCE_EXHAUSTED: E1000: ... memory required for HLO temporaries (21.06G) exceeds available HBM (15.75G)."
    )
    lowered = _Lowered(message)
    topology = plan.parse_topology("v5e:2x2")
    first, again = (compiling.compile_for(lowered, topology) for _ in range(2))
    assert not first.fits and (first.peak, first.available) == (int(21.06 * GiB), int(15.75 * GiB))
    assert first == again and lowered.compilations == 1
    compiling.compile_for(lowered, plan.parse_topology("v6e:2x2"))
    assert lowered.compilations == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        compiling.compile_for(_Lowered("something else"), plan.parse_topology("v4:2x2x1"))


@pytest.mark.parametrize("xdg", ["", "relative", "{folder}/a file"])
def test_a_cache_that_cannot_be_is_no_reason_to_stop(xdg, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "a file"))
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", xdg.format(folder=tmp_path))
    assert compiling.compile_for(_Lowered(), plan.parse_topology("v5e:2x2")).fits
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_a_compilation_is_kept_whole_and_a_damaged_record_made_anew(cache):
    lowered, topology = _Lowered(), plan.parse_topology("v5e:2x2")
    first, again = (compiling.compile_for(lowered, topology) for _ in range(2))
    assert first.fits and first.arguments == first.outputs == 256 * 256 * 4 and first == again
    (record,) = cache.iterdir()
    record.write_text('{"fits": true}')
    assert compiling.compile_for(lowered, topology).peak == first.peak and lowered.compilations == 2


def test_roofline_by_hand():
    """2 v5e chips' worth of arithmetic a second, on 4 chips, of which 3/4 is the model's own."""
    topology = plan.parse_topology("v5e:2x2")
    result = dataclasses.replace(
        compiled(0), arguments=819 * 10**6, temporaries=0, collectives=(plan.Collective("all-reduce", 4, 1, 10**9),)
    )
    flops = int(2 * 197e12)
    bound = plan.roofline(result, topology, flops, flops * 3 // 4, batch_size=64)
    np.testing.assert_allclose(bound, (0.5, 0.002, 1.5e9 / 200e9, 0.5, 128, 0.75))


def test_the_report_says_by_how_much_and_what_to_change():
    fits, wanted = compiled(8 * GiB, 16 * GiB), compiled(20 * GiB, 16 * GiB)
    made = plan.Plan(
        topology="v5e:2x2",
        chips=4,
        hosts=1,
        slices=1,
        devices=4,
        mesh={"data": 4, "fsdp": 1},
        batch_size=64,
        parameters=10,
        state_bytes=GiB,
        flops=4 * 10**12,
        model_flops=3 * 10**12,
        compiled=wanted,
        estimate=None,
        largest=plan.Largest(32, 36, 15 * GiB, 4),
        changes=(plan.Change("model.remat=True", fits, 5 * 10**12), plan.Change("parallel.fsdp=4", wanted, 4 * 10**12)),
    )
    text = plan.plan_text(made)
    assert "DOES NOT FIT: 20.00 GiB wanted, 16.00 GiB there, 4.00 GiB too much" in text
    assert "train.batch_size=32 or model.remat=True (compiled: each fits)" in text
    assert "33% of it recomputed" in text and "4 chips, 1 host, 1 slice" in text
    assert "32 fits, 8 a chip (15.00 GiB a device); 9 a chip does not" in text
    tree = json.loads(plan.plans_json(CONFIG, [made]))
    assert tree["plans"][0]["compiled"]["peak"] == 20 * GiB and tree["config"]["data"]["name"] == "digits"
    assert tree["plans"][0]["largest"]["fits"] == 32


def test_what_data_sets_are_is_known_without_them(tmp_path):
    opened = open_dataset("digits", str(tmp_path))
    assert expect_dataset("digits") == (opened.shape, opened.num_classes)
    assert expect_dataset("digits", resize=16).shape == (16, 16, 1)
    assert expect_dataset("cifar10", str(tmp_path)) == ((32, 32, 3), 10)
    with pytest.raises(UserError, match=r"set data\.resize"):
        expect_dataset("imagenet2012", str(tmp_path))
    with pytest.raises(UserError, match="unknown data set cifar11"):
        expect_dataset("cifar11", str(tmp_path))


def test_imagenet64_is_the_network_of_adm():
    """295.9 million, as OpenAI's checkpoint of 64x64_diffusion has: the 3 channels of variance among them."""
    config = load("imagenet64", CONFIGS)
    images = expect_dataset(config.data.name)
    assert images == ((64, 64, 3), 1000)
    program = assemble(planning.changed(config, "train.batch_size", 8), images).program
    assert sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params)) == 295_905_222


def test_pmap_is_not_planned():
    config = dataclasses.replace(CONFIG, parallel=dataclasses.replace(CONFIG.parallel, mode="pmap"))
    with pytest.raises(UserError, match=r"parallel\.mode=mesh"):
        plan.plan(config, "v5e:2x2")
