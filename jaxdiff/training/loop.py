"""The training loop: batches in, steps dispatched, metrics read one call late, hooks on time.

The loop knows neither files nor configs: all that a run leaves behind is done by the hooks handed to it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np

from jaxdiff.errors import RunError
from jaxdiff.training.clock import Clock
from jaxdiff.training.state import TrainState

MAX_SKIPPED = 20  # steps without a finite loss, one after another, after which going on is a waste


class DivergedError(RunError):
    """The loss is not finite any more, and skipping batches did not help."""


class Cadence(Protocol):
    """When a hook is due, where that is not known by the step alone (`cadence.ByTime`)."""

    def due(self, step: int) -> bool:
        """Whether to call it after this step; asked after every call, in every process alike."""
        ...


class Hook(NamedTuple):
    """Something that happens now and then in a run.

    Attributes:
      every: steps between two times, 0 for never; or a `Cadence`.
      call: takes (step, metrics, state), where `metrics` is a dict of floats of that step: loss, grad_norm, skipped
        (steps so far) and images_per_s; each kind has what is listed below, and None for the rest.
      kind: "metrics": has step and metrics, which are read one call late. "state": has all three; the metrics of all
        steps up to it have been read and passed on by then, and a call of several steps ends where it is due.
        "call": has step and state after every call, whatever `every` says, while both are still being computed.
      at_end: whether it is due after the last step of the run, too.
      on_stop: whether to do it where the run stops early; None for where it is due anyway. Of kind "state" alone.
      span: what its time counts towards, see `clock.SPANS`.
    """

    every: int | Cadence
    call: Callable[[int, Any, Any], None]
    kind: Literal["metrics", "state", "call"] = "state"
    at_end: bool = True
    on_stop: bool | None = None
    span: str = "logging"

    def due(self, step: int, last: bool = False, stopping: bool = False) -> bool:
        """Whether to do it after this step, given whether that is the run's last, or the one to stop at.

        >>> pictures = Hook(5, lambda step, metrics, state: None, on_stop=False)
        >>> pictures.due(5), pictures.due(6), pictures.due(6, last=True), pictures.due(5, stopping=True)
        (True, False, True, False)
        """
        if self.every == 0:
            return False
        by_cadence = step % self.every == 0 if isinstance(self.every, int) else self.every.due(step)
        if last and self.at_end:
            return True
        if stopping and not last and self.on_stop is not None:
            return self.on_stop
        return by_cadence


def calls(first: int, steps: int, steps_per_call: int = 1, hooks: Sequence[Hook] = ()) -> Iterator[int]:
    """How many steps each call does, from step `first` to `steps`; one ends where a hook of kind "state" is due.

    >>> list(calls(1, 10, 3, [Hook(5, lambda step, metrics, state: None)]))
    [3, 1, 3, 2]
    """
    regular = [h.every for h in hooks if h.kind == "state" and isinstance(h.every, int) and h.every]
    while first < steps:
        end = min(first + steps_per_call, steps, *(first - first % every + every for every in regular))
        yield end - first
        first = end


def run(
    state: TrainState,
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    batches: Iterator[tuple[int, Any]],
    key: jax.Array,
    hooks: Sequence[Hook],
    stop: Callable[[int], bool],
    *,
    steps: int,
    batch_size: int,
    clock: Clock,
    skipped: int = 0,
) -> tuple[TrainState, int]:
    """Trains from state.step to `steps`, or until stop.

    Call n + 1 is dispatched before the metrics of call n are read, so that the device never waits for the host; a
    call is a step, or several (`calls`).

    Args:
      state: the state to start from; it is donated.
      step: compiled, (state, batch, key) -> (state, metrics); metrics have one value a step.
      batches: (count, batch) of each call: how many steps it does and what it takes, on the devices.
      key: the run's key.
      hooks: what else happens; of those due at one step, in this order.
      stop: whether to stop after this step; asked after every call.
      steps: of the run, in all.
      batch_size: images a step, for the rate.
      clock: takes the time of everything.
      skipped: steps without a finite loss so far.

    Returns:
      The last state and its step, below `steps` if stopped.

    Raises:
      DivergedError: the loss was not finite for MAX_SKIPPED steps in a row.
    """
    first = done = int(state.step)
    reader = _Reader([hook for hook in hooks if hook.kind == "metrics"], steps, batch_size, clock, skipped)
    stopping = False
    while done < steps and not stopping:
        with clock(lambda: "productive" if reader.busy() else "data_wait"):
            count, batch = next(batches)
        with clock("compile" if done == first else "productive"):
            with jax.profiler.StepTraceAnnotation("train", step_num=done):
                state, metrics = step(state, batch, key)
        done += count
        reader.read(dispatched=done)
        reader.waiting = (done, count, metrics)
        stopping = stop(done)
        for hook in hooks:
            if hook.kind == "call":
                with clock(hook.span):
                    hook.call(done, None, state)
            elif hook.kind == "state" and hook.due(done, done == steps, stopping):
                reader.read()
                with clock(hook.span):
                    hook.call(done, reader.latest, state)
    reader.read()
    return state, done


class _Reader:
    """Reads the metrics of the call before, and passes them on.

    Attributes:
      waiting: (last step, steps, metrics) of a call, not yet read.
      latest: the metrics of the last step that was read.
    """

    def __init__(self, hooks: Sequence[Hook], steps: int, batch_size: int, clock: Clock, skipped: int):
        self.waiting: tuple[int, int, dict[str, Any]] | None = None
        self.latest: dict[str, float] = {}
        self._hooks, self._steps, self._batch_size, self._clock = hooks, steps, batch_size, clock
        self._skipped, self._in_a_row = skipped, 0
        self._rate = 0.0
        self._window = max((hook.every for hook in hooks if isinstance(hook.every, int)), default=1)
        self._times: deque[tuple[int, float]] = deque()

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

    def _pass_on(self, step: int, values: dict[str, float]) -> None:
        skipped = int(values["skipped"])
        self._skipped += skipped
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        self.latest = {**values, "skipped": self._skipped, "images_per_s": self._rate}
        for hook in self._hooks:
            if hook.due(step, last=step == self._steps):
                with self._clock(hook.span):
                    hook.call(step, self.latest, None)
        if self._in_a_row >= MAX_SKIPPED:
            raise DivergedError(
                f"the loss was not finite for {MAX_SKIPPED} steps up to {step}; lower optimizer.learning_rate "
                "and start again from the last checkpoint"
            )

    def _measure(self, dispatched: int | None) -> None:
        """The rate of the last `window` steps, 0 at the first. Time is taken after a dispatch, never after a save."""
        if dispatched is None:
            return
        self._times.append((dispatched, self._clock.busy()))
        while len(self._times) > 2 and self._times[1][0] <= dispatched - self._window:
            self._times.popleft()
        (before, start), (step, end) = self._times[0], self._times[-1]
        if step > before:
            self._rate = (step - before) * self._batch_size / max(end - start, 1e-9)
