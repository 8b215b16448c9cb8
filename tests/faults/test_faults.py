"""What happens to runs, in a minute: killed, stopped, damaged, refused; they go on in the same bits or say why not."""

import json
import os
import random
import shutil
import signal
import subprocess

import pytest

from jaxdiff.training.checkpoints import restore
from tests.faults.harness import (
    assert_close,
    assert_same_run,
    half_written,
    last_step,
    losses,
    metrics,
    steps,
)


def kill_once(job, workdir, mid_save: bool, chance: random.Random) -> bool:
    """Ends a job by kill -9, in the middle of a save or some steps on; whether it was what was asked for."""
    if mid_save:
        job.until(lambda: not half_written(workdir), "a start that cleans up")
        job.until(lambda: half_written(workdir), "a save")
    else:
        target = last_step(workdir) + chance.randrange(1, 9)
        job.until(lambda: (workdir / "clock.json").exists() and last_step(workdir) >= target, f"step {target}")
    job.signal(signal.SIGKILL)
    assert job.wait().code == -signal.SIGKILL
    return bool(half_written(workdir)) or not mid_save


def kill_and_finish(starter, config, workdir, kills: list[bool], *options: str):
    """Kills a run as listed (True: in the middle of a save), lets it end, and returns the wall time of all starts."""
    chance = random.Random(0)
    wall, attempts = 0.0, 0
    while kills:
        attempts += 1
        assert attempts < 40, "no save could be hit in the middle"
        job = starter.start(config, "--workdir", str(workdir), *options, slow_steps=(0.03,))
        if kill_once(job, workdir, kills[0], chance):
            kills.pop(0)
        wall += job.wait().seconds
    ended = starter.run(config, "--workdir", str(workdir), *options)
    assert ended.code == 0, ended.err
    return wall + ended.seconds, ended


def assert_accounted(workdir, wall: float, closing: str) -> None:
    """The parts of the wall time add up, and to what a stopwatch beside the processes says."""
    seconds = json.loads((workdir / "clock.json").read_text())["closed"]["seconds"]
    assert abs(seconds["other"]) <= 0.02 * seconds["total"], seconds
    assert sum(value for name, value in seconds.items() if name != "total") == pytest.approx(seconds["total"], abs=0.1)
    # Not even the last process can write down how long it took to exit, nor one that is killed its last moment.
    assert seconds["total"] == pytest.approx(wall, abs=0.02 * wall + 0.5), (seconds, wall)
    assert seconds["lost"] > 0 and f"lost {seconds['lost']:.0f} s" in closing
    last = metrics(workdir)[-1]["seconds"]
    assert last["lost"] == seconds["lost"] and abs(last["other"]) <= 0.02 * last["total"]


@pytest.mark.slow
def test_killed_three_times_and_no_bit_differs(starter, config, straight, tmp_path):
    every = ("--train.checkpoint_every", "3")
    wall, ended = kill_and_finish(starter, config, tmp_path / "run", [False, True, False], *every)
    assert_same_run(tmp_path / "run", straight)
    assert_accounted(tmp_path / "run", wall, ended.out)
    assert not half_written(tmp_path / "run")


@pytest.mark.slow
def test_eight_devices_give_the_same_parameters(starter, config, straight, tmp_path):
    ended = starter.run(config, "--workdir", str(tmp_path / "run"), "--train.steps", "30", devices=8)
    assert ended.code == 0, ended.err
    assert_close(tmp_path / "run", straight, 30)


@pytest.mark.slow
def test_stopped_by_sigterm_it_saves_within_seconds_and_goes_on(starter, config, straight, tmp_path):
    job = starter.start(config, "--workdir", str(tmp_path / "run"), slow_steps=(0.05,))
    job.until(lambda: last_step(tmp_path / "run") >= 12, "step 12")
    before = job.wait_seconds(signal.SIGTERM)
    ended = job.wait()
    assert ended.code == 75 and before < 20
    step = int(restore(tmp_path / "run").step)
    assert 12 <= step < 40 and step % 10
    assert ended.line == (
        f"train.py: stopped by SIGTERM after step {step} of 40, all saved in {tmp_path / 'run'}; "
        "run the same command again to go on"
    )
    assert len(losses(tmp_path / "run")) == step
    assert starter.run(config, "--workdir", str(tmp_path / "run")).code == 0
    assert_same_run(tmp_path / "run", straight)


def test_a_flipped_bit_costs_a_checkpoint_and_no_bit(starter, config, straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    largest = max((run / "checkpoints" / "40" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)
    ended = starter.run(config, "--workdir", str(run))
    assert ended.code == 0
    assert ended.line.startswith("checkpoint 40 is corrupt (")
    assert ended.line.endswith("set aside as corrupt-40, going back to checkpoint 30")
    assert steps(run) == ["20", "30", "40", "corrupt-40"]
    assert_same_run(run, straight)


def test_two_jobs_on_one_workdir_and_a_run_of_another_config(starter, config, tmp_path):
    run = tmp_path / "run"
    job = starter.start(config, "--workdir", str(run), slow_steps=(0.1,))
    job.until(lambda: last_step(run) >= 1, "step 1")
    second = starter.run(config, "--workdir", str(run))
    assert second.code == 2
    assert f"{run} is in use by process {job.pid} on {os.uname().nodename}" in second.line
    job.signal(signal.SIGINT)
    ended = job.wait()
    assert ended.code == 75 and "stopped by SIGINT after step" in ended.line
    other = starter.run(config, "--workdir", str(run), "--model.channels", "8", "--seed", "3")
    assert other.code == 2
    for words in ("seed 0 -> 3", "model.channels 16 -> 8", "choose another --workdir"):
        assert words in other.line


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1.2 MB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount a small tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_saving(starter, config, straight, small_disk):
    run = small_disk / "run"
    ended = starter.run(config, "--workdir", str(run))
    assert ended.code == 1
    assert ended.line.startswith("train.py: ")
    assert "no space left on device; free some space and run the same command again" in ended.line
    assert not half_written(run)
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    assert starter.run(config, "--workdir", str(run)).code == 0
    assert_same_run(run, straight)


def test_a_workdir_that_cannot_be_written(starter, config, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    ended = starter.run(config, "--workdir", str(small_disk / "run"))
    assert ended.code == 2
    assert ended.line == (
        f"train.py: cannot write to {small_disk / 'run'}: Read-only file system; choose another --workdir"
    )


@pytest.mark.slow
def test_a_user_can_verify_it_on_their_own_machine(starter, config):
    ended = starter.run(config, "--verify-resume", "6", "--train.batch_size", "4")
    assert ended.code == 0, ended.err
    line = ended.out.splitlines()[-1]
    assert line.startswith("resuming changes no bit: 6 steps at once and 3 + 3 give equal bits in all ")
