"""Runs of train.py as real processes, a small network on small images; what harms them, how they are compared."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxdiff.training import integrity
from jaxdiff.training.checkpoints import restore

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0  # for anything at all; a busy machine is slow, a hang is for ever

CONFIG = """
from jaxdiff.config import *
config = Config(
    data=Data(name="folder", path={images!r}, flip=True),
    model=Model(channels=16, channel_mults=(1,), blocks=1, attention_resolutions=(), num_classes=2, dropout=0.1),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=5),
    train=Train(steps=40, batch_size=8, checkpoint_every=10, log_every=1, sample_every=0, ema_decay=0.9),
    sampling=Sampling(steps=3),
)
"""


def write_images(folder: Path, number: int = 200) -> Path:
    """Two classes of grey 8x8 images."""
    pixels = np.random.default_rng(0).integers(0, 256, (number, 8, 8), np.uint8)
    for i, image in enumerate(pixels):
        path = folder / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


class Ended(NamedTuple):
    """How a process ended: its exit code (negative: the signal), its lines, its wall time."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def line(self) -> str:
        """The one line on stderr; anything else on it fails the test."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err[-3000:]
        return lines[0]


class Job:
    """One train.py that runs."""

    def __init__(self, starter: "Starter", pid: int, out: Path, err: Path):
        self._starter, self.pid, self._out, self._err = starter, pid, out, err
        self._began, self._ended = time.time(), None

    def alive(self) -> bool:
        return self._starter.poll(self.pid) is None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_seconds(self, number: int) -> float:
        """Sends a signal; how long the process then lives."""
        began = time.time()
        self.signal(number)
        self.wait()
        return time.time() - began

    def until(self, happened, what: str) -> None:
        """Waits until something is so; fails if the process ends before."""
        end = time.time() + PATIENCE_S
        while not happened():
            assert self.alive(), f"ended before {what}: {self._err.read_text()[-3000:]}"
            assert time.time() < end, f"no {what} in {PATIENCE_S} s"
            time.sleep(0.002)

    def wait(self) -> Ended:
        end = time.time() + PATIENCE_S
        while (code := self._starter.poll(self.pid)) is None:
            if time.time() > end:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        self._ended = self._ended or time.time()
        return Ended(code, self._out.read_text(), self._err.read_text(), self._ended - self._began)


class Starter:
    """Starts jobs; see starter.py. All share one folder of compiled programs, and one CPU: bits depend on the count."""

    def __init__(self, folder: Path):
        self._folder, self._number, self._ended = folder, 0, {}
        self._env = {"XDG_CACHE_HOME": str(folder / "cache"), "XLA_FLAGS": ""}
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **self._env}
        command = [sys.executable, str(ROOT / "tests" / "faults" / "starter.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=env
        )
        assert self._process.stdout.readline() == "ready\n"

    def _ask(self, request: dict):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *arguments: str, devices: int = 1, env: dict[str, str] | None = None, **faults: tuple) -> Job:
        self._number += 1
        out, err = (self._folder / f"{self._number:03}.{name}" for name in ("out", "err"))
        env = {**self._env, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", **(env or {})}
        request = {"arguments": arguments, "faults": faults, "env": env, "out": str(out), "err": str(err)}
        return Job(self, self._ask(request), out, err)

    def run(self, *arguments: str, **options) -> Ended:
        return self.start(*arguments, **options).wait()

    def poll(self, pid: int) -> int | None:
        if pid not in self._ended:
            code = self._ask({"wait": pid})
            if code is None:
                return None
            self._ended[pid] = code
        return self._ended[pid]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl that can be read so far."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    values = []
    for line in lines:
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return values


def last_step(workdir: Path) -> int:
    lines = metrics(workdir)
    return lines[-1]["step"] if lines else 0


def losses(workdir: Path) -> dict[int, tuple]:
    """{step: what was computed}; fails if a line is there twice, is missing, or cannot be read."""
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {line["step"]: (repr(line["loss"]), repr(line["grad_norm"]), line["skipped"]) for line in lines}


def differing(one: Path, other: Path, step: int | None = None) -> list[str]:
    """The leaves in which two runs' states differ by a bit."""
    a, b = (integrity.flatten(restore(workdir, step)) for workdir in (one, other))
    assert a.keys() == b.keys() and len(a) > 10
    return [name for name in a if np.asarray(a[name]).tobytes() != np.asarray(b[name]).tobytes()]


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs ended in the same bits, with the same bits of loss at every step."""
    assert differing(one, other) == []
    assert losses(one) == losses(other)


def assert_close(one: Path, other: Path, step: int) -> None:
    """Parameters and averages of two layouts within 1e-5 relative L2, the loss of every step within 1e-5."""
    a, b = (restore(workdir, step) for workdir in (one, other))
    for x, y in ((a.params, b.params), (a.ema_params, b.ema_params)):
        x, y = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (x, y))
        assert np.linalg.norm(x - y) < 1e-5 * np.linalg.norm(y)
    for x, y in zip(metrics(one)[:step], metrics(other)[:step], strict=True):
        assert x["step"] == y["step"] and abs(x["loss"] - y["loss"]) < 1e-5 * abs(y["loss"])


def steps(workdir: Path) -> list[str]:
    """What the folder of checkpoints holds."""
    folder = workdir / "checkpoints"
    return sorted(os.listdir(folder)) if folder.exists() else []


def half_written(workdir: Path) -> list[Path]:
    """Saves that have not come to their end."""
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
