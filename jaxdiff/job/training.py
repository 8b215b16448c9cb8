"""A training run in its workdir: from a valid config to the last checkpoint, once or in several starts."""

import contextlib
import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdiff import parallel, pictures
from jaxdiff.assembly.recipe import learning_rate_of, make_method, open_data
from jaxdiff.assembly.training_program import Program
from jaxdiff.config import Config, flat
from jaxdiff.config.files import to_json
from jaxdiff.data.batches import Batch, Batches
from jaxdiff.data.sources import Source
from jaxdiff.diffusion import make_draw
from jaxdiff.errors import RunError, UserError, command, program
from jaxdiff.job.evaluations import Evaluations
from jaxdiff.job.weak_model import weak_params
from jaxdiff.job.workdir import check_workdir, class_numbering, owned
from jaxdiff.parallel import processes
from jaxdiff.plan import Utilisation
from jaxdiff.storage import Place, in_bucket, place
from jaxdiff.training.checkpoint_files import directory_of
from jaxdiff.training.checkpoints import Checkpoints, report
from jaxdiff.training.clock import Clock, Ledger
from jaxdiff.training.hooks import ByTime, Mean, log_hooks, make_cadence, parse_every
from jaxdiff.training.loggers import check_loggers
from jaxdiff.training.logs import Log, Progress, clock_time
from jaxdiff.training.loop import Hook, calls, run
from jaxdiff.training.profiling import Profile
from jaxdiff.training.snapshots import Snapshots
from jaxdiff.training.state import TrainState
from jaxdiff.training.stopping import StopRequest
from jaxdiff.training.storage_faults import kind, reason, remedy

COLUMNS = 8  # of the picture grids


class _Resources(NamedTuple):
    """What a start of a run has open: where it got to, and where it goes on to write."""

    checkpoints: Checkpoints
    restored: TrainState | None
    meta: dict[str, Any]  # saved beside `restored`
    log: Log | None  # of process 0
    progress: Progress | None  # of process 0
    ledger: Ledger | None  # of process 0
    clock: Clock
    snapshots: Snapshots | None
    profile: Profile | None
    substitutes: "_Substitutes | None"

    @property
    def first(self) -> int:
        """Steps done before this start."""
        return int(self.restored.step) if self.restored else 0


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
    directory_of(config.workdir)  # refuses what cannot be written to; before JAX's cache may open the same bucket
    if profile and in_bucket(config.workdir):
        raise UserError("--profile needs a --workdir on this machine: JAX writes the trace there")
    check_loggers(config.train.loggers)
    sampling = config.sampling
    if sampling.guidance_rule == "autoguidance" and sampling.guidance != 1 and not sampling.guidance_options.get("run"):
        raise UserError(
            "sampling.guidance_rule=autoguidance: pictures while training go away from another run; "
            "name it by sampling.guidance_options.run"
        )
    every = make_cadence(config.train.checkpoint_every)
    if config.train.posthoc_ema and not isinstance(every, int):
        raise UserError(
            f"train.posthoc_ema keeps its averages at steps that are the same in every run; set "
            f"train.checkpoint_every to a number of steps, not {config.train.checkpoint_every}"
        )
    processes.agree({**flat(config), "jax": jax.__version__})
    with StopRequest(_leave) as stop:
        numbering = class_numbering(place(config.workdir), config.data.name)
        source = open_data(config, numbering)
        program = Program(config, source)
        config = program.config
        evaluations = Evaluations(program, numbering) if parse_every(config.train.evaluate_every) else None
        processes.agree({"the data's fingerprint": source.fingerprint})
        with _one_line_errors(config), owned(config.workdir) as workdir:
            if jax.process_index() == 0:
                check_workdir(config, workdir)
            processes.barrier("the workdir is process 0's")
            with contextlib.ExitStack() as last, contextlib.ExitStack() as stack:
                resources = _open(config, program, workdir, began, profile, stack, last)
                first, clock = resources.first, resources.clock
                hooks = _hooks(config, program, workdir, resources, every, evaluations, stack)
                batches = _batches(config, program, workdir, resources, hooks, stack)
                finished = lambda: evaluations is not None and evaluations.finished  # noqa: E731
                left = first < config.train.steps and not finished()
                state, step = _compile(program, resources, left)
                if left and evaluations and evaluations.owed(first):
                    with clock("evaluation"):
                        evaluations(first, {"skipped": resources.meta.get("skipped", 0)}, state)
                    left = not finished()
                _, done = run(
                    state,
                    step,
                    batches,
                    program.keys["train"],
                    hooks,
                    lambda step: resources.checkpoints.check() or finished() or stop.after(),
                    steps=config.train.steps if left else first,
                    batch_size=config.train.batch_size,
                    clock=clock,
                    skipped=resources.meta.get("skipped", 0),
                )
                with clock("checkpoint"):
                    resources.checkpoints.wait()
                    stack.close()
                if resources.ledger:
                    resources.ledger.close(done, clock.totals())
    if evaluations and finished() and done < config.train.steps:
        return 0, evaluations.closing(done, workdir)
    if done < config.train.steps:
        return 75, _stopped(stop, done, config.train.steps, workdir)
    return 0, _closing(workdir, config.train.steps, done - first, clock.totals())


