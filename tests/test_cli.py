"""The commands train and sample end to end, in process, with a network of some hundred parameters on 4x4 images."""

import collections
import contextlib
import json
import os
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from jaxdiff import commands, diffusion, pictures, plan
from jaxdiff.assembly import recipe
from jaxdiff.commands import main
from jaxdiff.commands.parser import CONFIGS
from jaxdiff.config import validate
from jaxdiff.config.files import load, read_run
from jaxdiff.errors import command, program
from jaxdiff.job import training as training_job
from jaxdiff.job import workdir
from jaxdiff.keys import purpose_key
from jaxdiff.objectives import Consistency
from jaxdiff.parallel import make_mesh
from jaxdiff.training import clock, logs
from jaxdiff.training.checkpoints import restore
from jaxdiff.training.snapshots import reconstruct

CONFIG = """
from jaxdiff.config import *
config = Config(
    data=Data(name="folder", path={path!r}),
    model=Model(channels=4, channel_mults=(1,), blocks=1, attention_resolutions=(), num_classes=2, dropout=0.1),
    optimizer=Optimizer(learning_rate=1e-2, warmup_steps=2),
    train=Train(steps=4, batch_size=8, checkpoint_every=2, log_every=1, sample_every=4, ema_decay=0.9),
    sampling=Sampling(steps=3, guidance=1.5),
)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The path of a config file whose data are 2 classes of 12 grey images."""
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 4, 4), np.uint8)
    for i, image in enumerate(pixels):
        path = folder / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "tiny.py").write_text(CONFIG.format(path=str(folder / "images")))
    return str(folder / "tiny.py")


def _train(config, workdir, *options):
    return main(["train", config, "--workdir", str(workdir), *options])


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """The workdir of a run of 4 steps."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    assert _train(config, workdir) == 0
    return workdir


def _metrics(workdir):
    """{step: (loss, grad_norm, ...)}; no step twice."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "loss_mean", "grad_norm", "learning_rate", "skipped")
    values = {line["step"]: tuple(line[name] for name in names) for line in lines}
    assert len(values) == len(lines)
    return values


def _same_bits(one, other):
    """Whether two runs end in the same state, with the same account of every step."""
    a, b = (jax.tree.leaves(restore(workdir)) for workdir in (one, other))
    same = all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    return same and _metrics(one) == _metrics(other)


def _contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _refusal(capsys, code=2):
    """The one line on stderr."""
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and captured.out == "", captured
    return lines[0]


def test_a_run_leaves_what_it_should(trained, config, capsys):
    assert read_run(trained).train.steps == 4
    assert list(_metrics(trained)) == [1, 2, 3, 4]
    assert any(p.name.startswith("events.out.tfevents") for p in trained.iterdir())
    with Image.open(trained / "samples" / "step_0000004.png") as grid:
        assert grid.size == (8 * 34 + 2, 2 * 34 + 2)  # a row a class
    assert int(restore(trained).step) == 4

    assert _train(config, trained) == 0  # done already
    closing = capsys.readouterr().out.splitlines()
    assert len(closing) == 1 and f"next: {command('sample')} {trained}" in closing[0]
    assert list(_metrics(trained)) == [1, 2, 3, 4]


def test_the_account_of_wall_time_adds_up(trained):
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    assert set(clock.SPANS) | {"other", "total"} == set(last)
    assert abs(last["other"]) <= 0.02 * last["total"]


@pytest.mark.slow
def test_loss_aware_times_go_on_where_they_were(config, tmp_path):
    """Bit for bit, with a history that is full, and so decides, before the run is cut."""
    aware = ["--diffusion.time_sampling", "loss_aware", "--diffusion.num_steps", "3", "--train.sample_every", "0"]
    aware += ["--train.steps", "9", "--model.dropout", "0"]
    straight, pieces = tmp_path / "straight", tmp_path / "pieces"
    assert _train(config, straight, *aware) == 0
    assert _train(config, pieces, *aware, "--train.steps", "6") == 0
    assert np.all(np.asarray(restore(pieces).objective["counts"]) >= 10)
    assert _train(config, pieces, *aware) == 0
    assert _same_bits(straight, pieces)


