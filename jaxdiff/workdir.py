"""The folder of a run: owned by one job at a time, and holding one run."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxdiff.config import Config
from jaxdiff.config_files import read_run, refuse_other_run
from jaxdiff.errors import UserError


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[Path]:
    """The workdir, made where it is missing, locked against a second job until the process ends, however it does.

    Process 0 holds the lock, and removes what a killed process left half written.

    Raises:
      UserError: it cannot be written, or another process has it.
    """
    if jax.process_index() != 0:
        yield workdir
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror}; choose another --workdir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(f"{workdir} is in use by {owner}; wait for it, or choose another --workdir") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        for half in (*workdir.glob(".*.tmp"), *workdir.glob("samples/.*.tmp")):
            half.unlink(missing_ok=True)
        yield workdir


def check_workdir(config: Config, workdir: Path) -> None:
    """Refuses a workdir that holds a run of another config.

    Raises:
      UserError: the fields that differ, or that there is no config to compare with.
    """
    if (workdir / "config.json").exists():
        refuse_other_run(read_run(workdir), config)
    elif (workdir / "checkpoints").exists():
        raise UserError(f"{workdir} holds checkpoints but no config.json; put it back, or choose another --workdir")
