"""A training run in its workdir: from a valid config to the last checkpoint, once or in several starts."""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from jaxdiff import pictures
from jaxdiff.config import Config, flat
from jaxdiff.config_files import to_json
from jaxdiff.diffusion import make_draw
from jaxdiff.errors import RunError, UserError, command, program
from jaxdiff.places import Place, in_bucket, place
from jaxdiff.plan import Utilisation
from jaxdiff.program import Program
from jaxdiff.recipe import make_method
from jaxdiff.training import parallel, processes
from jaxdiff.training.checkpoints import Checkpoints, report
from jaxdiff.training.clock import Clock, Ledger
from jaxdiff.training.data import Batch, Batches
from jaxdiff.training.logs import Log, Progress, clock_time
from jaxdiff.training.loop import Cadence, run
from jaxdiff.training.profiling import Profile
from jaxdiff.training.snapshots import Snapshots
from jaxdiff.training.sources import Source, open_dataset
from jaxdiff.training.state import TrainState
from jaxdiff.training.stopping import StopRequest
from jaxdiff.training.storage_faults import kind, reason, remedy
from jaxdiff.workdir import check_workdir, class_numbering, owned

COLUMNS = 8  # of the picture grids


def train(config: Config, began: float, profile: int = 0) -> tuple[int, str]:
    """Runs a config to its end, from where its workdir got to, or until a signal asks to stop.

    Args:
      config: valid, with a workdir.
      began: when the process did, in `time.time` seconds.
      profile: steps to trace, if any.

    Returns:
      The exit code and the closing line: 0 (done) or 75 (stopped, everything saved).

    Raises:
      UserError: the data, the devices or the workdir do not fit the config; nothing was written.
      RunError: it could not go on.
    """
    folder = place(config.workdir)  # before JAX's cache may open the same bucket
    if profile and in_bucket(config.workdir):
        raise UserError("--profile needs a --workdir on this machine: JAX writes the trace there")
    processes.agree({**flat(config), "jax": jax.__version__})
    with StopRequest(_leave) as stop:
        data = config.data
        where = data.name, data.path, data.split, data.resize, data.on_error, data.background, data.allow_empty
        source = open_dataset(*where, class_numbering(folder, data.name))
        program = Program(config, source)
        processes.agree({"the data's fingerprint": source.fingerprint})
        try:
            with owned(config.workdir) as workdir:
                if jax.process_index() == 0:
                    check_workdir(config, workdir)
                return _train(config, program, workdir, began, stop, profile)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            what = str(error).splitlines()[0]
            raise RunError(
                f"out of device memory; lower train.batch_size, or raise train.accumulate ({what})"
            ) from error
        except OSError as error:
            if kind(error) == "corrupt":  # no fault of the disk
                raise
            where = error.filename or config.workdir
            raise RunError(f"{where}: {reason(error)}; {remedy(error)} and run the same command again") from error


