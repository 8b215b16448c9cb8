"""The long form: more kills, every file of a checkpoint damaged in every way, and what no file or signal can do."""

import itertools
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxdiff.data.batches import _order
from jaxdiff.training.checkpoints import restore
from tests.faults.harness import assert_close, assert_same_run, differing, losses, metrics, steps, write_images
from tests.faults.test_faults import kill_and_finish
from tests.training.test_processes import Job

pytestmark = pytest.mark.slow


def test_killed_a_dozen_times_with_averages_kept(starter, config, tmp_path):
    every = ("--train.steps", "150", "--train.checkpoint_every", "3", "--train.posthoc_ema", "0.05", "0.10")
    assert starter.run(config, "--workdir", str(tmp_path / "straight"), *every).code == 0
    kill_and_finish(starter, config, tmp_path / "run", [False, True, False] * 4, *every)
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def cut(content: bytearray) -> bytes:
    return bytes(content[: len(content) // 2])


def zero(content: bytearray) -> bytes:
    return bytes(len(content))


def flip(content: bytearray) -> bytes:
    content[len(content) // 2] ^= 4
    return bytes(content)


def test_every_file_of_the_newest_checkpoint_damaged(starter, config, straight, tmp_path):
    """The run goes back to the checkpoint before and ends in the same bits; or the file was not needed.

    The kinds of damage in turn; training/test_checkpoints.py has each for every file, without the command.
    """
    newest = straight / "checkpoints" / "40"
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    assert len(files) >= 5
    set_aside = []
    for number, (file, damage) in enumerate(zip(files, itertools.cycle([cut, zero, flip, None]), strict=False)):
        run = tmp_path / str(number)
        shutil.copytree(straight, run)
        path = run / "checkpoints" / "40" / file
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage(bytearray(path.read_bytes())))
        ended = starter.run(config, "--workdir", str(run))
        assert ended.code == 0, (file, ended.err)
        assert_same_run(run, straight)
        if "corrupt-40" in steps(run):
            set_aside.append(file)
            assert ended.line.startswith("checkpoint 40 is corrupt ("), file
        shutil.rmtree(run)
    assert len(set_aside) >= 2, set_aside


def test_when_all_checkpoints_are_corrupt_it_stops_and_never_begins_again(starter, config, straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for step in ("20", "30", "40"):
        largest = max((run / "checkpoints" / step / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
        largest.write_bytes(flip(bytearray(largest.read_bytes())))
    for _ in range(2):
        ended = starter.run(config, "--workdir", str(run))
        assert ended.code == 1
        assert "is corrupt" in ended.err.splitlines()[-1]
        assert steps(run) == ["corrupt-20", "corrupt-30", "corrupt-40"]
    assert len(losses(run)) == 40


def test_nan_batches_change_nothing_but_the_count(starter, config, tmp_path):
    for name, fault in (("nan", "nan_batches"), ("skipped", "skipped_batches")):
        ended = starter.run(config, "--workdir", str(tmp_path / name), **{fault: (12, 15)})
        assert ended.code == 0, ended.err
    assert differing(tmp_path / "nan", tmp_path / "skipped") == []
    assert metrics(tmp_path / "nan")[-1]["skipped"] == metrics(tmp_path / "skipped")[-1]["skipped"] == 4


def test_nothing_but_nan_stops_the_run_and_saves_nothing_of_it(starter, config, tmp_path):
    ended = starter.run(config, "--workdir", str(tmp_path / "run"), nan_batches=(12, 40))
    assert ended.code == 1
    assert "the loss was not finite for 20 steps" in ended.line
    state = restore(tmp_path / "run")
    assert all(np.all(np.isfinite(leaf)) for leaf in (*state.params["conv_in"].values(),))


def test_a_store_that_fails_now_and_then(starter, config, straight, tmp_path):
    ended = starter.run(config, "--workdir", str(tmp_path / "run"), flaky_store=(2,))
    assert ended.code == 0, ended.err
    assert [line for line in ended.err.splitlines() if "failure" in line]
    assert_same_run(tmp_path / "run", straight)
    ended = starter.run(config, "--workdir", str(tmp_path / "other"), flaky_store=(100,))
    assert ended.code == 1
    assert "was not saved" in ended.err.splitlines()[-1]


def test_reads_that_fail_once(starter, config, straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    ended = starter.run(config, "--workdir", str(tmp_path / "run"), "--train.steps", "45", flaky_reads=(1,))
    assert ended.code == 0, ended.err
    assert "corrupt-40" not in steps(tmp_path / "run")


def test_a_corrupt_image_stops_the_run_or_is_replaced_in_the_same_way_each_time(starter, config, tmp_path):
    images = write_images(tmp_path / "images")
    victim = sorted(images.rglob("*.png"))[random.Random(1).randrange(200)]
    victim.write_bytes(victim.read_bytes()[:60])
    where = ("--data.path", str(images))
    ended = starter.run(config, "--workdir", str(tmp_path / "stop"), *where)
    assert ended.code == 2
    assert victim.name in ended.line and "199 of 200 are good" in ended.line
    assert not (tmp_path / "stop").exists()
    where += ("--data.on_error", "substitute")
    assert starter.run(config, "--workdir", str(tmp_path / "straight"), *where).code == 0
    kill_and_finish(starter, config, tmp_path / "run", [False, False], *where)
    assert_same_run(tmp_path / "run", tmp_path / "straight")
    assert {line["substituted"] for line in metrics(tmp_path / "run")} == {1}


def test_what_is_substituted_while_training_is_counted_the_same_after_a_restart(starter, config, tmp_path):
    """Records read when their turn comes: a corrupt one stops the run, which goes on once it may be replaced."""
    images = write_images(tmp_path / "images")
    sampled = set(np.linspace(0, 199, 64, dtype=int).tolist())  # these the fingerprint reads
    order = _order(0, 0, 200).tolist()
    late = [place for place in range(96, 200) if order[place] not in sampled][:2]  # met in steps 13 and later
    for place in late:
        victim = sorted(images.rglob("*.png"))[order[place]]
        victim.write_bytes(victim.read_bytes()[:60])
    first, second = (place // 8 + 1 for place in late)
    where = ("--data.path", str(images))
    ended = starter.run(config, "--workdir", str(tmp_path / "run"), *where, read_by_workers=(1,))
    assert ended.code == 1
    ours = ended.err.splitlines()[0]  # Python's own tracker may say that shared memory was left to it
    assert "remove it, or set data.on_error=substitute; what was saved is in" in ours
    where += ("--data.on_error", "substitute")
    for name, until in (("straight", 40), ("run", first), ("run", 40)):
        options = ("--workdir", str(tmp_path / name), *where, "--train.steps", str(until))
        ended = starter.run(config, *options, read_by_workers=(1,))
        assert ended.code == 0, ended.err
        counts = {line["step"]: line.get("substituted", 0) for line in metrics(tmp_path / name)}  # 0: none so far
        assert counts == {step: (step >= first) + (step >= second) for step in range(1, until + 1)}
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_out_of_device_memory_says_what_to_lower(starter, config, tmp_path):
    options = ("--workdir", str(tmp_path / "run"), "--train.batch_size", "200000")
    ended = starter.run(config, *options, little_memory=(3.0,))
    assert ended.code == 1
    assert ended.line.startswith("train.py: out of device memory; lower train.batch_size, or raise train.accumulate (")
    assert not steps(tmp_path / "run")


PLANTED = """
from jaxdiff.training.checkpoints import Checkpoints
restore = Checkpoints.restore
def changed(self, abstract, step=None):
    state, meta = restore(self, abstract, step)
    params = jax.tree.map(lambda leaf: leaf, state.params)
    params["conv_out"]["bias"] = params["conv_out"]["bias"] + 1e-3
    return dataclasses.replace(state, params=params), meta
import dataclasses, jax
Checkpoints.restore = changed
"""


def test_a_difference_after_a_restart_is_reported_with_its_step_and_leaves(starter, config, tmp_path):
    """A config is code: this one makes every restart change a bias."""
    planted = tmp_path / "planted.py"
    planted.write_text(Path(config).read_text() + PLANTED)
    ended = starter.run(str(planted), "--verify-resume", "4")
    assert ended.code == 1
    how = "train.py: resuming changes bits: 4 steps at once and 2 + 2 differ; the loss differs from step 3 on, "
    assert ended.line.startswith(how) and "params/conv_out/bias" in ended.line


@pytest.mark.parametrize("mode", ["pmap", "processes"])
def test_other_layouts_give_the_same_parameters(mode, starter, config, straight, tmp_path):
    """30 steps: 1 device against 8 under pmap, and against 2 processes of 4."""
    run = tmp_path / "run"
    options = ("--workdir", str(run), "--train.steps", "30")
    if mode == "pmap":
        ended = starter.run(config, *options, "--parallel.mode", "pmap", devices=8)
        assert ended.code == 0, ended.err
    else:
        job = Job(tmp_path / "job", 2, 4, ["train.py", config], options)
        assert job.wait() == [0, 0], job.text(0) + job.text(1)
    assert_close(run, straight, 30)


def test_data_that_changed_are_refused(starter, config, straight, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    fewer = write_images(tmp_path / "fewer", 190)
    where = ("--data.path", str(fewer), "--train.steps", "45")
    ended = starter.run(config, "--workdir", str(tmp_path / "run"), *where)
    assert ended.code == 2
    assert "holds other images than when the run" in ended.line
    assert steps(tmp_path / "run") == steps(straight)
