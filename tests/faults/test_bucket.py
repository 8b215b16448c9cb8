"""A run whose workdir is a bucket (of Google's and Amazon's kind, served here): the same promise as on a disk."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from jaxdiff.storage import place
from tests.faults.harness import ROOT, assert_same_run, steps

pytestmark = pytest.mark.slow


def fetch(place: epath.Path, folder: Path) -> None:
    """Copies a folder of the bucket."""
    folder.mkdir()
    for path in place.iterdir():
        if path.is_dir():
            fetch(path, folder / path.name)
        else:
            (folder / path.name).write_bytes(path.read_bytes())


def test_killed_set_aside_and_sampled_from_in_a_bucket(starter, config, straight, bucket, tmp_path):
    address, env = bucket
    name = f"{address}/run"
    run, lease = place(name), {"env": env, "short_lease": (3.0,)}
    job = starter.start(config, "--workdir", name, "--train.checkpoint_every", "5", slow_steps=(1.0,), **lease)
    job.until(lambda: (run / "checkpoints" / "5" / "commit_success.txt").exists(), "a checkpoint")
    second = starter.run(config, "--workdir", name, **lease)
    assert second.code == 2
    assert f"{name} is in use by process {job.pid} on {os.uname().nodename}" in second.err
    assert job.alive()
    job.signal(signal.SIGKILL)
    job.wait()
    ended = starter.run(config, "--workdir", name, **lease)
    assert ended.code == 0, ended.err
    assert f"{name} was in use by process {job.pid}" in ended.err
    assert not (run / ".lock").exists()
    fetch(run, tmp_path / "first")
    assert_same_run(tmp_path / "first", straight)
    assert len(list((tmp_path / "first").glob("events.out.tfevents.*"))) == 2

    largest = max((tmp_path / "first" / "checkpoints" / "40").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    (run / largest.relative_to(tmp_path / "first")).write_bytes(content)
    (run / "checkpoints" / "7" / "meta").write_text("half of a checkpoint")
    ended = starter.run(config, "--workdir", name, **lease)
    assert ended.code == 0 and "checkpoint 40 is corrupt (" in ended.err, ended.err
    fetch(run, tmp_path / "second")
    assert "corrupt-40" in steps(tmp_path / "second") and "7" not in steps(tmp_path / "second")
    assert_same_run(tmp_path / "second", straight)

    command = [sys.executable, "sample.py", name, "--num", "2", "--out", f"{name}/samples/two.npz"]
    drawn = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env})
    assert drawn.returncode == 0, drawn.stderr
    assert "2 samples of step 40" in drawn.stdout and (run / "samples" / "two.npz").exists()

    command = [sys.executable, "-m", "jaxdiff.evaluate", name, "--metrics", "bpd", "--bits-num", "2"]
    command += ["--test-path", json.loads((run / "config.json").read_text())["data"]["path"]]
    measured = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env})
    assert measured.returncode == 0, measured.stderr
    (bits,) = json.loads((run / "evaluation" / "scores.json").read_text())["bits"]
    assert bits["step"] == 40 and bits["value"] > 0


def test_a_bucket_that_is_not_there_is_one_line(starter, config, bucket):
    address, env = bucket
    other = address.replace("//bucket", "//another")
    ended = starter.run(config, "--workdir", f"{other}/run", env=env)
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith(f"train.py: cannot write to {other}/run: ")
