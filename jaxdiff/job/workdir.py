"""The folder of a run: owned by one job at a time, and holding one run."""

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

from jaxdiff.config import flat
from jaxdiff.config.files import UNTRAINED, changed_fields, read_run
from jaxdiff.data.records import Numbering
from jaxdiff.errors import UserError, program
from jaxdiff.storage import Place, in_bucket, place, write_whole
from jaxdiff.training.checkpoint_files import directory_of, newest_meta
from jaxdiff.training.checkpoints import report
from jaxdiff.training.storage_faults import reason

BEAT_S = 10.0  # between the signs of life of who owns a bucket's folder
LEASE_S = 3 * BEAT_S  # without one, and it is free
SETTLE_S = 3.0  # between writing that it is ours and reading whether it still is


@contextlib.contextmanager
def owned(name: os.PathLike | str) -> Iterator[Place]:
    """The workdir, made where it is missing, locked against a second job until the process ends, however it does.

    Process 0 holds the lock, and removes what a killed process left half written. In a bucket, whose files cannot be
    locked, the lock is a file with a sign of life; after a process that was killed it holds for LEASE_S more.

    Raises:
      UserError: it cannot be written, or another process has it.
    """
    workdir = place(name)
    if jax.process_index() != 0:
        yield workdir
        return
    with _lease(workdir / ".lock") if in_bucket(workdir) else _lock(Path(workdir)):
        yield workdir


@contextlib.contextmanager
def _lock(workdir: Path) -> Iterator[None]:
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
            raise UserError(_in_use(workdir, file.read().strip() or "another process")) from None
        file.truncate(0)
        file.write(_me())
        file.flush()
        for half in (*workdir.glob(".*.tmp"), *workdir.glob("samples/.*.tmp")):
            half.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def _lease(file: Place) -> Iterator[None]:
    """The lock of a bucket's folder: who wrote last, and goes on writing, has it.

    Two who begin at once both write and then read, SETTLE_S later: the first to write sees the other and leaves.
    """
    workdir, token = file.parent, uuid.uuid4().hex
    try:
        _wait_for_the_one_before(file)
        _write_lease(file, token, 0)
        time.sleep(SETTLE_S)
        owner = _read_lease(file)
    except UserError:
        raise
    except Exception as error:  # of whichever client library: no credentials, no such bucket, not installed
        raise UserError(
            f"cannot write to {workdir}: {reason(error)}; see docs/launch for what a bucket needs"
        ) from error
    if owner.get("token") != token:
        raise UserError(_in_use(workdir, str(owner.get("owner", "another process"))))
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(file, token, over), daemon=True, name="lease")
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        with contextlib.suppress(Exception):  # it runs out by itself
            file.unlink(missing_ok=True)


def _wait_for_the_one_before(file: Place) -> None:
    """Returns when nobody has the folder. Raises UserError once its owner has shown a sign of life."""
    before, since = _read_lease(file), time.monotonic()
    if before:
        line = f"{file.parent} was in use by {before.get('owner')}; waiting {LEASE_S:.0f} s for a sign of life"
        print(line, file=sys.stderr, flush=True)
    while before and time.monotonic() - since < LEASE_S:
        time.sleep(min(1.0, BEAT_S / 4))
        now = _read_lease(file)
        if now and now != before:
            raise UserError(_in_use(file.parent, str(now.get("owner"))))
        before = now


def _beat(file: Place, token: str, over: threading.Event) -> None:
    """Signs of life, until the job is over or another has the folder."""
    number = 0
    while not over.wait(BEAT_S):
        number += 1
        with contextlib.suppress(Exception):  # a sign missed is no reason to stop
            owner = _read_lease(file)
            if owner.get("token", token) != token:
                _leave(f"{file.parent} was taken over by {owner.get('owner')}: this process was silent for too long")
            _write_lease(file, token, number)


def _leave(line: str) -> NoReturn:
    print(f"{program('train')}: {line}", file=sys.stderr, flush=True)
    os._exit(1)


def _write_lease(file: Place, token: str, number: int) -> None:
    write_whole(file, json.dumps({"owner": _me(), "token": token, "beat": number}).encode())


def _read_lease(file: Place) -> dict[str, Any]:
    """What the file says, {} where there is none."""
    for last in (False, False, True):
        try:
            content = json.loads(file.read_text())
            break
        except FileNotFoundError:
            return {}
        except ValueError:
            return {"owner": "another process"}
        except OSError as error:
            if last or error.errno != errno.EBUSY:  # s3fs: it was written while it was being read
                raise
            time.sleep(0.1)
    return content if isinstance(content, dict) else {"owner": "another process"}


def _me() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"


def _in_use(workdir: Place, owner: str) -> str:
    return f"{workdir} is in use by {owner}; wait for it, or choose another --workdir"


def class_names(workdir: Place) -> list[str] | None:
    """The names of a run's classes by number: [] where they have none, None where no checkpoint says.

    Those from before names were kept do not.
    """
    names = newest_meta(directory_of(workdir)).get("class_names")
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def class_numbering(workdir: Place, name: str) -> Numbering:
    """How the data set `name` is to number its classes for what is in workdir: as the run there did."""
    if not (workdir / "config.json").exists() or read_run(workdir).data.name != name:
        return "natural"
    names = class_names(workdir)
    if names is None and newest_meta(directory_of(workdir)).get("fingerprint"):
        return "text"  # trained before names were kept
    return tuple(names) if names else "natural"


def check_workdir(fields: Mapping[str, Any], workdir: Place, allowed: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Refuses a workdir that holds a run of other fields, as `flat` gives them; returns what changes in it by word.

    Raises:
      UserError: the fields that differ, or that there is no config to compare with.
    """
    if (workdir / "config.json").exists():
        may = UNTRAINED if _steps(workdir) == ["0"] else ()
        return changed_fields(flat(read_run(workdir)), fields, fields["workdir"], allowed, may)
    if (workdir / "checkpoints").exists():
        raise UserError(f"{workdir} holds checkpoints but no config.json; put it back, or choose another --workdir")
    return {}


def add_history(workdir: Place, step: int, origin: str, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Adds a line to history.jsonl: a start of the run, what it began from, and what changed there by word."""
    file = workdir / "history.jsonl"
    about = {"step": step, "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    about |= {"jaxdiff": importlib.metadata.version("jaxdiff"), "jax": jax.__version__, "from": origin}
    before = file.read_text() if file.exists() else ""
    write_whole(file, (before + json.dumps({**about, "changed": changed}) + "\n").encode())
    for name, (old, new) in changed.items():
        report(f"note: {name} is {new!r} from step {step} on, and was {old!r} ({file.name} keeps note of it)")


def _steps(workdir: Place) -> list[str]:
    """The steps that have a checkpoint; 0 alone where another project's weights were imported, and nothing trained."""
    folder = workdir / "checkpoints"
    return [path.name for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []
