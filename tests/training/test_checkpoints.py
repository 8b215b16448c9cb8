"""Checkpoints: bit-exact round trips, and every kind of damage found out."""

import json
import logging
import os
import pathlib
import pickle
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError
from fsspec.exceptions import FSTimeoutError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from s3fs.errors import translate_boto_error

from jaxdiff import parallel
from jaxdiff.errors import UserError
from jaxdiff.training import checkpoint_files as reading
from jaxdiff.training import checkpoints, integrity, storage_faults
from jaxdiff.training.optimizer import make_optimizer
from jaxdiff.training.state import TrainState, init_state

OPTIMIZER = make_optimizer(1e-3, warmup_steps=3)


def make_state(step: int = 0, width: int = 16) -> TrainState:
    """A small state with no two leaves alike and a bfloat16 leaf among them."""
    key = jax.random.key(step)
    params = {
        "dense": {"kernel": jax.random.normal(key, (4, width)), "bias": jnp.zeros(width)},
        "table": jax.random.normal(key, (3, 8)).astype(jnp.bfloat16),
    }
    state = init_state(params, OPTIMIZER)
    leaves, structure = jax.tree.flatten(state)
    leaves = [leaf + jnp.asarray(i + 1, leaf.dtype) if leaf.ndim else leaf for i, leaf in enumerate(leaves)]
    state = jax.tree.unflatten(structure, leaves)
    return TrainState(jnp.int32(step), state.params, state.ema_params, state.opt_state)


def assert_same_bits(a, b):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def save_steps(workdir, *steps: int, **options) -> None:
    with checkpoints.Checkpoints(workdir, **options) as store:
        for step in steps:
            store.save(make_state(step), {"note": step})


def test_an_owner_without_a_name_is_no_reason_to_stop(tmp_path, monkeypatch):
    """In containers a user may be a number alone."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("grp.getgrgid", unknown)
    save_steps(tmp_path, 5)
    assert_same_bits(checkpoints.restore(tmp_path), make_state(5))


def data_files(step: pathlib.Path) -> list[pathlib.Path]:
    return list((step / "state").rglob("d/*"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with steps 5 and 8, to be copied before it is damaged."""
    workdir = tmp_path_factory.mktemp("saved")
    save_steps(workdir, 5, 8)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def test_restores_structure_bits_and_meta(saved):
    with checkpoints.Checkpoints(saved) as store:
        state, meta = store.restore(make_state(0))
    assert jax.tree.structure(state) == jax.tree.structure(make_state(8))
    assert_same_bits(state, make_state(8))
    assert meta == {"note": 8}


def test_restores_without_a_config(saved):
    state = checkpoints.restore(saved)
    assert isinstance(state, TrainState) and int(state.step) == 8
    assert_same_bits((state.params, state.ema_params), (make_state(8).params, make_state(8).ema_params))
    assert jax.tree.structure(state.params) == jax.tree.structure(make_state(8).params)
    expected = integrity.flatten(make_state(8))
    assert_same_bits(integrity.flatten(state), {name: expected[name] for name in sorted(expected)})
    assert int(checkpoints.restore(saved, step=5).step) == 5


def test_restores_onto_any_mesh(saved):
    for fsdp in (1, 4):
        mesh = parallel.make_mesh(fsdp)
        abstract = parallel.abstract_state(make_state, mesh)
        with checkpoints.Checkpoints(saved) as store:
            state, _ = store.restore(abstract)
        assert_same_bits(state, make_state(8))
        for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
            assert leaf.sharding == wanted.sharding
        everywhere = NamedSharding(mesh, PartitionSpec())
        assert checkpoints.restore(saved, sharding=everywhere).params["table"].sharding == everywhere


def test_a_state_saved_sharded_is_read_whole(tmp_path):
    shardings = parallel.state_shardings(make_state(3), parallel.make_mesh(4))
    with checkpoints.Checkpoints(tmp_path) as store:
        store.save(jax.device_put(make_state(3), shardings))
    assert_same_bits(checkpoints.restore(tmp_path).params, make_state(3).params)


