"""Checkpoints of a run: written in the background, whole or not at all; read back bit for bit, or refused.

A workdir holds checkpoints/STEP/: `state`, the arrays (Orbax), and `meta`, the manifest (JSON, see `integrity`).
Nothing is pickled and nothing that is read is executed. Every save is read back in the background and compared with
its manifest before an older one is deleted. Every array read is checked against its checksum. A step that fails is
set aside as checkpoints/corrupt-STEP and the one before it is used; when none is left, the run stops.
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from jaxdiff.errors import UserError
from jaxdiff.parallel import processes
from jaxdiff.storage import in_bucket
from jaxdiff.training import epath_glob, integrity
from jaxdiff.training.checkpoint_files import (
    ATTEMPTS,
    PATIENCE_S,
    CheckpointError,
    Corrupt,
    candidates,
    directory_of,
    known_steps,
    numbered,
    read,
    steps_in,
    verify,
)
from jaxdiff.training.state import TrainState
from jaxdiff.training.storage_faults import kind, reason, remedy

__all__ = ["CheckpointError", "Checkpoints", "restore", "restore_with_meta"]


def report(line: str) -> None:
    """Print a line on stderr, from process 0 alone; none where the logger jaxdiff is set to ERROR."""
    if jax.process_index() == 0 and logging.getLogger("jaxdiff").isEnabledFor(logging.WARNING):
        print(line, file=sys.stderr, flush=True)


class _Warnings(logging.Handler):
    """Passes on what Orbax logs as a warning, as one line; what it logs as an error it also raises."""

    def __init__(self, warn: Callable[[str], None]):
        super().__init__()
        self._warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        if record.levelno == logging.WARNING:
            self._warn("warning of the checkpoint library: " + " ".join(record.getMessage().split()))


class Checkpoints:
    """The checkpoints of the run that owns the workdir.

    Every process makes one and calls its methods at the same steps; process 0 alone renames and deletes.

    Args:
      workdir: a local folder or an object store's address; made where it is missing.
      keep: how many of the newest to keep, >= 1.
      keep_every: those of multiples of it are kept for good; 0 for none.
      warn: gets one line where something failed and was dealt with.
      folder: of the workdir, in which they lie.

    Raises:
      UserError: keep < 1, or a workdir with a name under which nothing can be saved.
      CheckpointError: the folder cannot be written.
    """

    def __init__(
        self,
        workdir: os.PathLike | str,
        keep: int = 3,
        warn: Callable[[str], None] = report,
        folder: str = "checkpoints",
        keep_every: int = 0,
    ):
        import orbax.checkpoint as ocp  # half a second, and only needed to write

        from jaxdiff.training import orbax_s3

        if keep < 1:
            raise UserError(f"train.keep={keep} is out of range; it must be >= 1")
        self._keep, self._keep_every, self._warn = keep, keep_every, warn
        self._directory = directory_of(workdir, folder)
        self._saving: int | None = None
        self._written: Future[None] = Future()
        self._verified: Future[str] = Future()
        self._failures = 0
        epath_glob.enable()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._remove_temporaries()
        except OSError as error:
            raise CheckpointError(f"cannot write to {self._directory}: {reason(error)}; {remedy(error)}") from error
        bucket = in_bucket(self._directory)
        if bucket:
            orbax_s3.enable()
        # In a bucket a file says that a checkpoint is whole: renaming there is copying.
        mode = ocp.options.AtomicityMode.COMMIT_FILE if bucket else ocp.options.AtomicityMode.ATOMIC_RENAME
        whole = ocp.options.AtomicityOptions(mode)
        # Floats hardly compress: raw files are 7 % larger, and a large leaf is written in under half the time.
        self._orbax = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(atomicity_options=whole),
                state=ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False, use_compression=False),
                meta=ocp.JsonCheckpointHandler(),
            ),
            atomicity_options=whole,
        )
        self._background = ThreadPoolExecutor(1, "verify")
        logger = logging.getLogger("absl")
        self._logger_was = logger.handlers, logger.level, logger.propagate
        logger.handlers, logger.propagate = [_Warnings(warn)], False
        logger.setLevel(logging.WARNING)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *rest: Any) -> None:
        if kind is None:
            self.close()
        else:  # another error is on its way: do not hide it
            with contextlib.suppress(Exception):
                self._release()
            self._remove_temporaries()

    def steps(self) -> list[int]:
        """The steps with a whole checkpoint, ascending."""
        return steps_in(self._directory)

    def latest(self) -> int | None:
        """The newest step, or None in a workdir without any.

        Raises:
          CheckpointError: all that is left are checkpoints set aside: a run never starts again from 0 by itself.
        """
        steps = known_steps(self._directory)
        return steps[-1] if steps else None

    def save(self, state: TrainState, meta: dict[str, Any] | None = None, wait: bool = False) -> None:
        """Save in the background; the state may be donated as soon as this returns. A step already saved is left.

        What is on disk is then read back, in the background too, before an older checkpoint is deleted. A store that
        fails now and then is tried again: at once where `wait` is set, else by the next save.

        Args:
          state: its arrays; `state.step` names the checkpoint.
          meta: JSON values to keep beside it (config, data fingerprint, ...).
          wait: return when it is on disk.

        Raises:
          CheckpointError: the state holds a value that is not finite; or this save (with `wait`) or the one before
            failed for good: the disk is full or read-only, or failed ATTEMPTS times in a row, or what was written
            cannot be read back.
        """
        import orbax.checkpoint as ocp

        self._settle()
        step = int(state.step)
        if step in self.steps():
            return
        flat = integrity.flatten(state)
        sums, wrong = integrity.measure(flat)
        if wrong:
            others = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
            raise CheckpointError(
                f"step {step} was not saved: {wrong[0]}{others} not finite; lower optimizer.learning_rate and go on "
                f"from the newest checkpoint: the workdir has {_listed(self.steps())}"
            )
        manifest = integrity.describe(step, flat, sums, meta or {})
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(flat), meta=ocp.args.JsonSave(manifest))

        def start() -> None:
            self._saving = step
            self._orbax.save(self._directory / str(step), args=items, force=True)
            self._written = self._background.submit(self._orbax.wait_until_finished)
            self._verified = self._background.submit(self._read_back, self._written, step, manifest)

        while not (self._attempt(start) and (not wait or self._settle())) and wait:
            time.sleep(PATIENCE_S * 2 ** (self._failures - 1))

    def check(self) -> None:
        """To be asked now and then, at no cost: whether the save in flight is known to be bad.

        Raises:
          CheckpointError: what it wrote cannot be read back.
        """
        if self._saving is not None and self._verified.done() and (wrong := self._verified.result()):
            raise self._unreadable(self._saving, wrong)

    def wait(self) -> None:
        """Return when the save in flight is on disk, and was read back.

        Raises:
          CheckpointError: it failed.
        """
        step = self._saving
        if not self._settle():
            raise CheckpointError(f"the checkpoint of step {step} was not saved; run the same command again")

    def close(self) -> None:
        """Wait for the save in flight and release what Orbax holds; the same errors as `wait`."""
        try:
            self.wait()
        finally:
            self._release()

    def restore(self, abstract_state: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The newest good checkpoint, or that of one step, placed as the run wants it.

        Args:
          abstract_state: arrays or ShapeDtypeStructs, whose structure, shapes, dtypes and shardings are wanted
            (`parallel.abstract_state`).
          step: which; the newest that is not corrupt unless given.

        Returns:
          The state, bit for bit as saved and in the structure of `abstract_state`, and the meta saved with it.

        Raises:
          UserError: there is no such checkpoint, or it does not fit the run; every differing leaf is named.
          CheckpointError: the step asked for is corrupt, or all are; or the store cannot be read.
        """
        steps = candidates(self._directory, step)
        for candidate, older in zip(steps, [*steps[1:], None], strict=True):
            try:
                flat, meta = read(self._directory, candidate, integrity.flatten(abstract_state))
            except Corrupt as error:
                if step is not None:
                    raise CheckpointError(_asked_for(candidate, error)) from error
                name = self._set_aside(candidate)
                then = "" if older is None else f", going back to checkpoint {older}"
                self._warn(f"checkpoint {candidate} is corrupt ({error}); set aside as {name}{then}")
                continue
            return jax.tree.unflatten(jax.tree.structure(abstract_state), flat.values()), meta
        self.latest()
        raise CheckpointError(f"every checkpoint in {self._directory} is corrupt")

    def _settle(self) -> bool:
        """Wait for the save in flight; False where it failed but may be tried again."""
        if self._saving is None:
            return True
        if not self._attempt(self._written.result):
            return False
        step, self._saving, self._failures = self._saving, None, 0
        wrong = self._verified.result()
        if jax.process_count() > 1:
            processes.barrier_after_compiling(f"{self._directory.name}/{step}, which is read back")
            if multihost_utils.process_allgather(np.int32(bool(wrong))).any():
                wrong = wrong or "another process cannot read it"
        if wrong:
            raise self._unreadable(step, wrong)
        self._prune()
        return True

    def _read_back(self, written: Future[None], step: int, manifest: dict[str, Any]) -> str:
        """What is wrong with a checkpoint once it is written; "" where nothing is, or nothing was written."""
        if written.exception() is not None:
            return ""
        try:
            verify(self._directory, step, manifest)
        except (Corrupt, CheckpointError, OSError) as error:
            return reason(error) if isinstance(error, OSError) else str(error)
        return ""

    def _unreadable(self, step: int, wrong: str) -> CheckpointError:
        good = [other for other in self.steps() if other != step]
        newest = f"the newest good one is {good[-1]}" if good else "there is no other"
        return CheckpointError(
            f"checkpoint {step} in {self._directory} was written and cannot be read back ({wrong}); {newest}; check "
            "the disk or store and run the same command again"
        )

    def _release(self) -> None:
        """Ends the background and what Orbax holds."""
        try:
            self._orbax.close()
        finally:
            self._background.shutdown()
            logger = logging.getLogger("absl")
            logger.handlers, level, logger.propagate = self._logger_was
            logger.setLevel(level)

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Do what writes; False where the store failed but may be tried again."""
        try:
            action()
        except (OSError, ValueError, RuntimeError) as error:  # TensorStore raises ValueError, JAX RuntimeError
            step, self._saving = self._saving, None
            self._failures += 1
            self._remove_temporaries()
            if kind(error) == "hopeless" or self._failures >= ATTEMPTS:
                raise CheckpointError(
                    f"the checkpoint of step {step} was not saved: {reason(error)}; {remedy(error)} and run the "
                    f"same command again; the workdir has {_listed(self.steps())}"
                ) from error
            self._warn(
                f"the checkpoint of step {step} was not saved ({reason(error)}); "
                f"failure {self._failures} of at most {ATTEMPTS - 1} in a row"
            )
            return False
        return True

    def _prune(self) -> None:
        """Delete all but the newest and those to keep for good, once a newer one is whole."""
        if jax.process_index() == 0:
            for step in self.steps()[: -self._keep]:
                if self._keep_every and step % self._keep_every == 0:
                    continue
                (self._directory / str(step)).rmtree(missing_ok=True)

    def _remove_temporaries(self) -> None:
        """What an interrupted save left: it holds space, and is no checkpoint."""
        if jax.process_index() == 0:
            exists = self._directory.exists()  # a bucket has no folder before the first file is in it
            for path in list(self._directory.iterdir()) if exists else []:
                if ".orbax-checkpoint-tmp" in path.name:
                    path.rmtree(missing_ok=True)
            steps = numbered(self._directory)
            if any(whole for _, whole in steps):  # else it may be that all have lost their word (`known_steps`)
                for path in [path for path, whole in steps if not whole]:
                    path.rmtree(missing_ok=True)

    def _set_aside(self, step: int) -> str:
        """Rename a corrupt step, so that it is neither read nor in the way again."""
        name = f"corrupt-{step}"
        while (self._directory / name).exists():
            name += "-again"
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{name} is free")
        if jax.process_index() == 0:
            try:
                _move(self._directory / str(step), self._directory / name)
            except Exception as error:  # of whichever client library
                raise CheckpointError(
                    f"checkpoint {step} in {self._directory} is corrupt and cannot be set aside: {reason(error)}; "
                    f"{remedy(error)} and run the same command again"
                ) from error
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{name} is set aside")
        return name


def restore(
    workdir: os.PathLike | str, step: int | None = None, sharding: Sharding | None = None, folder: str = "checkpoints"
) -> TrainState:
    """A run's state from its workdir alone, on any machine: the shapes come from the checkpoint's own manifest.

    It only reads: a corrupt checkpoint is passed over with a warning, not set aside. Parameters come back as nested
    dicts, as a Flax network has them; so does `opt_state`, keyed by field name or position (`Checkpoints.restore`,
    given the run's abstract state, returns optax's own structure).

    Args:
      workdir: of the run.
      step: which; the newest that is not corrupt unless given.
      sharding: where every leaf goes; this process's first device unless given.
      folder: of the workdir, in which they lie.

    Returns:
      The state, bit for bit as saved.

    Raises:
      UserError: there is no such checkpoint.
      CheckpointError: the step asked for is corrupt, or all are; or the store cannot be read.
    """
    return restore_with_meta(workdir, step, sharding, folder)[0]


def restore_with_meta(
    workdir: os.PathLike | str, step: int | None = None, sharding: Sharding | None = None, folder: str = "checkpoints"
) -> tuple[TrainState, dict[str, Any]]:
    """`restore`, and the meta that was saved beside the state."""
    directory = directory_of(workdir, folder)
    for candidate in candidates(directory, step):
        try:
            flat, meta = read(directory, candidate, None, sharding)
        except Corrupt as error:
            if step is not None:
                raise CheckpointError(_asked_for(candidate, error)) from error
            report(f"checkpoint {candidate} is corrupt ({error}); trying the one before")
            continue
        return integrity.nest(flat), meta
    raise CheckpointError(f"every checkpoint in {directory} is corrupt; put a good copy back")


def _move(folder: epath.Path, target: epath.Path) -> None:
    """Gives a folder another name: at once, or, in a bucket, by copies, so that a kill leaves the first one whole."""
    if not in_bucket(folder):
        folder.rename(target)
        return
    _copy(folder, target)
    folder.rmtree()


def _copy(folder: epath.Path, target: epath.Path) -> None:
    for path in folder.iterdir():
        if not path.name or path == folder:  # the object that some tools make for a folder
            continue
        if path.is_dir():
            _copy(path, target / path.name)
        else:
            path.copy(target / path.name)


def _asked_for(step: int, error: Corrupt) -> str:
    return f"checkpoint {step} is corrupt ({error}); ask for another step"


def _listed(steps: list[int]) -> str:
    return "checkpoints " + ", ".join(map(str, steps)) if steps else "no checkpoint"