def test_a_run_in_two_pieces_ends_in_the_same_bits(trained, config, tmp_path):
    assert _train(config, tmp_path, "--train.steps", "3") == 0
    assert _train(config, tmp_path) == 0
    assert _same_bits(tmp_path, trained)


@contextlib.contextmanager
def _compilations():
    """How often programs were handed to the compiler (or its cache), by name."""
    counts = collections.Counter()

    def listen(event, duration, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            counts[about["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.clear_event_listeners()


def test_a_job_compiles_each_program_once_and_traces_steps_if_asked(config, tmp_path, capsys):
    """Started or resumed, over checkpoints and pictures; the step is none of the programs that run but once."""
    options = ("--train.sample-every", "1", "--train.checkpoint-every", "3")
    with _compilations() as counts:
        assert _train(config, tmp_path, *options, "--train.steps", "4", "--profile", "1") == 0
    assert [counts[f"jit({name})"] for name in ("init", "step", "run")] == [1, 1, 1], counts
    said = capsys.readouterr()
    assert f"profile: a trace of 1 calls is in {tmp_path / 'profile'}" in said.err
    assert len(list((tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb"))) == 1
    with _compilations() as counts:
        assert _train(config, tmp_path, *options, "--train.steps", "6", "--profile", "5") == 0
    assert [counts[f"jit({name})"] for name in ("init", "step", "run")] == [0, 1, 1], counts
    assert "nothing traced" in capsys.readouterr().err
    assert "mfu" not in (tmp_path / "metrics.jsonl").read_text()  # nobody publishes a peak of this CPU


def test_a_run_stopped_by_a_signal_saves_says_so_and_goes_on(trained, config, tmp_path, capsys, monkeypatch):
    update = logs.Progress.update

    def interrupted(self, step, loss, rate):
        update(self, step, loss, rate)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(logs.Progress, "update", interrupted)
        assert _train(config, tmp_path) == 75
    assert "stopped by SIGTERM after step 3 of 4" in capsys.readouterr().err
    assert int(restore(tmp_path).step) == 3
    assert _train(config, tmp_path) == 0
    assert _same_bits(tmp_path, trained)


def test_a_run_that_died_after_its_checkpoint_repeats_no_line(trained, config, tmp_path, monkeypatch):
    class Died(Exception):
        pass

    update = logs.Progress.update

    def dying(self, step, loss, rate):
        if step == 3:
            raise Died
        update(self, step, loss, rate)

    with monkeypatch.context() as patch:
        patch.setattr(logs.Progress, "update", dying)
        assert _train(config, tmp_path) == 1
    assert list(_metrics(tmp_path)) == [1, 2, 3] and int(restore(tmp_path).step) == 2
    assert _train(config, tmp_path) == 0
    assert _same_bits(tmp_path, trained)
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]["lost"] > 0


@pytest.mark.slow
def test_a_consistency_run_begins_with_the_average(trained, config, tmp_path, capsys):
    """At a rate of nearly 0 the parameters stay what they were."""
    start = (
        "--objective",
        "consistency",
        "--objective.start",
        str(trained),
        "--train.steps",
        "1",
        "--train.sample_every",
        "0",
    )
    assert _train(config, tmp_path / "a", *start, "--optimizer.learning_rate", "1e-12") == 0
    begun, average = restore(tmp_path / "a").params, restore(trained).ema_params
    chex.assert_trees_all_close(begun, average, rtol=0, atol=1e-9)
    capsys.readouterr()
    assert _train(config, tmp_path / "b", *start, "--model.channels", "8") == 2
    assert "model.channels 4, not 8; they must be equal" in _refusal(capsys)
    assert _train(config, tmp_path / "b", "--objective", "consistency", "--objective.start", str(tmp_path)) == 2
    assert "holds no run" in _refusal(capsys)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_consistency_loss_has_its_teacher_or_none_and_a_gap_that_narrows(trained):
    run, params = read_run(trained), restore(trained).ema_params
    made = recipe.make_recipe(run, (4, 4, 1))
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8))
    keys = jax.random.split(jax.random.key(0), 3)

    def losses(teacher, step=0):
        batch = {"image": images, "label": jnp.arange(3) % 2, "step": jnp.full(3, step)}
        objective = Consistency(start=str(trained), teacher=teacher is not None, halve_every=10)
        loss = objective.make(recipe.make_setting(run, made)).loss
        return loss(params, {"teacher": teacher}, batch, keys)

    alone, own, others = losses(None), losses(params), losses(jax.tree.map(lambda p: p + 0.1, params))
    assert np.all(alone != own) and np.all(own != others)
    np.testing.assert_array_equal(losses(params, 9), own)
    assert np.all(losses(params, 10) != own)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--parallel.mode", "pmap"), ("--train.steps-per-call", "3")])
def test_other_ways_to_run_a_step_give_the_same_numbers(trained, config, tmp_path, options):
    assert _train(config, tmp_path, *options, "--train.sample-every", "0") == 0
    assert list(_metrics(tmp_path)) == list(_metrics(trained))
    leaves = jax.tree_util.tree_leaves_with_path(restore(tmp_path))
    for (path, one), other in zip(leaves, jax.tree.leaves(restore(trained)), strict=True):
        # The bias of attention's keys has no gradient: Adam makes steps of a rounding error's sign.
        atol = 1e-4 if jax.tree_util.keystr(path).endswith("['key']['bias']") else 1e-5
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "1"], ["seed 0 -> 1"]),
        (["--model.channels", "8", "--train.batch_size=16"], ["model.channels 4 -> 8", "train.batch_size 8 -> 16"]),
        (["--train.steps", "3"], ["step 4 already"]),
    ],
)
def test_a_workdir_of_another_run_is_refused_and_left_alone(trained, config, capsys, options, words):
    before = _contents(trained)
    assert _train(config, trained, *options) == 2
    line = _refusal(capsys)
    assert all(word in line for word in words), line
    assert _contents(trained) == before