def test_keeps_the_newest(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4, keep=2)
    with checkpoints.Checkpoints(tmp_path, keep=2) as store:
        assert store.steps() == [3, 4] and store.latest() == 4


def test_a_state_may_be_donated_once_save_returns(tmp_path):
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    params = {"w": jax.random.normal(jax.random.key(0), (1024, 1024))}
    state = init_state(params, optax.sgd(0.1))
    expected = np.asarray(jnp.copy(params["w"]))
    with checkpoints.Checkpoints(tmp_path) as store:
        store.save(state)
        state = overwrite(state)
        for _ in range(20):
            state = overwrite(state)
    assert_same_bits(checkpoints.restore(tmp_path).params["w"], expected)


def test_a_restored_state_can_be_donated(saved):
    with checkpoints.Checkpoints(saved) as store:
        state, _ = store.restore(make_state(0))
    result = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)
    assert state.params["table"].is_deleted()
    assert_same_bits(result, jax.tree.map(lambda x: x + 1, make_state(8)))


def test_no_checkpoint_is_a_user_error(tmp_path, saved):
    with pytest.raises(UserError, match=r"no checkpoint in .*; train first"):
        checkpoints.restore(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(UserError, match=r"no checkpoint of step 6 in .*; it has 5, 8"):
        checkpoints.restore(saved, step=6)
    with checkpoints.Checkpoints(tmp_path / "new") as store:
        assert store.latest() is None


def damage(path: pathlib.Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "zeroed":
        path.write_bytes(bytes(len(content)))
    else:
        content[len(content) // 2] ^= 16
        path.write_bytes(content)


FILES = ("meta/metadata", "state/manifest.ocdbt", "state/_METADATA", "data")


@pytest.mark.parametrize("how", ["bit flipped", "truncated", "zeroed", "deleted"])
@pytest.mark.parametrize("file", FILES)
def test_damage_is_found_and_the_step_before_is_used(workdir, capsys, how, file):
    step = workdir / "checkpoints" / "8"
    for path in data_files(step) if file == "data" else [step / file]:
        damage(path, how)
    with checkpoints.Checkpoints(workdir) as store:
        state, meta = store.restore(make_state(0))
        lines = capsys.readouterr().err.splitlines()
        if int(state.step) == 8:  # a file that is not needed: nothing lost
            assert file == "state/_METADATA" and not lines
            assert_same_bits(state, make_state(8))
            return
        assert_same_bits(state, make_state(5))
        assert meta == {"note": 5} and store.steps() == [5]
        assert (workdir / "checkpoints" / "corrupt-8").is_dir()
        [line] = lines
        assert line.startswith("checkpoint 8 is corrupt (")
        assert line.endswith("set aside as corrupt-8, going back to checkpoint 5")
        store.save(make_state(8))
        store.wait()
        assert_same_bits(store.restore(make_state(0))[0], make_state(8))


def test_a_flipped_bit_names_its_leaf(workdir, monkeypatch):
    """Every leaf in turn reads back with one bit wrong, as a storage layer without checksums gives it."""
    real = reading._arrays
    for name in integrity.flatten(make_state(0)):

        def flipped(path, abstract, name=name):
            flat = real(path, abstract)
            bits = np.asarray(flat[name]).copy()
            bits.reshape(-1).view(np.uint8)[0] ^= 1
            return {**flat, name: jnp.asarray(bits)}

        monkeypatch.setattr(reading, "_arrays", flipped)
        with pytest.raises(checkpoints.CheckpointError, match=rf"checkpoint 8 is corrupt \({name}: the bits differ"):
            checkpoints.restore(workdir, step=8)


def test_a_reader_passes_over_damage_and_renames_nothing(workdir, capsys):
    for path in data_files(workdir / "checkpoints" / "8"):
        damage(path, "truncated")
    assert int(checkpoints.restore(workdir).step) == 5
    assert "checkpoint 8 is corrupt (" in capsys.readouterr().err
    assert sorted(os.listdir(workdir / "checkpoints")) == ["5", "8"]


def test_when_all_are_corrupt_it_stops_for_good(workdir):
    for step in ("5", "8"):
        damage(workdir / "checkpoints" / step / "meta" / "metadata", "truncated")
    for _ in range(2):  # the second time, only what was set aside is left
        with checkpoints.Checkpoints(workdir, warn=lambda line: None) as store:
            with pytest.raises(checkpoints.CheckpointError, match=r"every checkpoint in .* is corrupt"):
                store.restore(make_state(0))
            with pytest.raises(checkpoints.CheckpointError, match=r"every checkpoint in .* is corrupt"):
                store.latest()
        with pytest.raises(checkpoints.CheckpointError, match=r"every checkpoint in .* is corrupt"):
            checkpoints.restore(workdir)


def test_a_checkpoint_that_does_not_fit_names_every_leaf_and_stays(workdir):
    other = make_state(0, width=32)
    other.params["more"] = jnp.zeros(2)
    del other.ema_params["table"]
    other.params["table"] = other.params["table"].astype(jnp.float32)
    with checkpoints.Checkpoints(workdir) as store, pytest.raises(UserError) as error:
        store.restore(other)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "params/more is missing in the checkpoint",
        "ema_params/table is not in this run",
        "params/table is bfloat16[3, 8], this run has float32[3, 8]",
        "params/dense/kernel is float32[4, 16], this run has float32[4, 32]",
        "opt_state/1/0/nu/dense/bias is float32[16], this run has float32[32]",
    ):
        assert part in message
    assert sorted(os.listdir(workdir / "checkpoints")) == ["5", "8"]


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    state = make_state(2)
    state.ema_params["dense"]["kernel"] = state.ema_params["dense"]["kernel"].at[1, 1].set(jnp.nan)
    with checkpoints.Checkpoints(tmp_path) as store:
        with pytest.raises(
            checkpoints.CheckpointError, match="step 2 was not saved: ema_params/dense/kernel not finite"
        ):
            store.save(state)
    assert os.listdir(tmp_path / "checkpoints") == []


class Failing(ocp.AsyncCheckpointer):
    """A store whose next `left` saves come to nothing, which shows when they are waited for."""

    left = 0
    error: Exception = OSError(5, "Input/output error")
    _saved = False

    def save(self, directory, *args, **kwargs):
        super().save(directory, *args, **kwargs)
        self._saved = True
        if Failing.left:
            super().wait_until_finished()
            directory.rmtree()

    def wait_until_finished(self):
        super().wait_until_finished()
        saved, self._saved = self._saved, False
        if saved and Failing.left:
            Failing.left -= 1
            raise Failing.error


@pytest.fixture
def failing(monkeypatch):
    monkeypatch.setattr(ocp, "AsyncCheckpointer", Failing)
    monkeypatch.setattr(checkpoints, "PATIENCE_S", 0.0)
    return Failing


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectTimeoutError(endpoint_url="https://b/run"), "flaky"),
        (FSTimeoutError(), "flaky"),
        (translate_boto_error(ClientError({"Error": {"Code": "403", "Message": "no"}}, "get")), "hopeless"),
        (translate_boto_error(ClientError({"Error": {"Code": "404", "Message": "no"}}, "get")), "corrupt"),
        (ValueError("no JSON"), "corrupt"),
    ],
)
def test_a_store_that_does_not_answer_condemns_no_checkpoint(error, kind):
    assert storage_faults.kind(error) == kind


