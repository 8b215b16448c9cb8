"""Execution of a training run in its workdir: what it goes on from, its loop, and what it saves, logs and closes."""

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdiff.assembly.training_program import Program
from jaxdiff.config import Train
from jaxdiff.data.batches import Batch
from jaxdiff.errors import RunError, UserError, program
from jaxdiff.parallel import processes
from jaxdiff.storage import Place
from jaxdiff.training.checkpoints import Checkpoints, report
from jaxdiff.training.clock import Clock, Ledger
from jaxdiff.training.hooks import Mean, log_hooks, make_cadence
from jaxdiff.training.logs import Log, Progress
from jaxdiff.training.loop import Hook, calls, run
from jaxdiff.training.profiling import Profile
from jaxdiff.training.snapshots import Snapshots
from jaxdiff.training.state import TrainState
from jaxdiff.training.stopping import StopRequest
from jaxdiff.training.storage_faults import kind, reason, remedy


class Start(NamedTuple):
    """Where this start of a run goes on.

    Attributes:
      first: steps done before it.
      meta: what was saved beside the state it goes on from; {} where it begins.
      workdir: of the run.
      log: of process 0.
      describe: the metrics of a step -> what is saved beside the state; to be called once `begin` has returned.
      stack: what it enters is closed when the run ends, the checkpoints first.
    """

    first: int
    meta: dict[str, Any]
    workdir: Place
    log: Log | None
    describe: Callable[[dict[str, Any]], dict[str, Any]]
    stack: contextlib.ExitStack


class Parts(NamedTuple):
    """What a run is made of, once it is known where it goes on.

    Attributes:
      batches: this process's rows of batch `first` and on, in NumPy.
      hooks: what else happens, after the checkpoint where it is at the same step.
      measured: (step, the values of a line of the log) -> what is added to the line.
      about: () -> what is saved beside every state, JSON.
      evaluations: an `Evaluations`, called before the checkpoint, which keeps what it found. It says whether it is
        `owed` at the first step, where the start before did not come to it, and whether the run is `finished`.
    """

    batches: Iterator[Batch]
    hooks: list[Hook]
    measured: Callable[[int, dict[str, Any]], dict[str, Any]]
    about: Callable[[], dict[str, Any]]
    evaluations: Any = None


class Job(NamedTuple):
    """A run to be executed.

    Attributes:
      program: its step.
      train: its settings.
      learning_rate: of update n, for the log; None where only the optimizer knows.
      check: (step, meta) of what is in the workdir; raises UserError where that is of something else.
      record: step -> None; process 0 writes what the run is, text files, before anything else is written.
      text: what the loggers that show texts say of the run.
      begin: Start -> Parts.
      given: leaves of the parameters to begin with in place of new ones, by name, in NumPy.
      file: that `record` writes, by which the others see that they have the same folder.
    """

    program: Program
    train: Train
    learning_rate: Callable[[Any], Any] | None
    check: Callable[[int, dict[str, Any]], None]
    record: Callable[[int], None]
    text: str
    begin: Callable[[Start], Parts]
    given: Mapping[str, Any] = {}
    file: str = "config.json"


class Outcome(NamedTuple):
    """How an execution ended: the state, the steps done by it and before, and the seconds by what they went to."""

    state: TrainState
    first: int
    done: int
    seconds: dict[str, float]


