"""A training run in its workdir: from a valid config to the last checkpoint, once or in several starts."""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

from jaxdiff import parallel, pictures
from jaxdiff.assembly.assemble import Assembly, assemble
from jaxdiff.assembly.recipe import make_method
from jaxdiff.config import Config, flat
from jaxdiff.config.files import to_json
from jaxdiff.data.batches import Batch, Batches
from jaxdiff.data.sources import Source
from jaxdiff.diffusion import make_draw
from jaxdiff.errors import UserError, command
from jaxdiff.job.check_data import contact_sheet
from jaxdiff.job.evaluations import Evaluations
from jaxdiff.job.execution import Job, Parts, Start, execute, leave
from jaxdiff.job.trained import initial_leaves
from jaxdiff.job.weak_model import weak_params
from jaxdiff.job.workdir import add_history, check_workdir, class_numbering, owned
from jaxdiff.parallel import processes
from jaxdiff.plan import Utilisation
from jaxdiff.storage import Place, in_bucket, place
from jaxdiff.training.checkpoint_files import directory_of, steps_in
from jaxdiff.training.checkpoints import report
from jaxdiff.training.hooks import make_cadence, parse_every
from jaxdiff.training.loggers import check_loggers
from jaxdiff.training.logs import Log, clock_time
from jaxdiff.training.loop import Hook
from jaxdiff.training.state import TrainState
from jaxdiff.training.stopping import StopRequest

COLUMNS = 8  # of the picture grids


