"""The training loop: batches in, steps dispatched, metrics read one step late, checkpoints and pictures on time.

The loop knows neither files nor configs: what it saves, draws and reports with is handed to it.
"""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxdiff.training.logs import Clock
from jaxdiff.training.state import TrainState

ECHO_S = 1.0  # between a signal and its echo
MAX_SKIPPED = 20  # steps without a finite loss, one after another, after which going on is a waste


class DivergedError(RuntimeError):
    """The loss is not finite any more, and skipping batches did not help."""


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How many steps in all, and after how many something else happens; 0 for never."""

    steps: int
    log_every: int
    checkpoint_every: int
    sample_every: int


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

    Step n + 1 is dispatched before the metrics of step n are read, so that the device never waits for the host.
    Before a checkpoint is saved, the metrics of all its steps have been reported.

    Args:
      state: the state to start from; it is donated.
      step: compiled, (state, batch, key) -> (state, metrics).
      batches: device-ready batches, the first being that of step state.step.
      key: the run's key.
      cadence: when to do what.
      batch_size: images a step, for the rate.
      clock: takes the time of everything.
      save: (state, step, skipped so far), called every checkpoint_every steps, at the end, and on stopping.
      draw: (state, step), called every sample_every steps and at the end, if that is not 0.
      report: (step, values) every log_every steps: loss, grad_norm, skipped (steps so far), images_per_s,
        seconds (of `clock`).
      show: (step, loss, images_per_s) after every step.
      stop: whether to stop after this step; asked at every step.
      skipped: steps without a finite loss so far.

    Returns:
      The last state and its step, below cadence.steps if stopped.

    Raises:
      DivergedError: the loss was not finite for MAX_SKIPPED steps in a row.
    """
    first = done = int(state.step)
    reader = _Reader(first, cadence, batch_size, clock, report, show, skipped)
    while done < cadence.steps:
        with clock("data_wait"):
            batch = next(batches)
        with clock("compile" if done == first else "productive"):
            state, metrics = step(state, batch, key)
        reader.read()
        done += 1
        reader.waiting = (done, metrics)
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
    """Reads the metrics of the step before, and passes them on.

    Attributes:
      waiting: (step, its metrics), not yet read.
      skipped: steps without a finite loss, up to the last that was read.
    """

    def __init__(self, first, cadence, batch_size, clock, report, show, skipped):
        self.waiting: tuple[int, dict[str, jax.Array]] | None = None
        self._cadence, self._batch_size, self._clock = cadence, batch_size, clock
        self._report, self._show = report, show
        self.skipped, self._in_a_row = skipped, 0
        self._rate, self._since = 0.0, (first, clock.busy())

    def read(self) -> None:
        """Waits for the step whose metrics are due, if there is one."""
        if self.waiting is None:
            return
        (step, metrics), self.waiting = self.waiting, None
        with self._clock("productive"):
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        skipped = int(values["skipped"])
        self.skipped += skipped
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        logged = step % self._cadence.log_every == 0
        if logged or self._rate == 0:
            steps, seconds = step - self._since[0], self._clock.busy() - self._since[1]
            self._rate = steps * self._batch_size / max(seconds, 1e-9)
        if logged:
            self._since = (step, self._clock.busy())
            rate, seconds = round(self._rate, 1), self._clock.totals()
            self._report(step, {**values, "skipped": self.skipped, "images_per_s": rate, "seconds": seconds})
        self._show(step, values["loss"], self._rate)
        if self._in_a_row >= MAX_SKIPPED:
            raise DivergedError(
                f"the loss was not finite for {MAX_SKIPPED} steps up to {step}; lower optimizer.learning_rate "
                "and start again from the last checkpoint"
            )


class StopRequest:
    """SIGTERM and SIGINT become a request to stop after the step; a second one ends the process at once.

    Launchers pass on a signal that the process got from the terminal already, so one that follows within ECHO_S is
    the same request.

    Of several processes, JAX passes a SIGTERM to one on to all, and chooses the step after which every one stops; a
    handler of ours would hide the signal from it. SIGINT is made into SIGTERM there.

    Attributes:
      name: the signal's name once there was one, else None.
    """

    def __init__(self):
        self.name: str | None = None
        self._since: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            for number in (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def after(self, step: int) -> bool:
        """Whether to stop after this step; to be asked at every one, in every process."""
        if multihost_utils.reached_preemption_sync_point(step):
            self.name = "SIGTERM"
        return self.name is not None

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._since is None:
            self._since = time.monotonic()
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self.name = signal.Signals(number).name
        elif time.monotonic() - self._since > ECHO_S:
            self.__exit__()
            signal.raise_signal(number)
