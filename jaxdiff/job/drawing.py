"""Samples drawn batch by batch, with a bar on a terminal: Ctrl-C and SIGTERM stop them at once."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxdiff.training.logs import shown

_LOOK_S = 0.1  # between two looks at the thread
_TIMED_STEPS = 16  # from so many on, a step is timed beforehand


def draw_batches(
    draw: Callable[[int], Any], batches: Sequence[int], steps: int, step: Callable[[], Any] | None
) -> tuple[list[Any], bool]:
    """draw(i) for each of the batches, and whether they were stopped before all were done.

    Python hears no signal while XLA works, which may take minutes: so XLA works in a thread. Where that was stopped it
    is still at work when this returns, and the process is to be left by `os._exit`.

    Args:
      draw: a batch.
      batches: their numbers.
      steps: of each, for the bar.
      step: a batch of one step by the same program, timed so that the bar moves within a batch; None where the
        program is of all steps.
    """
    done: list[Any] = []
    starts: list[float] = []  # of batches
    pace: list[float] = []  # seconds of a step
    failed: list[BaseException] = []
    watched = shown() and sys.stderr.isatty()

    def work() -> None:
        try:
            if watched and step and steps >= _TIMED_STEPS:
                step()  # compiles
                began = time.perf_counter()
                step()
                pace.append(time.perf_counter() - began)
            for i in batches:
                starts.append(time.perf_counter())
                done.append(draw(i))
        except BaseException as error:  # raised again where the thread is waited for
            failed.append(error)

    def show() -> tuple[int, str]:
        within = int((time.perf_counter() - starts[-1]) / pace[0]) if pace and starts else 0
        batch = f"batch {len(starts)} of {len(batches)}, " if len(batches) > 1 else ""
        what = f"{batch}step {min(within + 1, steps)} of {steps}" if pace else f"{batch}{steps} steps"
        return len(done) * steps + min(within, steps - 1), what if starts else "compiling"

    thread = threading.Thread(target=work, name="drawing", daemon=True)
    try:
        with contextlib.ExitStack() as stack:
            update = stack.enter_context(_bar(len(batches) * steps)) if watched else lambda *shown: None
            thread.start()
            while thread.is_alive():
                thread.join(_LOOK_S)
                update(*show())
    except KeyboardInterrupt:
        return list(done), True
    if failed:
        raise failed[0]
    return done, False


@contextlib.contextmanager
def _bar(total: int) -> Any:
    """(steps done, what is being done) -> None."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, what: bar.update(task, completed=done, description=what)
