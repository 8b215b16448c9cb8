"""The built wheel in an empty environment: the command, its configs, and a run from an empty folder."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*words, cwd):
    ended = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_the_wheel_trains_and_samples_in_an_empty_folder(tmp_path):
    uv, venv, folder = os.environ.get("UV", "uv"), tmp_path / "venv", tmp_path / "empty"
    folder.mkdir()
    run(uv, "build", "--wheel", "--out-dir", tmp_path, cwd=ROOT)
    run(uv, "venv", "--python", "3.12", venv, cwd=ROOT)
    (wheel,) = tmp_path.glob("jaxdiff-*.whl")
    run(uv, "pip", "install", "--python", venv, wheel, "-c", "constraints.txt", cwd=ROOT)  # as the Dockerfile does
    jaxdiff, python = venv / "bin" / "jaxdiff", venv / "bin" / "python"
    assert run(jaxdiff, "--version", cwd=folder).startswith("jaxdiff ")
    assert "Handwritten digits" in run(python, "-m", "jaxdiff", "train", "--help", cwd=folder)
    options = ["--train.steps", "2", "--train.batch_size", "8", "--train.sample_every", "0"]
    assert "next: jaxdiff sample runs/digits" in run(jaxdiff, "train", "digits", *options, cwd=folder)
    assert "2 samples of step 2" in run(jaxdiff, "sample", "runs/digits", "--num", "2", "--steps", "2", cwd=folder)
    assert [path.name for path in folder.iterdir()] == ["runs"]