def test_data_that_changed_are_refused(trained, config, tmp_path, capsys):
    other = tmp_path / "images" / "a"
    other.mkdir(parents=True)
    (tmp_path / "images" / "b").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "images" / name / "0.png")
    assert _train(config, trained, "--data.path", str(tmp_path / "images")) == 2
    assert "other images" in _refusal(capsys)


def test_a_second_job_on_a_workdir_is_refused(trained, config, capsys):
    with workdir.owned(trained):
        assert _train(config, trained) == 2
    assert f"in use by process {os.getpid()}" in _refusal(capsys)
    assert _train(config, trained) == 0


def test_checkpoints_without_their_config_are_refused(config, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    assert _train(config, tmp_path) == 2
    assert "no config.json" in _refusal(capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digit"], ["'digit'", "did you mean 'digits'"]),
        (["missing.py"], ["no file missing.py"]),
        (["digits", "--train.stepz", "3"], ["--train.stepz", "--train.steps"]),
        (["digits", "--train.steps", "many"], ["--train.steps", "many"]),
        (["digits", "--parallel.mode", "xmap"], ["--parallel.mode", "mesh", "pmap"]),
        (["digits", "--train.steps"], ["--train.steps"]),
        (["digits", "--profile", "0"], ["--profile 0", "1 or more"]),
        (["digits", "cifar10"], ["cifar10"]),
        (["digits", "--diffusion.zero-snr", "True"], ["zero_snr", "v or x_0"]),
        (["{config}", "--train.batch_size", "12"], ["batch_size=12", "8 devices"]),
        (["{config}", "--model.channel_mults", "1", "2", "2", "2"], ["4x4", "multiples of 8"]),
        (["{config}", "--model.num_classes", "3"], ["num_classes=3", "set it to 2"]),
        (["{config}", "--data.path", "nowhere"], ["nowhere"]),
        (["{config}", "--data.name", "digitz"], ["digitz", "digits"]),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(config, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    workdir = tmp_path / "run"
    arguments = [argument.format(config=config) for argument in arguments]
    assert main(["train", *arguments, "--workdir", str(workdir)]) == 2
    line = _refusal(capsys)
    assert all(word in line for word in [f"{program('train')}: ", *words]), line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("workdir", "options", "words"),
    [
        ("ftp://host/run", [], "ftp://host/run is no place for files; name a folder, or an address in gs:// or s3://"),
        ("gs://bucket/run", ["--profile", "2"], "--profile needs a --workdir on this machine"),
    ],
)
def test_what_cannot_be_a_workdir(config, tmp_path, capsys, monkeypatch, workdir, options, words):
    monkeypatch.chdir(tmp_path)
    assert _train(config, workdir, *options) == 2
    assert words in _refusal(capsys)
    assert not any(tmp_path.iterdir())


def test_a_dry_run_says_what_it_costs_and_writes_nothing(trained, config, tmp_path, capsys, monkeypatch):
    assert _train(config, tmp_path / "run", "--dry-run", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(restore(trained).params))
    assert facts["config"]["optimizer"]["learning_rate"] == 0.01 and facts["seconds"] == 4 * facts["step_seconds"] > 0
    monkeypatch.setattr(plan, "describe", lambda config: {**facts, "seconds": 1e6})
    assert _train(config, tmp_path / "run", "--dry-run") == 0
    out = capsys.readouterr().out
    assert (
        f"parameters  {facts['parameters']:,}\n" in out
        and "about 11.6 days: 4 steps" in out
        and "MORE THAN A DAY" in out
    )
    assert "GFLOP" in out and "MiB" in out and "1.000 0.667 0.333 0.000" in out and not any(tmp_path.iterdir())


def test_the_default_config_and_workdir(monkeypatch):
    """`uv run train.py` alone, up to the job itself."""
    asked = []
    monkeypatch.setattr(
        training_job, "train", lambda config, began, profile, **how: asked.append(config) or (0, "done")
    )
    assert main(["train"]) == 0
    assert asked[0].data.name == "digits" and asked[0].workdir == "runs/digits"


def _sample(workdir, *options):
    return main(["sample", str(workdir), *options])


def _npz(workdir, out, *options):
    assert _sample(workdir, "--out", str(out), *options) == 0
    with np.load(out) as arrays:
        return dict(arrays)


def test_sample_i_depends_on_the_seed_and_i_alone(trained, tmp_path):
    whole = _npz(trained, tmp_path / "a.npz", "--num", "19", "--batch-size", "16")
    assert whole["images"].shape == (19, 4, 4, 1) and whole["images"].dtype == np.uint8
    assert whole["labels"].tolist() == [i % 2 for i in range(19)] and whole["labels"].dtype == np.int32
    ragged = _npz(trained, tmp_path / "b.npz", "--num", "19", "--batch-size", "8")
    few = _npz(trained, tmp_path / "c.npz", "--num", "3")  # a batch of 8: there are 8 devices
    other = _npz(trained, tmp_path / "d.npz", "--num", "3", "--seed", "1")
    assert _close(ragged["images"], whole["images"])
    assert _close(few["images"], whole["images"][:3])
    assert not _close(other["images"], few["images"])


def _close(one, other):
    """Equal up to a rounding of a pixel: other batch sizes sum in another order."""
    return np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_samples_are_drawn_from_the_average_as_the_run_says(trained, tmp_path):
    drawn = _npz(trained, tmp_path / "a.npz", "--num", "8")["images"]
    config, mesh, labels = read_run(trained), make_mesh(), np.arange(8) % 2
    state = restore(trained, sharding=NamedSharding(mesh, PartitionSpec()))

    def expected(params, sampling):
        made = recipe.make_recipe(config, (4, 4, 1))
        draw = diffusion.make_draw(made, recipe.make_method(made, sampling), 8, mesh)
        return pictures.to_uint8(draw(params, purpose_key(0, "sample"), 8, {"label": labels}))

    assert _close(drawn, expected(state.ema_params, config.sampling))
    assert not _close(drawn, expected(state.params, config.sampling))
    for option, value in (("guidance", 3.0), ("steps", 2), ("eta", 1.0), ("sampler", "heun")):
        changed = _npz(trained, tmp_path / "b.npz", "--num", "8", f"--{option}", str(value))["images"]
        sampling = type(config.sampling)(**{**vars(config.sampling), option: value})
        assert _close(changed, expected(state.ema_params, sampling)) and not _close(changed, drawn)


@pytest.mark.slow
def test_autoguidance_goes_away_from_an_earlier_step_or_another_run(trained, tmp_path, capsys):
    """The same step of itself changes nothing but rounding; an earlier one does; what names none is refused."""
    auto = ("--num", "8", "--guidance", "2", "--guidance-rule", "autoguidance")
    plain = _npz(trained, tmp_path / "a.npz", "--num", "8", "--guidance", "1")["images"]
    itself = _npz(trained, tmp_path / "b.npz", *auto, "--guidance-options.run", str(trained))["images"]
    earlier = _npz(trained, tmp_path / "c.npz", *auto, "--guidance-options.step", "2")["images"]
    assert _close(itself, plain) and not _close(earlier, plain)
    capsys.readouterr()
    assert _sample(trained, *auto) == 2
    assert "needs a worse model: guidance_options.run, step or ema" in _refusal(capsys)


@pytest.mark.slow
def test_an_average_of_another_width_is_that_which_a_run_would_have_tracked(config, tmp_path):
    """Snapshots of two widths, 40 steps; a third width made of them is within 2 % of the one tracked directly."""
    options = ("--train.steps", "40", "--train.checkpoint_every", "4", "--train.sample_every", "0")
    for name, widths in (("two", ("0.05", "0.10")), ("direct", ("0.08",))):
        assert _train(config, tmp_path / name, *options, "--train.posthoc_ema", *widths) == 0
    two, direct = (restore(tmp_path / name) for name in ("two", "direct"))
    made = reconstruct(tmp_path / "two", two, (0.05, 0.10), 0.08)
    away = [jax.tree.map(np.subtract, tree, direct.posthoc["0"]) for tree in (made, two.params, two.posthoc["0"])]
    error, last, nearest = (np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(tree))) for tree in away)
    assert error < 0.02 * last and error < 0.1 * nearest, (error, last, nearest)

    stranger = json.loads((tmp_path / "two" / "config.json").read_text()) | {"workdir": str(tmp_path / "elsewhere")}
    (tmp_path / "two" / "config.json").write_text(json.dumps(stranger))
    drawn = {}
    for width in ("0.08", "0.10"):
        out = tmp_path / f"{width}.npz"
        assert main(["sample", str(tmp_path / "two"), "--ema", width, "--num", "8", "--out", str(out)]) == 0
        drawn[width] = np.load(out)["images"]
    assert (drawn["0.08"] != drawn["0.10"]).any()
    assert main(["sample", str(tmp_path / "two"), "--ema", "0.08", "--num", "8"]) == 0
    assert not (tmp_path / "elsewhere").exists()  # what a config.json says of places is not followed