def test_a_flaky_store_is_tried_again(failing, tmp_path):
    lines = []
    failing.left, failing.error = 2, OSError(5, "Input/output error")
    with checkpoints.Checkpoints(tmp_path, warn=lines.append) as store:
        store.save(make_state(1), wait=True)
        assert store.steps() == [1] and len(lines) == 2
        failing.left = 1
        store.save(make_state(2))
        store.save(make_state(3))
        assert len(lines) == 3 and "step 2 was not saved (input/output error); failure 1 of at most 2" in lines[2]
        store.wait()
        assert store.steps() == [1, 3]
        failing.left = 3
        with pytest.raises(
            checkpoints.CheckpointError, match="step 5 was not saved: input/output error; check the disk"
        ):
            store.save(make_state(5), wait=True)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ValueError("RESOURCE_EXHAUSTED: Error [OS error 28: No space left on device]"),
            "no space left on device; free",
        ),
        (OSError(30, "Read-only file system"), "read-only file system; get access"),
    ],
)
def test_a_full_or_read_only_disk_stops_at_once(failing, tmp_path, error, words):
    save_steps(tmp_path, 1)
    failing.left, failing.error = 1, error
    store = checkpoints.Checkpoints(tmp_path)
    with pytest.raises(
        checkpoints.CheckpointError, match=f"step 2 was not saved: {words}.*has checkpoints 1"
    ) as caught:
        store.save(make_state(2), wait=True)
    assert "\n" not in str(caught.value)
    store.close()