@contextlib.contextmanager
def _one_line_errors(config: Config) -> Iterator[None]:
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
        where = error.filename or config.workdir
        raise RunError(f"{where}: {reason(error)}; {remedy(error)} and run the same command again") from error


def _open(
    config: Config,
    program: Program,
    workdir: Place,
    began: float,
    profile: int,
    stack: contextlib.ExitStack,
    last: contextlib.ExitStack,
) -> _Resources:
    """Reads the newest checkpoint and opens all that is written to; `stack` closes it, and after that `last`."""
    train, source, leads = config.train, program.source, jax.process_index() == 0
    checkpoints = stack.enter_context(Checkpoints(workdir, train.keep))
    restored, meta = _restored(config, program, checkpoints)
    first = int(restored.step) if restored else 0
    if leads:
        pictures.write_whole(workdir / "config.json", to_json(config).encode())
        _describe(source, workdir)
    processes.barrier("config.json is written")
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} is not the folder that process 0 has; it must lie on storage that all share")
    closing = contextlib.closing
    log = stack.enter_context(closing(Log(workdir, first, train.loggers))) if leads else None
    if log:
        log.text(first, "config", f"```json\n{to_json(config)}\n```")
    progress = stack.enter_context(closing(Progress(first, train.steps, train.batch_size))) if leads else None
    ledger = last.enter_context(closing(Ledger(workdir / "clock.json", began))) if leads else None
    clock = ledger.clock(first, meta.get("seconds")) if ledger else Clock(began)
    snapshots = Snapshots(workdir) if train.posthoc_ema else None
    if snapshots:
        stack.enter_context(snapshots)
    traced = -(-profile // train.steps_per_call)
    trace = stack.enter_context(closing(Profile(Path(config.workdir, "profile"), traced, report))) if profile else None
    substitutes = _Substitutes(source, meta.get("substituted", ())) if config.data.on_error != "stop" else None
    return _Resources(checkpoints, restored, meta, log, progress, ledger, clock, snapshots, trace, substitutes)


def _hooks(
    config: Config,
    program: Program,
    workdir: Place,
    resources: _Resources,
    checkpoint_every: int | ByTime,
    evaluations: Evaluations | None,
    stack: contextlib.ExitStack,
) -> list[Hook]:
    """What happens beside training, in this order where it is at the same step."""
    train, source = config.train, program.source
    _, _, meta, log, progress, _, clock, snapshots, profile, substitutes = resources
    utilisation, mean_loss = Utilisation(config, program), Mean(meta.get("losses"))
    learning_rate = learning_rate_of(config)

    def write(step: int, values: dict[str, Any]) -> None:
        if log:
            counts = {"substituted": substitutes.until(step)} if substitutes else {}
            log.write(step, {**values, **counts, **utilisation(values["images_per_s"])})

    def describe(metrics: dict[str, Any]) -> dict[str, Any]:
        about = {"shape": list(source.shape), "num_classes": source.num_classes, "fingerprint": source.fingerprint}
        about["class_names"] = list(source.about.class_names)
        about |= {"skipped": metrics["skipped"], "losses": mean_loss.state, "substituted": sorted(source.substituted)}
        about["evaluations"] = list(map(list, evaluations.history)) if evaluations else meta.get("evaluations", [])
        return {**about, "seconds": clock.totals()}

    def save(step: int, metrics: dict[str, Any], state: TrainState) -> None:
        if log:
            log.upload()
        resources.checkpoints.save(state, describe(metrics))

    hooks = log_hooks(train.log_every, write, mean_loss, learning_rate, clock)
    if progress:
        hooks.append(
            Hook(1, lambda n, values, _: progress.update(n, values["loss"], values["images_per_s"]), "metrics")
        )
    if profile:
        hooks.append(Hook(1, profile, "call", span="productive"))
    if evaluations:  # before the checkpoint, which keeps what was found
        evaluations.begin(workdir, meta.get("evaluations", []), log, describe, stack)
        hooks.append(Hook(evaluations.every, evaluations, on_stop=False, span="evaluation"))
    if snapshots:  # before the checkpoint, or a crash in between would lose them
        take = lambda step, metrics, state: snapshots.take(state)  # noqa: E731
        hooks.append(Hook(checkpoint_every, take, at_end=False, span="checkpoint"))
    hooks.append(Hook(checkpoint_every, save, on_stop=True, span="checkpoint"))
    hooks.append(
        Hook(make_cadence(train.sample_every), _pictures(config, program, workdir, log), on_stop=False, span="sampling")
    )
    return hooks


def _batches(
    config: Config,
    program: Program,
    workdir: Place,
    resources: _Resources,
    hooks: Sequence[Hook],
    stack: contextlib.ExitStack,
) -> Iterator[tuple[int, Any]]:
    """(count, batch) of every call that is left, on the devices."""
    train, first, substitutes = config.train, resources.first, resources.substitutes
    rows = parallel.local_rows(program.mesh, train.batch_size)
    tokenize = program.recipe.conditioner.tokenize
    batches = Batches(program.source, config.seed, train.batch_size, config.data.flip, rows, tokenize)
    if batches.cut and jax.process_index() == 0:
        report(f"note: {batches.cut} captions have more tokens than fit; their ends are not read")
    ahead = _checked(stack.enter_context(batches.iterate(first)), workdir)
    ahead = substitutes.counted(ahead, first) if substitutes else ahead
    counts = calls(first, train.steps, train.steps_per_call, hooks)
    return ((count, program.place(list(itertools.islice(ahead, count)))) for count in counts)


def _compile(program: Program, resources: _Resources, needed: bool) -> tuple[TrainState, Any]:
    """The state to go on from, and the step, compiled beside it if it is needed."""
    with resources.clock("compile"), ThreadPoolExecutor(1) as beside:  # much of compiling is one thread's work
        begun = beside.submit(lambda: resources.restored or _new_state(program))
        if jax.default_backend() == "gpu":
            begun.result()  # there XLA may time kernels, and wants the device to itself
        step = program.compiled() if needed else program.step
        state = begun.result()
    processes.barrier_after_compiling("the step")
    return state, step


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


def _pictures(config: Config, program: Program, workdir: Place, log: Log | None) -> Any:
    """A hook's call: a grid in samples/, drawn from the EMA: a row a class, the same noise every time."""
    recipe = program.recipe
    groups = min(recipe.conditioner.groups, 10)
    rows = groups or COLUMNS
    num = rows * COLUMNS
    batch = recipe.conditioner.parse([str(i) for i in range(groups)], num)
    draw = make_draw(recipe, make_method(config, config.sampling), num, program.mesh)
    copies = jax.sharding.NamedSharding(program.mesh, jax.sharding.PartitionSpec())
    weak = weak_params(config, config.sampling, workdir, None, copies)

    def write(step: int, metrics: dict[str, Any], state: TrainState) -> None:
        del metrics
        images = draw(state.ema_params, program.keys["pictures"], num, batch, weak=weak)
        if jax.process_index() == 0:
            grid = pictures.grid(pictures.to_uint8(images), rows)
            pictures.write_png(workdir / "samples" / f"step_{step:07}.png", grid)
            if log:
                log.picture(step, "samples", grid)

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
    return f"done: {did}; everything is in {workdir}; next: {command('sample')} {shlex.quote(str(workdir))}"
