"""Training of one's own: any network, loss, data and optimizer in the training job, with all that it keeps safe."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import jax
import numpy as np

from jaxdiff import parallel
from jaxdiff.assembly.training_program import Program
from jaxdiff.config import Parallel, Train
from jaxdiff.config.files import changed_fields
from jaxdiff.data.batches import Batch, record_indices
from jaxdiff.errors import UserError
from jaxdiff.job.execution import Job, Parts, Start, execute
from jaxdiff.job.workdir import add_history, owned
from jaxdiff.objectives import Objective
from jaxdiff.parallel import processes
from jaxdiff.schema import decode, out_of_range
from jaxdiff.storage import Place, write_whole
from jaxdiff.training.loggers import check_loggers
from jaxdiff.training.loop import Hook
from jaxdiff.training.state import TrainState
from jaxdiff.training.stopping import StopRequest

Data = Mapping[str, Any] | Iterable[Mapping[str, Any]] | Callable[[int], Iterable[Mapping[str, Any]]]


def fit(
    workdir: str,
    init: Any,
    loss: Objective | Callable[..., jax.Array],
    data: Data,
    optimizer: Any,
    *,
    hooks: Sequence[Hook] = (),
    seed: int = 0,
    mode: str = "mesh",
    fsdp: int = 1,
    allow_change: Sequence[str] = (),
    **train: Any,
) -> TrainState:
    """Trains parameters of any network on any data, over all devices, and goes on where `workdir` got to.

    What `train.py` does around a step it does around this one: EMA, checkpoints that are read back, resuming bit for
    bit, metrics and logs, skipped steps where the loss is not finite, a stop at Ctrl-C or SIGTERM with all saved.

    Args:
      workdir: the run's folder; one that holds the same run is continued, one of another run refused.
      init: key -> parameters, any pytree of float arrays; or the parameters.
      loss: (params, batch, keys [batch]) -> [batch], unreduced; example i uses keys[i] alone. Or an
        `objectives.Objective`, which may have a state and frozen networks of its own.
      data: arrays by name, [n, ...] each: every epoch in another order, decided by `seed`; or an iterable of such
        dicts [batch_size, ...], whose first batches a resumed run passes over; or a function that gives it from batch
        number `first` on. It reaches the loss with "row" and "step" added.
      optimizer: of optax.
      hooks: what else happens, `jaxdiff.training.loop.Hook(every, call)`, call(step, metrics, state).
      seed: of the parameters, the noise and the order of arrays.
      mode: "mesh" or "pmap".
      fsdp: devices over which parameters are split.
      allow_change: settings that a run which goes on may change, such as "train.batch_size", see
        `config.files.BY_WORD`; the optimizer may always, and its state must keep its shapes.
      **train: fields of `jaxdiff.config.Train`: steps, batch_size, ema_decay, checkpoint_every, keep, log_every,
        loggers, accumulate, ... but sample_every.

    Returns:
      The state at the end, or where it was stopped: `state.ema_params`, `state.params`, `state.step`.

    Raises:
      UserError: a setting or the data that cannot be, or a workdir of another run.
      RunError: it could not go on.
    """
    settings = decode(Train, {"sample_every": 0, **train})
    layout = decode(Parallel, {"mode": mode, "fsdp": fsdp}, "parallel.")
    if problems := list(out_of_range(settings, "train.")):
        raise UserError("; ".join(problems))
    check_loggers(settings.loggers)
    whole = _batches(data, seed, settings.batch_size)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in next(whole(0)).items()}
    if wrong := [f"{name} {x.shape}" for name, x in shapes.items() if x.shape[:1] != (settings.batch_size,)]:
        raise UserError(f"data: {', '.join(wrong)}: a batch has train.batch_size={settings.batch_size} rows")
    make_params = init if callable(init) else lambda key: init
    objective = loss if isinstance(loss, Objective) else Objective(lambda params, _, *rest: loss(params, *rest))
    program = Program(make_params, objective, optimizer, shapes, settings, layout, seed=seed)
    rows = parallel.local_rows(program.mesh, settings.batch_size)
    about = {"seed": seed, "train": dataclasses.asdict(settings), "parallel": dataclasses.asdict(layout)}
    about["data"] = {name: str(x) for name, x in shapes.items()}

    def begin(start: Start) -> Parts:
        mine = ({name: x[rows] for name, x in batch.items()} for batch in whole(start.first))
        return Parts(mine, list(hooks), lambda step, values: {}, dict)

    def check(done: int, meta: dict[str, Any]) -> None:
        del meta
        if done > settings.steps:
            raise UserError(f"steps={settings.steps}, but the run in {workdir} is at step {done} already")

    with StopRequest() as stop, owned(workdir) as folder:
        changed = _check(folder, about, allow_change) if jax.process_index() == 0 else {}
        processes.barrier("the workdir is process 0's")

        def record(first: int) -> None:
            add_history(folder, first, "jaxdiff.fit", changed)
            write_whole(folder / "fit.json", json.dumps(about, indent=2).encode())

        text = f"```json\n{json.dumps(about, indent=2)}\n```"
        job = Job(program, settings, None, check, record, text, begin, file="fit.json")
        return execute(job, folder, time.time(), stop).state


def _check(workdir: Place, about: dict[str, Any], allowed: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """What changes in the run that the workdir holds; refuses one of another kind."""
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run of train.py; choose another workdir")
    if not (workdir / "fit.json").exists():
        return {}
    before = json.loads((workdir / "fit.json").read_text())
    old, new = (
        {f"{group}.{name}": x for group in ("train", "parallel", "data") for name, x in tree[group].items()}
        | {"seed": tree["seed"]}
        for tree in (before, json.loads(json.dumps(about)))
    )
    return changed_fields(old, new, str(workdir), allowed)


def _batches(data: Data, seed: int, batch_size: int) -> Callable[[int], Iterator[Batch]]:
    """(first) -> the global batches first, first + 1, ..., each with its rows numbered."""
    if isinstance(data, Mapping):
        lengths = {name: len(x) for name, x in data.items()}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise UserError(f"data: arrays must be of one length above 0, and are of {lengths}")
        everything: dict[str, np.ndarray] = {str(name): np.asarray(x) for name, x in data.items()}
        total, every_row = min(lengths.values()), np.arange(batch_size)

        def drawn(first: int) -> Iterator[Mapping[str, Any]]:
            for step in range(first, 1 << 62):
                indices = record_indices(seed, step, batch_size, every_row, total)
                yield {name: x[indices] for name, x in everything.items()}

        given: Callable[[int], Iterable[Mapping[str, Any]]] = drawn
    elif callable(data):
        given = data
    else:
        once = iter(data) is data  # an iterator, which is looked at without losing its first batch
        kept = list(islice(data, 1)) if once else []
        given = lambda first: islice(chain(kept, data), first, None)  # noqa: E731

    def numbered(first: int) -> Iterator[Batch]:
        row = np.arange(batch_size, dtype=np.int32)
        for arrays in given(first):
            batch: Batch = {str(name): np.asarray(x) for name, x in arrays.items()}
            yield {**batch, "row": row}
        raise UserError("data: the iterable ended; it must give a batch for every step")

    return numbered