class Tampering(ocp.AsyncCheckpointer):
    """A store that reports each save as done and then does something to it."""

    tamper = staticmethod(lambda step: None)
    _saved = None

    def save(self, directory, *args, **kwargs):
        super().save(directory, *args, **kwargs)
        self._saved = pathlib.Path(directory)

    def wait_until_finished(self):
        super().wait_until_finished()
        saved, self._saved = self._saved, None
        if saved is not None:
            Tampering.tamper(saved)


@pytest.fixture
def tampering(monkeypatch):
    monkeypatch.setattr(ocp, "AsyncCheckpointer", Tampering)
    monkeypatch.setattr(Tampering, "tamper", staticmethod(lambda step: None))
    return Tampering


def _another_manifest(step):
    """A whole one, of other weights."""
    flat = integrity.flatten(make_state(7))
    document = integrity.describe(int(step.name), flat, integrity.measure(flat)[0], {})
    (step / "meta" / "metadata").write_text(json.dumps(document))


LIES = {
    "nothing is there": (shutil.rmtree, "it is missing"),
    "the index was never merged": (
        lambda step: (step / "state" / "manifest.ocdbt").unlink(),
        "step: a file is missing",
    ),
    "no data": (lambda step: [path.unlink() for path in data_files(step)], "step: a file is missing"),
    "a bit": (lambda step: [damage(path, "bit flipped") for path in data_files(step)], ""),
    "cut": (lambda step: [damage(path, "truncated") for path in data_files(step)], ""),
    "no manifest": (lambda step: (step / "meta" / "metadata").unlink(), "meta: "),
    "another manifest": (_another_manifest, "meta: it differs from what was saved"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_save_that_cannot_be_read_back_ends_the_run_and_costs_no_older_checkpoint(tampering, tmp_path, lie):
    tamper, words = LIES[lie]
    with pytest.raises(checkpoints.CheckpointError) as caught, checkpoints.Checkpoints(tmp_path, keep=1) as store:
        store.save(make_state(1))
        store.save(make_state(2))
        store.wait()
        tampering.tamper = tamper
        store.save(make_state(3))
        store.close()
    line = str(caught.value)
    assert line.startswith(f"checkpoint 3 in {tmp_path}/checkpoints was written and cannot be read back ({words}")
    assert "\n" not in line and "the newest good one is 2; check the disk or store and run the same" in line
    assert_same_bits(checkpoints.restore(tmp_path, 2).params, make_state(2).params)


def test_a_save_known_to_be_bad_ends_the_run_before_the_next_one_is_due(tampering, tmp_path):
    tampering.tamper = shutil.rmtree
    with pytest.raises(checkpoints.CheckpointError, match=r"checkpoint 1 in .*it is missing.*there is no other"):
        with checkpoints.Checkpoints(tmp_path) as store:
            store.check()
            store.save(make_state(1))
            store._verified.result()
            store.check()


def test_a_save_is_read_from_the_disk_in_the_background(tmp_path, monkeypatch):
    """What the manifest lists is read once, by another thread; nothing of it goes to a device."""
    real, read = reading._whole, []

    def whole(path, name, leaf, context):
        read.append((name, threading.current_thread() is threading.main_thread()))
        return real(path, name, leaf, context)

    monkeypatch.setattr(reading, "_whole", whole)
    monkeypatch.setattr(reading, "_arrays", None)
    with checkpoints.Checkpoints(tmp_path) as store:
        store.save(make_state(4))
    assert sorted(read) == [(name, False) for name in sorted(integrity.flatten(make_state(4)))]


def test_what_a_library_warns_of_during_a_save_is_one_line_and_its_tracebacks_are_none(tampering, tmp_path, capsys):
    logger, lines = logging.getLogger("absl"), []
    before = logger.handlers, logger.level, logger.propagate

    def speak(step):
        logger.warning("Skipping merge of %s:\n nothing found", step.name)
        logger.info("all is well")
        logger.error("it failed", exc_info=ValueError("which is raised, too"))

    tampering.tamper = speak
    logger.setLevel(logging.CRITICAL)  # as a command does
    with checkpoints.Checkpoints(tmp_path, warn=lines.append) as store:
        store.save(make_state(1))
    assert lines == ["warning of the checkpoint library: Skipping merge of 1: nothing found"]
    assert capsys.readouterr().err == ""
    assert (logger.handlers, logger.level, logger.propagate) == (before[0], logging.CRITICAL, before[2])
    logger.setLevel(before[1])


PATTERNS = ["exp[mults=1,2]", "[ab]", "a[0-9]b", "a*b", "**", "a?b", "{a,b}", "100%", "%41", "a#b", "~", "a b", "a:b"]
PATTERNS += ["größe", "e\u0301", "a\nb", "-x", "s3:x", "file:", "a|zip:b", "$HOME", "'\"`"]


@pytest.mark.parametrize("name", PATTERNS)
def test_a_path_is_a_path_whatever_is_in_it(tmp_path, monkeypatch, name):
    """In the workdir's own name, and in that of the current folder alone; folders of like names are left alone."""
    others = [
        tmp_path / other / "run" / "checkpoints" / "1.orbax-checkpoint-tmp" for other in ("a", "axb", "a5b", "~x")
    ]
    for other in others:
        other.mkdir(parents=True)
    (tmp_path / name).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / name)
    save_steps("run", 1, 2, 3, keep=2)
    for workdir in ("run", tmp_path / name / "run"):
        assert_same_bits(checkpoints.restore(workdir).params, make_state(3).params)
    assert sorted(os.listdir("run/checkpoints")) == ["2", "3"]
    shutil.copytree("run/checkpoints/3", "run/checkpoints/9.orbax-checkpoint-tmp")
    with checkpoints.Checkpoints("run") as store:
        assert store._set_aside(3) == "corrupt-3"
    assert sorted(os.listdir("run/checkpoints")) == ["2", "corrupt-3"]
    assert all(other.exists() for other in others)
    assert len(list(tmp_path.iterdir())) == len({"a", "axb", "a5b", "~x", name})


@pytest.mark.parametrize("name", ["a\\b", "a\\", "gs:", "logs:", os.fsdecode(b"gr\xf6\xdfe"), "a\0b"])
def test_a_name_that_a_library_takes_for_another_is_refused_before_anything_is_written(tmp_path, name):
    for act in (checkpoints.Checkpoints, checkpoints.restore):
        with pytest.raises(
            UserError, match="which the libraries that write checkpoints do not take for a folder's name"
        ):
            act(tmp_path / name / "run")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path / "target\\")
    (tmp_path / "target\\").mkdir()
    save_steps(tmp_path / "link", 1)  # what the message advises
    assert int(checkpoints.restore(tmp_path / "link").step) == 1