def execute(job: Job, workdir: Place, began: float, stop: StopRequest, profile: int = 0) -> Outcome:
    """Trains from where the workdir got to, to the last step or until `stop`; all is saved when it returns.

    Args:
      job: what to do.
      workdir: owned by this process (`workdir.owned`).
      began: when the process did, in `time.time` seconds.
      stop: signals.
      profile: steps to trace, if any.

    Raises:
      UserError: what is in the workdir is of another run.
      RunError: it could not go on.
    """
    program, train, closing = job.program, job.train, contextlib.closing
    is_primary = jax.process_index() == 0
    with _one_line_errors(workdir), contextlib.ExitStack() as last, contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir, train.keep, keep_every=train.keep_every))
        restored, meta = None, {}
        if checkpoints.latest() is not None:
            restored, meta = checkpoints.restore(program.abstract)
            job.check(int(restored.step), meta)
        first = int(restored.step) if restored else 0
        if is_primary:
            job.record(first)
        processes.barrier(f"{job.file} is written")
        if not (workdir / job.file).exists():
            raise UserError(f"{workdir} is not the folder that process 0 has; it must lie on storage that all share")
        log = stack.enter_context(closing(Log(workdir, first, train.loggers))) if is_primary else None
        if log:
            log.text(first, "config", job.text)
        progress = Progress(first, train.steps, train.batch_size) if is_primary else None
        if progress:
            stack.enter_context(closing(progress))
        ledger = last.enter_context(closing(Ledger(workdir / "clock.json", began))) if is_primary else None
        clock = ledger.clock(first, meta.get("seconds")) if ledger else Clock(began)
        mean_loss, skipped = Mean(meta.get("losses")), meta.get("skipped", 0)

        def describe(metrics: dict[str, Any]) -> dict[str, Any]:
            about = {"skipped": metrics["skipped"], "losses": mean_loss.state, "seconds": clock.totals()}
            return {**parts.about(), **about}

        parts = job.begin(Start(first, meta, workdir, log, describe, stack))
        hooks = _hooks(job, parts, describe, checkpoints, mean_loss, clock, log, progress)
        if train.posthoc_ema:  # before the checkpoint, or a crash in between would lose them
            stack.enter_context(snapshots := Snapshots(workdir))
            take = lambda step, metrics, state: snapshots.take(state)  # noqa: E731
            hooks.insert(0, Hook(make_cadence(train.checkpoint_every), take, at_end=False, span="checkpoint"))
        if profile:
            calls_traced = -(-profile // train.steps_per_call)
            trace = stack.enter_context(closing(Profile(Path(workdir, "profile"), calls_traced, report)))
            hooks.insert(0, Hook(1, trace, "call", span="productive"))
        measure = parts.evaluations
        finished = lambda: bool(measure and measure.finished)  # noqa: E731
        left = first < train.steps and not finished()
        counts = calls(first, train.steps, train.steps_per_call, hooks)
        ahead = _checked(parts.batches, workdir)
        batches = ((count, program.place(list(itertools.islice(ahead, count)))) for count in counts)
        state, step = _compile(program, restored, job.given, clock, left)
        if left and measure and measure.owed(first):
            with clock("evaluation"):
                measure(first, {"skipped": skipped}, state)
            left = not finished()
        state, done = run(
            state,
            step,
            batches,
            program.keys["train"],
            hooks,
            lambda step: checkpoints.check() or finished() or stop.after(),
            steps=train.steps if left else first,
            batch_size=train.batch_size,
            clock=clock,
            skipped=skipped,
        )
        with clock("checkpoint"):
            checkpoints.wait()
            stack.close()
        seconds = clock.totals()
        if ledger:
            ledger.close(done, seconds)
    return Outcome(state, first, done, seconds)


def leave(name: str) -> None:
    """Ends the process where it stands: before the first step, what is on disk is all there is."""
    line = f"stopped by {name} before the first step of this start; run the same command again to go on"
    print(f"{program('train')}: {line}", file=sys.stderr, flush=True)
    os._exit(75)


@contextlib.contextmanager
def _one_line_errors(workdir: Place) -> Iterator[None]:
    """What memory and disks raise, as errors of a line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = str(error).splitlines()[0]
        raise RunError(f"out of device memory; lower train.batch_size, or raise train.accumulate ({what})") from error
    except OSError as error:
        if kind(error) == "corrupt":  # no fault of the disk
            raise
        where = error.filename or workdir
        raise RunError(f"{where}: {reason(error)}; {remedy(error)} and run the same command again") from error


def _hooks(
    job: Job,
    parts: Parts,
    describe: Callable[[dict[str, Any]], dict[str, Any]],
    checkpoints: Checkpoints,
    mean_loss: Mean,
    clock: Clock,
    log: Log | None,
    progress: Progress | None,
) -> list[Hook]:
    """What happens beside training, in this order where it is at the same step."""
    train = job.train

    def write(step: int, values: dict[str, Any]) -> None:
        if log:
            log.write(step, {**values, **parts.measured(step, values)})

    def save(step: int, metrics: dict[str, Any], state: TrainState) -> None:
        if log:
            log.upload()
        checkpoints.save(state, describe(metrics))

    hooks = log_hooks(train.log_every, write, mean_loss, job.learning_rate, clock)
    if progress:
        show = lambda step, values, _: progress.update(step, values["loss"], values["images_per_s"])  # noqa: E731
        hooks.append(Hook(1, show, "metrics"))
    if parts.evaluations:
        hooks.append(Hook(parts.evaluations.every, parts.evaluations, on_stop=False, span="evaluation"))
    hooks.append(Hook(make_cadence(train.checkpoint_every), save, on_stop=True, span="checkpoint"))
    if train.keep_every:
        hooks.append(Hook(train.keep_every, save, at_end=False, span="checkpoint"))
    return [*hooks, *parts.hooks]


def _compile(
    program: Program, restored: TrainState | None, given: Mapping[str, Any], clock: Clock, needed: bool
) -> tuple[TrainState, Any]:
    """The state to go on from, and the step, compiled beside it if it is needed."""
    with clock("compile"), ThreadPoolExecutor(1) as beside:  # much of compiling is one thread's work
        initial = beside.submit(lambda: restored or program.new_state(given))
        if jax.default_backend() == "gpu":
            initial.result()  # there XLA may time kernels, and wants the device to itself
        step = program.compiled() if needed else program.step
        state = initial.result()
    processes.barrier_after_compiling("the step")
    return state, step


def _checked(batches: Iterable[Batch], workdir: Place) -> Iterator[Batch]:
    """The batches; a record that turns out to be corrupt only when its turn comes ends the run, not the command."""
    try:
        yield from batches
    except UserError as error:
        raise RunError(f"{error}; what was saved is in {workdir}") from error