def _train(
    config: Config, program: Program, workdir: Place, began: float, stop: StopRequest, profile: int
) -> tuple[int, str]:
    train, source, leads = config.train, program.source, jax.process_index() == 0
    processes.barrier("the workdir is process 0's")
    with contextlib.ExitStack() as last, contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir, train.keep))
        restored, meta = _restored(config, program, checkpoints)
        first = int(restored.step) if restored else 0
        if leads:
            pictures.write_whole(workdir / "config.json", to_json(config).encode())
            _describe(source, workdir)
        processes.barrier("config.json is written")
        if not (workdir / "config.json").exists():
            raise UserError(f"{workdir} is not the folder that process 0 has; it must lie on storage that all share")
        log = stack.enter_context(contextlib.closing(Log(workdir, first))) if leads else None
        rows = parallel.local_rows(program.mesh, train.batch_size)
        batches = Batches(source, config.seed, train.batch_size, config.data.flip, rows)
        substitutes = _Substitutes(source, meta.get("substituted", ())) if config.data.on_error != "stop" else None
        ahead = _checked(stack.enter_context(batches.iterate(first)), workdir)
        ahead = substitutes.counted(ahead, first) if substitutes else ahead
        every = train.checkpoint_every, train.sample_every, train.steps_per_call
        cadence = Cadence(train.steps, train.log_every, *every)
        placed = (program.place(list(itertools.islice(ahead, count))) for count in cadence.calls(first))
        bar = Progress(first, train.steps, train.batch_size) if leads else None
        progress = stack.enter_context(contextlib.closing(bar)) if bar else None
        draw = _pictures(config, program, workdir)
        ledger = last.enter_context(contextlib.closing(Ledger(workdir / "clock.json", began))) if leads else None
        clock = ledger.clock(first, meta.get("seconds")) if ledger else Clock(began)

        snapshots = Snapshots(workdir) if train.posthoc_ema else None
        if snapshots:
            stack.enter_context(snapshots)

        with clock("compile"), ThreadPoolExecutor(1) as beside:  # much of compiling is one thread's work
            begun = beside.submit(lambda: restored or _new_state(program))
            if jax.default_backend() == "gpu":
                begun.result()  # there XLA may time kernels, and wants the device to itself
            step = program.compiled() if first < train.steps else program.step
            state = begun.result()
        processes.barrier_after_compiling("the step")

        def save(state: TrainState, step: int, skipped: int) -> None:
            if snapshots and step % train.checkpoint_every == 0:
                snapshots.take(state)
            about = {"shape": list(source.shape), "num_classes": source.num_classes}
            about["class_names"] = list(source.about.class_names)
            about |= {"fingerprint": source.fingerprint, "skipped": skipped, "substituted": sorted(source.substituted)}
            if log:
                log.upload()
            checkpoints.save(state, {**about, "seconds": clock.totals()})

        if profile:
            trace = Profile(Path(config.workdir, "profile"), -(-profile // train.steps_per_call), report)
            step = stack.enter_context(contextlib.closing(trace)).wrap(step)
        utilisation = Utilisation(config, program)

        def write(step: int, values: dict[str, Any]) -> None:
            if log:
                counts = {"substituted": substitutes.until(step)} if substitutes else {}
                log.write(step, {**values, **counts, **utilisation(values["images_per_s"])})

        state, done = run(
            state,
            step,
            placed,
            program.keys["train"],
            cadence=cadence,
            batch_size=train.batch_size,
            clock=clock,
            save=save,
            draw=draw,
            report=write,
            show=progress.update if progress else lambda step, loss, rate: None,
            stop=lambda step: stop.after(),
            skipped=meta.get("skipped", 0),
        )
        with clock("checkpoint"):
            checkpoints.wait()
            stack.close()
        if ledger:
            ledger.close(done, clock.totals())
    if done < train.steps:
        return 75, _stopped(stop, done, train.steps, workdir)
    return 0, _closing(workdir, train.steps, done - first, clock.totals())


def _describe(source: Source, workdir: Place) -> None:
    """Writes what the data turned out to be into data.json, and says what is worth to know of it."""
    about = source.about
    facts = {"images": len(source), "shape": source.shape, **about._asdict()}
    pictures.write_whole(workdir / "data.json", (json.dumps(facts, indent=2) + "\n").encode())
    left_out = f"{len(about.left_out)} corrupt images are left out, all in {workdir / 'data.json'}; the first:"
    for note in (*about.notes, *(f"{left_out} {line}" for line in about.left_out[:1])):
        report(f"note: {note}")


def _new_state(program: Program) -> TrainState:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
    # It runs once: on CPU, optimising it takes five times as long as all else.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(program.init, out_shardings=shardings, compiler_options=options)
    return init(program.keys["init"])


def _restored(config: Config, program: Program, checkpoints: Checkpoints) -> tuple[TrainState | None, dict[str, Any]]:
    """The state to go on from and what was saved beside it; None and nothing where there is none."""
    if checkpoints.latest() is None:
        return None, {}
    state, meta = checkpoints.restore(program.abstract)
    done = int(state.step)
    if meta.get("fingerprint") not in (None, program.source.fingerprint):  # None: imported, seen no data yet
        raise UserError(
            f"data.name={config.data.name} holds other images than when the run in {config.workdir} was saved; "
            "give them back, or choose another --workdir"
        )
    if done > config.train.steps:
        raise UserError(
            f"train.steps={config.train.steps}, but the run in {config.workdir} is at step {done} already; "
            f"ask for {done} or more"
        )
    return state, meta


def _pictures(config: Config, program: Program, workdir: Place) -> Any:
    """(state, step) -> a grid in samples/, drawn from the EMA: a row a class, the same noise every time."""
    recipe = program.recipe
    groups = min(recipe.conditioner.groups, 10)
    rows = groups or COLUMNS
    num = rows * COLUMNS
    batch = recipe.conditioner.parse([str(i) for i in range(groups)], num)
    draw = make_draw(recipe, make_method(config, config.sampling), num, program.mesh)

    def write(state: TrainState, step: int) -> None:
        images = draw(state.ema_params, program.keys["pictures"], num, batch)
        if jax.process_index() == 0:
            grid = pictures.grid(pictures.to_uint8(images), rows)
            pictures.write_png(workdir / "samples" / f"step_{step:07}.png", grid)

    return write


def _checked(batches: Iterable[Batch], workdir: Place) -> Iterator[Batch]:
    """The batches; a record that turns out to be corrupt only when its turn comes ends the run, not the command."""
    try:
        yield from batches
    except UserError as error:
        raise RunError(f"{error}; what was saved is in {workdir}") from error


class _Substitutes:
    """How many records were found corrupt and replaced by each step: a function of the steps done, however started.

    Of several processes each counts those of its own rows.

    Args:
      source: of the batches.
      known: the records found by the steps before; a data set in memory knows all that it has.
    """

    def __init__(self, source: Source, known: Iterable[int]):
        source.substituted.update(known)
        self._source, self._found = source, [(0, len(source.substituted))]

    def counted(self, batches: Iterable[Batch], first: int) -> Iterator[Batch]:
        """The batches of step first and on."""
        for step, batch in enumerate(batches, first + 1):
            if len(self._source.substituted) != self._found[-1][1]:
                self._found.append((step, len(self._source.substituted)))
            yield batch

    def until(self, step: int) -> int:
        """The count once so many steps were done."""
        return next(count for at, count in reversed(self._found) if at <= step)


def _leave(name: str) -> None:
    """Ends the process where it stands: before the first step, what is on disk is all there is."""
    line = f"stopped by {name} before the first step of this start; run the same command again to go on"
    print(f"{program('train')}: {line}", file=sys.stderr, flush=True)
    os._exit(75)


def _stopped(stop: StopRequest, done: int, steps: int, workdir: Place) -> str:
    at = f"stopped by {stop.name} after step {done} of {steps}, all saved in {workdir}"
    return f"{at}; run the same command again to go on"


def _closing(workdir: Place, steps: int, now: int, seconds: dict[str, float]) -> str:
    """One line: what was done, what the time went to, where it is, and what to run next."""
    long = {name.replace("_", " "): value for name, value in seconds.items() if name != "total" and value >= 0.5}
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in long.items())
    did = f"{steps} steps in {clock_time(seconds['total'])} ({spent})" if now else f"{steps} steps were done already"
    return f"done: {did}; everything is in {workdir}; next: {command('sample')} {workdir}"