def test_a_ragged_last_batch_compiles_nothing(trained):
    config, mesh, compiled = read_run(trained), make_mesh(), []
    params = restore(trained, sharding=NamedSharding(mesh, PartitionSpec())).ema_params
    made = recipe.make_recipe(config, (4, 4, 1))
    draw = diffusion.make_draw(made, recipe.make_method(made, config.sampling), 8, mesh)
    draw(params, jax.random.key(0), 8, {"label": np.arange(8) % 2})
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    try:
        assert draw(params, jax.random.key(1), 19, {"label": np.arange(19) % 2}).shape == (19, 4, 4, 1)
        assert not [name for name in compiled if "compile" in name]
        jax.jit(lambda x: x + 3)(1.0)
        assert [name for name in compiled if "compile" in name]  # that it would have been noticed
    finally:
        jax.monitoring.clear_event_listeners()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A compilation cache that nobody else writes to."""
    reset_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "jaxdiff" / "xla"
    monkeypatch.undo()
    reset_cache()
    commands.use_compilation_cache()


def test_other_steps_eta_guidance_or_seeds_are_the_same_program(trained, tmp_path, own_cache):
    """Equal programs are found in the cache, where each program has one entry."""

    def entries(*options):
        _npz(trained, tmp_path / "a.npz", "--num", "8", *options)
        return len(list(own_cache.glob("jit_run-*-cache")))

    before = entries("--eta", "0.5")
    assert entries("--eta", "0.25", "--steps", "5", "--guidance", "2", "--seed", "3") == before > 0
    assert entries("--eta", "0.25", "--guidance", "1") == before + 1  # no guidance halves the work


def test_samples_as_a_grid_a_folder_and_a_walk(trained, tmp_path):
    assert _sample(trained, "--num", "5", "--classes", "1", "--out", str(tmp_path / "grid.png")) == 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (5 * 34 + 2, 34 + 2)
    assert _sample(trained, "--num", "2", "--out", str(tmp_path / "many")) == 0
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == ["000000.png", "000001.png"]
    assert _sample(trained, "--trajectory", "--num", "2") == 0
    with Image.open(trained / "samples" / "walk_ddim3_seed0.png") as sheet:
        assert sheet.size == (84 + 4 * 98 + 2, 34 + 4 * 98 + 2)  # 4 times, 2 samples of 2 rows
    assert _sample(trained, "--trajectory", "--steps", "6", "--num", "1", "--out", str(tmp_path / "walk.gif")) == 0
    with Image.open(tmp_path / "walk.gif") as walk:
        assert walk.n_frames == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--classes", "0", "2"], ["2", "0..1"]),
        (["--num", "0"], ["--num 0"]),
        (["--steps", "1001"], ["steps=1001", "1000"]),
        (["--sampler", "ddmi"], ["unknown sampler 'ddmi'", "choose one of ddpm, ddim"]),
        (["--sampler", "ddpm", "--eta", "0.5"], ["eta=0.5", "ddim"]),
        (["--out", "a.pgn"], ["a.pgn", ".npz"]),
        (["--out", "a.txt"], ["a.txt", ".npz"]),
        (["--trajectory", "--out", "a.npz"], ["a.npz", ".gif"]),
        (["--guidence", "2"], ["--guidence", "--guidance"]),
        (["--prompt", "a horse"], ["--prompt", "no prompt"]),
        (["--height", "64"], ["--height", "one size"]),
        (["--out", "."], ["other files"]),
    ],
)
def test_wrong_requests_are_one_line_and_write_nothing(trained, capsys, tmp_path, monkeypatch, options, words):
    (tmp_path / "mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    before = _contents(trained)
    assert _sample(trained, *options) == 2
    line = _refusal(capsys)
    assert all(word in line for word in [f"{program('sample')}: ", *words]), line
    assert _contents(trained) == before and os.listdir() == ["mine.txt"]


def test_a_workdir_without_a_run_or_a_checkpoint_is_refused(trained, tmp_path, capsys):
    assert _sample(tmp_path / "nowhere") == 2
    assert "no config.json" in _refusal(capsys)
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())
    assert _sample(tmp_path) == 2
    assert "no checkpoint" in _refusal(capsys)
    assert os.listdir(tmp_path) == ["config.json"]


def test_the_users_own_settings_of_the_cache_win(monkeypatch):
    set_to = {}
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    commands.use_compilation_cache()
    assert "jax_compilation_cache_dir" not in set_to
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/me/cache")
    commands.use_compilation_cache()
    assert set_to["jax_compilation_cache_dir"] == "/home/me/cache/jaxdiff/xla"


def test_every_config_of_the_repository_is_valid():
    found = {path.stem: validate(load(path.stem, CONFIGS)) for path in CONFIGS.glob("*.py")}
    assert "digits" in found and all(config.data.name for config in found.values())
