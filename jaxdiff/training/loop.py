"""The training loop: batches in, steps dispatched, metrics read one step late, checkpoints and pictures on time.

The loop knows neither files nor configs: what it saves, draws and reports with is handed to it.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxdiff.errors import RunError
from jaxdiff.training.clock import Clock
from jaxdiff.training.state import TrainState

MAX_SKIPPED = 20  # steps without a finite loss, one after another, after which going on is a waste


class DivergedError(RunError):
    """The loss is not finite any more, and skipping batches did not help."""


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How many steps in all, after how many something else happens (0 for never), and how many a call may do."""

    steps: int
    log_every: int
    checkpoint_every: int
    sample_every: int
    steps_per_call: int = 1

    def calls(self, first: int) -> Iterator[int]:
        """The steps of each call from step `first` on; a call ends where a checkpoint or pictures are due.

        >>> list(Cadence(10, log_every=1, checkpoint_every=5, sample_every=0, steps_per_call=3).calls(1))
        [3, 1, 3, 2]
        """
        while first < self.steps:
            ends = [first + self.steps_per_call, self.steps]
            ends += [first - first % every + every for every in (self.checkpoint_every, self.sample_every) if every]
            yield min(ends) - first
            first = min(ends)


def run(
    state: TrainState,
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[Any],
    key: jax.Array,
    *,
    cadence: Cadence,
    batch_size: int,
    clock: Clock,
    save: Callable[[TrainState, int, int], None],
    draw: Callable[[TrainState, int], None],
    report: Callable[[int, dict[str, Any]], None],
    show: Callable[[int, float, float], None],
    stop: Callable[[int], bool],
    skipped: int = 0,
) -> tuple[TrainState, int]:
    """Trains from state.step to cadence.steps, or until stop.

    Call n + 1 is dispatched before the metrics of call n are read, so that the device never waits for the host; a
    call is a step, or several (`Cadence.calls`). Before a checkpoint is saved, the metrics of all its steps have been
    reported.

    Args:
      state: the state to start from; it is donated.
      step: compiled, (state, batch, key) -> (state, metrics); metrics have one value a step.
      batches: what each call takes, on the devices, the first being that of step state.step.
      key: the run's key.
      cadence: when to do what.
      batch_size: images a step, for the rate.
      clock: takes the time of everything.
      save: (state, step, skipped so far), called every checkpoint_every steps, at the end, and on stopping.
      draw: (state, step), called every sample_every steps and at the end, if that is not 0.
      report: (step, values) every log_every steps: loss, grad_norm, skipped (steps so far), images_per_s,
        seconds (of `clock`).
      show: (step, loss, images_per_s) after every step.
      stop: whether to stop after this step; asked after every call.
      skipped: steps without a finite loss so far.

    Returns:
      The last state and its step, below cadence.steps if stopped.

    Raises:
      DivergedError: the loss was not finite for MAX_SKIPPED steps in a row.
    """
    first = done = int(state.step)
    reader = _Reader(cadence, batch_size, clock, report, show, skipped)
    for count in cadence.calls(first):
        with clock(lambda: "productive" if reader.busy() else "data_wait"):
            batch = next(batches)
        with clock("compile" if done == first else "productive"):
            state, metrics = step(state, batch, key)
        done += count
        reader.read(dispatched=done)
        reader.waiting = (done, count, metrics)
        stopping = stop(done)
        last = done == cadence.steps
        if stopping or last or done % cadence.checkpoint_every == 0:
            reader.read()
            with clock("checkpoint"):
                save(state, done, reader.skipped)
        if cadence.sample_every and (last or (done % cadence.sample_every == 0 and not stopping)):
            reader.read()
            with clock("sampling"):
                draw(state, done)
        if stopping:
            break
    return state, done


class _Reader:
    """Reads the metrics of the call before, and passes them on.

    Attributes:
      waiting: (last step, steps, metrics) of a call, not yet read.
      skipped: steps without a finite loss, up to the last that was read.
    """

    def __init__(self, cadence, batch_size, clock, report, show, skipped):
        self.waiting: tuple[int, int, dict[str, Any]] | None = None
        self._cadence, self._batch_size, self._clock = cadence, batch_size, clock
        self._report, self._show = report, show
        self.skipped, self._in_a_row = skipped, 0
        self._rate = 0.0
        self._times: deque[tuple[int, float]] = deque(maxlen=-(-cadence.log_every // cadence.steps_per_call) + 1)

    def busy(self) -> bool:
        """Whether a call is still being computed: then nothing has waited for the host so far."""
        return self.waiting is not None and not all(value.is_ready() for value in jax.tree.leaves(self.waiting[2]))

    def read(self, dispatched: int | None = None) -> None:
        """Waits for the call whose metrics are due, if there is one; `dispatched` says that this step just was."""
        if self.waiting is None:
            return self._measure(dispatched)
        (last, count, metrics), self.waiting = self.waiting, None
        with self._clock("productive"):
            values = {name: np.ravel(value) for name, value in jax.device_get(metrics).items()}
            rows = [{name: float(value[i]) for name, value in values.items()} for i in range(count)]
        self._measure(dispatched)
        for step, row in enumerate(rows, last - count + 1):
            self._pass_on(step, row)

    def _pass_on(self, step: int, values: dict[str, Any]) -> None:
        skipped = int(values["skipped"])
        self.skipped += skipped
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if step % self._cadence.log_every == 0:
            rate, seconds = round(self._rate, 1), self._clock.totals()
            with self._clock("logging"):
                self._report(step, {**values, "skipped": self.skipped, "images_per_s": rate, "seconds": seconds})
        self._show(step, values["loss"], self._rate)
        if self._in_a_row >= MAX_SKIPPED:
            raise DivergedError(
                f"the loss was not finite for {MAX_SKIPPED} steps up to {step}; lower optimizer.learning_rate "
                "and start again from the last checkpoint"
            )

    def _measure(self, dispatched: int | None) -> None:
        """The rate of the last log_every steps, 0 at the first. Time is taken after a dispatch, never after a save."""
        if dispatched is None:
            return
        self._times.append((dispatched, self._clock.busy()))
        (before, start), (step, end) = self._times[0], self._times[-1]
        if step > before:
            self._rate = (step - before) * self._batch_size / max(end - start, 1e-9)
