"""Cadences by time, and the hooks of a run that need more than one call: the log with its mean loss, the profile.

A hook is a `loop.Hook`; what it calls is any function of (step, metrics, state). `job.execution` puts them together.
"""

import datetime
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdiff.parallel import processes
from jaxdiff.training.clock import Clock
from jaxdiff.training.loop import Hook

_TIME = re.compile(
    "".join(rf"(?:(?P<{unit}>\d{{1,6}}(?:\.\d+)?){unit[0]})?" for unit in ("days", "hours", "minutes", "seconds"))
)


def parse_every(every: int | str) -> int | datetime.timedelta:
    """A number of steps, or a time: 90s, 10m, 1h30m, 1.5h, 2d.

    Raises:
      ValueError: it is neither, or a time of 0, or below 0.

    >>> parse_every(500), parse_every("500"), parse_every("1h30m")
    (500, 500, datetime.timedelta(seconds=5400))
    """
    text = str(every).strip()
    if text.isdecimal():
        return int(text)
    match = _TIME.fullmatch(text)
    length = datetime.timedelta(**{unit: float(n) for unit, n in match.groupdict("0").items()}) if match else None
    if not length:
        raise ValueError(f"{every!r} is neither a number of steps nor a time; write 500, 90s, 10m or 1h30m")
    return length


class ByTime:
    """Due after the first call that ends so long after the time before; counted from the end of the first call.

    Several processes must do it after the same step. The clock of process 0 decides, and the others ask it after
    steps that all of them know beforehand: the next one is as far away as half of the time that is left reaches at
    the rate so far. So they ask some ten times in between, and not after every step.

    Args:
      length: the time in between.
    """

    def __init__(self, length: datetime.timedelta):
        self._seconds = length.total_seconds()
        self._next = 0  # to ask after
        self._last: tuple[int, float] | None = None  # step and time

    def due(self, step: int) -> bool:
        """Whether it is; to be asked after every call, in every process."""
        if step < self._next:
            return False
        now = time.monotonic()
        before, since = self._last = self._last or (step, now)
        left = since + self._seconds - now
        reach = left / 2 * (step - before) / (now - since) if now > since else 0.0
        ahead = max(1, int(reach)) if jax.process_count() > 1 else 1
        due, self._next = processes.from_first([left <= 0, step + (ahead if left > 0 else 1)])
        if due:
            self._last = step, now
        return due


def make_cadence(every: int | str) -> int | ByTime:
    """What `loop.Hook.every` takes, from `parse_every`'s argument."""
    parsed = parse_every(every)
    return parsed if isinstance(parsed, int) else ByTime(parsed)


class Mean:
    """The mean of the finite values since the last `reset`.

    Args:
      state: `state` of another, to go on from.

    >>> mean = Mean()
    >>> mean.add(1.0); mean.add(float("nan")); mean.add(2.0)
    >>> mean.state, mean.value
    ([3.0, 2], 1.5)
    """

    def __init__(self, state: list[float] | None = None):
        self.state = list(state) if state else [0.0, 0]

    def add(self, value: float) -> None:
        """Counts one value, if it is finite."""
        if math.isfinite(value):
            self.state = [self.state[0] + value, self.state[1] + 1]

    @property
    def value(self) -> float:
        """The mean, NaN of none."""
        total, count = self.state
        return total / count if count else math.nan

    def reset(self) -> None:
        """Forgets all values."""
        self.state = [0.0, 0]


def log_hooks(
    every: int,
    write: Callable[[int, dict[str, Any]], None],
    mean: Mean,
    learning_rate: Callable[[Any], Any] | None,
    clock: Clock,
) -> list[Hook]:
    """Hooks that write a line every so many steps and at the end.

    A line has loss, grad_norm, skipped, images_per_s, loss_mean (since the last line that was due by `every`),
    learning_rate (of this step's update) and seconds (of `clock`).

    Args:
      every: steps between two lines, >= 1.
      write: takes (step, values).
      mean: of the losses since the last line; its state is part of a checkpoint, so that no line depends on stops.
      learning_rate: of update n, see `optimizer.make_learning_rate`; None leaves it out.
      clock: of the run.
    """

    def line(step: int, metrics: dict[str, Any], state: Any) -> None:
        del state
        update = np.asarray(max(0, step - 1 - metrics["skipped"]))  # skipped steps do not move the schedule
        rate = {} if learning_rate is None else {"learning_rate": float(learning_rate(update))}
        more = {"loss_mean": mean.value, **rate, "seconds": clock.totals()}
        write(step, {**metrics, "images_per_s": round(metrics["images_per_s"], 1), **more})
        if step % every == 0:  # the line at an end is one more: whoever lengthens the run has the next as without it
            mean.reset()

    count = Hook(1, lambda step, metrics, state: mean.add(metrics["loss"]), "metrics")
    return [count, Hook(every, line, "metrics")]