def train(
    config: Config, began: float, profile: int = 0, *, allowed: Sequence[str] = (), origin: str = ""
) -> tuple[int, str]:
    """Runs a config to its end, from where its workdir got to, or until a signal asks to stop.

    Args:
      config: valid, with a workdir.
      began: when the process did, in `time.time` seconds.
      profile: steps to trace, if any.
      allowed: what may change in a run that goes on, see `config.files.BY_WORD`.
      origin: where the config came from, for the run's history.

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
    processes.agree({**flat(config), "jax": jax.__version__})
    with StopRequest(leave) as stop:
        run = assemble(config, numbering=class_numbering(place(config.workdir), config.data.name))
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(run.program.frozen)):
            raise UserError("diffusion.codec=autoencoder has no weights; name their diffusion.codec_options.folder")
        evaluations = Evaluations(run) if parse_every(run.train.evaluate_every) else None
        processes.agree({"the data's fingerprint": run.source.fingerprint})
        workdir, steps = place(run.config_json["workdir"]), run.train.steps
        saved_steps = steps_in(directory_of(workdir))
        given = {} if saved_steps else initial_leaves(*run.init, run.program.abstract.params)
        with owned(workdir):
            changed = check_workdir(flat(run.config_json), workdir, allowed) if jax.process_index() == 0 else {}
            processes.barrier("the workdir is process 0's")
            job = _job(run, workdir, evaluations, allowed, origin, changed)
            outcome = execute(job._replace(given=given), workdir, began, stop, profile)
    if evaluations and evaluations.finished and outcome.done < steps:
        return 0, evaluations.closing(outcome.done, workdir)
    if outcome.done < steps:
        return 75, _stopped(stop, outcome.done, steps, workdir)
    return 0, _closing(workdir, steps, outcome.done - outcome.first, outcome.seconds)


def _job(
    run: Assembly,
    workdir: Place,
    evaluations: Evaluations | None,
    allowed: Sequence[str],
    origin: str,
    changed: dict[str, tuple[Any, Any]],
) -> Job:
    """The run, to be executed."""
    source, train, text = run.source, run.train, to_json(run.config_json)

    def check(done: int, meta: dict[str, Any]) -> None:
        before = meta.get("fingerprint")
        if before not in (None, source.fingerprint):  # None: imported, seen no data yet
            if "data" not in allowed:
                raise UserError(
                    f"data.name={run.data.name} holds other images than when the run in {workdir} was saved; "
                    "give them back, choose another --workdir, or go on with --allow-change data"
                )
            meta.pop("substituted", None)  # numbers of other images
            changed["images"] = before, source.fingerprint
        if done > train.steps:
            at = f"train.steps={train.steps}, but the run in {workdir} is at step {done} already"
            raise UserError(f"{at}; ask for {done} or more")

    def record(first: int) -> None:
        add_history(workdir, first, origin, changed)
        pictures.write_whole(workdir / "config.json", text.encode())
        _describe(source, workdir)

    def begin(start: Start) -> Parts:
        substitutes = None
        if run.data.on_error != "stop":
            substitutes = _Substitutes(source, start.meta.get("substituted", ()))
        utilisation = Utilisation(run)

        def measured(step: int, values: dict[str, Any]) -> dict[str, Any]:
            counts = {"substituted": substitutes.until(step)} if substitutes else {}
            return {**counts, **utilisation(values["images_per_s"])}

        def about() -> dict[str, Any]:
            kind = {"shape": list(source.shape), "num_classes": source.num_classes, "fingerprint": source.fingerprint}
            kind |= {"class_names": list(source.about.class_names), "substituted": sorted(source.substituted)}
            kind |= {"known": run.recipe.conditioner.known}
            known = list(map(list, evaluations.history)) if evaluations else start.meta.get("evaluations", [])
            return {**kind, "evaluations": known}

        rows = parallel.local_rows(run.program.mesh, train.batch_size)
        tokenize = run.recipe.conditioner.tokenize
        batches = Batches(source, run.seed, train.batch_size, run.data.flip, rows, tokenize)
        if batches.cut and jax.process_index() == 0:
            report(f"note: {batches.cut} captions have more tokens than fit; their ends are not read")
        ahead = start.stack.enter_context(batches.iterate(start.first))
        hooks = []
        if run.recipe.draws:
            drawn = _pictures(run, workdir, start.log)
            hooks = [Hook(make_cadence(train.sample_every), drawn, on_stop=False, span="sampling")]
        if evaluations:
            evaluations.begin(workdir, start.meta.get("evaluations", []), start.log, start.describe, start.stack)
        batches = substitutes.counted(ahead, start.first) if substitutes else ahead
        return Parts(batches, hooks, measured, about, evaluations)

    return Job(run.program, train, run.learning_rate, check, record, f"```json\n{text}\n```", begin)


def _describe(source: Source, workdir: Place) -> None:
    """Writes what the data turned out to be into data.json and data.png, and says what is worth to know of it."""
    about = source.about
    facts = {"images": len(source), "shape": source.shape, **about._asdict()}
    pictures.write_whole(workdir / "data.json", (json.dumps(facts, indent=2) + "\n").encode())
    pictures.write_png(workdir / "data.png", contact_sheet(source))
    left_out = f"{len(about.left_out)} corrupt images are left out, all in {workdir / 'data.json'}; the first:"
    for note in (*about.notes, *(f"{left_out} {line}" for line in about.left_out[:1])):
        report(f"note: {note}")


def _pictures(run: Assembly, workdir: Place, log: Log | None) -> Any:
    """A hook's call: a grid in samples/, drawn from the EMA: a row a class or caption, the same noise every time."""
    recipe, program = run.recipe, run.program
    examples = recipe.conditioner.examples[:10]
    rows = len(examples) or COLUMNS
    num = rows * COLUMNS
    batch = recipe.conditioner.parse(examples, num)
    titles = examples if recipe.conditioner.tokenize else ()
    draw = make_draw(recipe, make_method(recipe, run.sampling), num, program.mesh)
    copies = jax.sharding.NamedSharding(program.mesh, jax.sharding.PartitionSpec())
    weak = weak_params(run.sampling, workdir, None, copies)

    def write(step: int, metrics: dict[str, Any], state: TrainState) -> None:
        del metrics
        images = draw(state.ema_params, program.keys["pictures"], num, batch, weak=weak)
        if jax.process_index() == 0:
            grid = pictures.grid(pictures.to_uint8(images), rows, titles=titles)
            pictures.write_png(workdir / "samples" / f"step_{step:07}.png", grid)
            if log:
                log.picture(step, "samples", grid)

    return write


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


def _stopped(stop: StopRequest, done: int, steps: int, workdir: Place) -> str:
    at = f"stopped by {stop.name} after step {done} of {steps}, all saved in {workdir}"
    return f"{at}; run the same command again to go on"


def _closing(workdir: Place, steps: int, now: int, seconds: dict[str, float]) -> str:
    """One line: what was done, what the time went to, where it is, and what to run next."""
    long = {name.replace("_", " "): value for name, value in seconds.items() if name != "total" and value >= 0.5}
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in long.items())
    did = f"{steps} steps in {clock_time(seconds['total'])} ({spent})" if now else f"{steps} steps were done already"
    return f"done: {did}; everything is in {workdir}; next: {command('sample')} {shlex.quote(str(workdir))}"