@pytest.mark.parametrize("root", ["gs", "s3", "az", "hf"])
def test_a_folder_of_the_root_that_etils_takes_for_buckets_is_refused(root):
    with pytest.raises(UserError, match=f"has '/{root}' in it"):
        checkpoints.restore(f"/{root}/runs/x")


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(checkpoints.CheckpointError, match=r"cannot write to .*checkpoints"):
        checkpoints.Checkpoints(tmp_path)


def test_what_an_interrupted_save_left_is_removed_and_never_read(workdir):
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "8", folder / "9.orbax-checkpoint-tmp")
    assert int(checkpoints.restore(workdir).step) == 8
    checkpoints.Checkpoints(workdir).close()
    assert sorted(os.listdir(folder)) == ["5", "8"]


@pytest.fixture
def as_in_a_bucket(monkeypatch, tmp_path):
    """(whole steps, interrupted ones, and such that lack the last file) -> a folder, taken for one in a bucket."""
    monkeypatch.setattr(reading, "in_bucket", lambda path: "checkpoints" in str(path))

    def make(whole, half, almost=()):
        for step in (*whole, *half, *almost):
            (tmp_path / "checkpoints" / str(step) / "state").mkdir(parents=True)
        for step in almost:
            (tmp_path / "checkpoints" / str(step) / "state" / "manifest.ocdbt").touch()
        for step in whole:
            (tmp_path / "checkpoints" / str(step) / "commit_success.txt").touch()
        return tmp_path

    return make


