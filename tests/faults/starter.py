"""Starts train.py in processes of their own without importing everything each time.

A stand-in for `python train.py ARGUMENTS`: one process imports what the command imports, starts no backend, and forks
for every line of JSON on its standard input; the child runs train.py itself. Run by `harness.Starter`.

With a fault named, the child first makes one thing go wrong that no file or signal can (`FAULTS`).
"""

import json
import os
import runpy
import sys
from pathlib import Path

# What train.py imports at one time or another, so that no child has to.
import grain
import orbax.checkpoint as ocp
import rich.progress  # noqa: F401
import tensorboardX  # noqa: F401

from jaxdiff.assembly.training_program import Program
from jaxdiff.commands import train  # noqa: F401
from jaxdiff.data import batches as data
from jaxdiff.data import sources
from jaxdiff.data.batches import Batches
from jaxdiff.job import workdir
from jaxdiff.training import checkpoint_files as reading
from jaxdiff.training import checkpoints

ROOT = Path(__file__).parents[2]


def nan_batches(first: int, last: int) -> None:
    """Batches first to last are NaN."""
    get = Batches.__getitem__

    def broken(self, step):
        batch = get(self, step)
        image = batch["image"].astype("float32")
        return {**batch, "image": image * float("nan") if first <= step <= last else image}

    Batches.__getitem__ = broken
    Program.compiled = lambda self: self.step  # ahead of time it is for uint8, which holds no NaN


def skipped_batches(first: int, last: int) -> None:
    """Steps first to last are not computed at all: the state stays as it is, but for its step."""
    import dataclasses

    import jax

    nan_batches(first, first - 1)  # float32 batches, as the other has
    compile_step = Program.compiled

    def patched(self):
        compiled = compile_step(self)

        def step(state, batch, key):
            n = int(state.step)
            if first <= n <= last:
                lost = {"loss": float("nan"), "grad_norm": float("nan"), "skipped": 1.0}
                metrics = {name: jax.numpy.float32(value) for name, value in lost.items()}
                return dataclasses.replace(state, step=state.step + 1), metrics
            return compiled(state, batch, key)

        return step

    Program.compiled = patched


def slow_steps(seconds: float) -> None:
    """Every step takes so much longer."""
    import time

    compile_step = Program.compiled

    def patched(self):
        compiled = compile_step(self)

        def step(state, batch, key):
            time.sleep(seconds)
            return compiled(state, batch, key)

        return step

    Program.compiled = patched


def flaky_store(failures: int) -> None:
    """The first so many saves fail when they are waited for, as those of an object store do."""
    left = [failures]

    class Flaky(ocp.AsyncCheckpointer):
        def save(self, directory, *args, **kwargs):
            super().save(directory, *args, **kwargs)
            if left[0]:
                super().wait_until_finished()
                directory.rmtree()
                self._failing = True

        def wait_until_finished(self):
            super().wait_until_finished()
            if getattr(self, "_failing", False):
                self._failing = False
                left[0] -= 1
                raise OSError(110, "Connection timed out")

    ocp.AsyncCheckpointer = Flaky
    checkpoints.PATIENCE_S = 0.05


def flaky_reads(failures: int) -> None:
    """Every file fails the first so many times that it is read."""
    reading.PATIENCE_S = 0.05
    patiently = reading._patiently

    def flaky(path, attempt):
        left = [failures]

        def fail():
            if left[0]:
                left[0] -= 1
                raise OSError(110, "Connection timed out")
            return attempt()

        return patiently(path, fail)

    reading._patiently = flaky


def read_by_workers(count: int) -> None:
    """The data set is read like one that memory does not hold."""
    sources.MEMORY_LIMIT, data._MAX_WORKERS = 0, count


def little_memory(gigabytes: float) -> None:
    """The process gets so much more memory than it has, and no more; on CPU it is the device's."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(gigabytes * 2**30),) * 2)


def short_lease(seconds: float) -> None:
    """Who owns a bucket's folder is known so much sooner to be gone."""
    workdir.BEAT_S, workdir.LEASE_S, workdir.SETTLE_S = seconds / 3, seconds, seconds / 3


FAULTS = {
    fault.__name__: fault
    for fault in (
        nan_batches,
        skipped_batches,
        slow_steps,
        flaky_store,
        flaky_reads,
        little_memory,
        read_by_workers,
        short_lease,
    )
}


def child(request: dict) -> None:
    """Becomes a `python train.py`; does not return."""
    os.setsid()
    out = os.open(request["out"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    err = os.open(request["err"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ |= request["env"]
    code = 1
    try:
        for name, arguments in request["faults"].items():
            FAULTS[name](*arguments)
        sys.argv = ["train.py", *request["arguments"]]
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Forks for every line; answers with the child's process id, then, on "wait", with how it ended, or null."""
    assert grain
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            child(request)
        print(json.dumps(pid), flush=True)


if __name__ == "__main__":
    main()
