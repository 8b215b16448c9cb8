"""A trace of some steps, for XProf: what devices and host did, operation by operation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

WARM_UP = 2  # calls before: the first compiles, and the second may still find caches cold


class Profile:
    """A hook of kind "call" that traces the calls of a compiled step that follow its warm-up.

    Args:
      folder: where the trace goes; XProf and TensorBoard open it.
      calls: of the step to trace, >= 1.
      say: gets one line when it is done, or was not.
    """

    def __init__(self, folder: Path, calls: int, say: Callable[[str], None]):
        self._folder, self._calls, self._say = folder, calls, say
        self._done, self._running = 0, False

    def __call__(self, step: int, metrics: Any, state: Any) -> None:
        """Begins the trace, or ends it, when its time has come; waits for the call, so that it is all inside."""
        del step, metrics
        self._done += 1
        if self._done in (WARM_UP, WARM_UP + self._calls):
            jax.block_until_ready(state)
        if self._done == WARM_UP:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # the interpreter's every call: slow, large, and not the question
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._running = True
        elif self._done == WARM_UP + self._calls:
            self._stop()

    def close(self) -> None:
        """Ends a trace that the run was too short for."""
        if self._running:
            self._stop()
        elif self._done < WARM_UP:
            self._say(self._nothing())

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        traced = self._done - WARM_UP
        line = f"profile: a trace of {traced} calls is in {self._folder}; open it with XProf"
        self._say(line if traced else self._nothing())

    def _nothing(self) -> str:
        return f"profile: nothing traced, the run ended within the {WARM_UP} calls of warm-up"