def test_in_a_bucket_what_is_not_whole_is_no_step_and_is_removed(as_in_a_bucket):
    with checkpoints.Checkpoints(as_in_a_bucket([10], [5, 15])) as manager:
        assert manager.steps() == [10]
        assert [path.name for path in manager._directory.iterdir()] == ["10"]


def test_in_a_bucket_interrupted_first_saves_are_no_checkpoints_but_several_without_their_word_are_damage(
    as_in_a_bucket,
):
    workdir = as_in_a_bucket([], [5, 7])
    with checkpoints.Checkpoints(workdir) as manager:
        assert manager.latest() is None
        as_in_a_bucket([], [], [10, 15])
        with pytest.raises(checkpoints.CheckpointError, match=r"none has its commit_success.txt; put the files back"):
            manager.latest()
    with checkpoints.Checkpoints(workdir):
        assert len(list((workdir / "checkpoints").iterdir())) == 4


def test_nothing_is_unpickled(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle")

    for name in ("load", "loads", "Unpickler", "dump", "dumps", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert int(checkpoints.restore(saved).step) == 8


def test_a_step_is_saved_once(workdir):
    before = (workdir / "checkpoints" / "8" / "meta" / "metadata").stat().st_mtime_ns
    with checkpoints.Checkpoints(workdir) as store:
        store.save(make_state(8), {"note": "again"})
    assert (workdir / "checkpoints" / "8" / "meta" / "metadata").stat().st_mtime_ns == before


def test_the_manifest_is_plain_json_beside_the_state(saved):
    document = json.loads((saved / "checkpoints" / "8" / "meta" / "metadata").read_text())
    assert document["body"]["leaves"]["params/dense/kernel"][:2] == [[4, 16], "float32"]
    assert document["body"]["step"] == 8


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_checkpoint_of_a_stranger_is_the_one_saved_or_one_error_and_writes_nothing(saved, tmp_path_factory, data):
    """Any file of it, with any bytes in any place: the bits that were saved, or CheckpointError; no file changes."""
    place = tmp_path_factory.mktemp("strangers")
    shutil.copytree(saved, place / "run")
    files = sorted(path for path in (place / "run" / "checkpoints" / "8").rglob("*") if path.is_file())
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True)):
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, max(0, len(content) - 1)))
            content[at : at + data.draw(st.integers(0, 16))] = data.draw(st.binary(max_size=16))
        path.write_bytes(content)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    try:
        assert_same_bits(checkpoints.restore(place / "run", 8), make_state(8))
    except checkpoints.CheckpointError as error:
        assert "\n" not in str(error)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    shutil.rmtree(place)
