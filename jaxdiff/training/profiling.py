"""A trace of some steps, for XProf: what devices and host did, operation by operation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

WARM_UP = 2  # calls before: the first compiles, and the second may still find caches cold


class Profile:
    """Traces the calls of a compiled step that follow its warm-up.

    Args:
      folder: where the trace goes; XProf and TensorBoard open it.
      calls: of the step to trace, >= 1.
      say: gets one line when it is done, or was not.
    """

    def __init__(self, folder: Path, calls: int, say: Callable[[str], None]):
        self._folder, self._calls, self._say = folder, calls, say
        self._done, self._running = 0, False

    def wrap(self, step: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
        """The step, traced when its time comes."""

        def traced(*args: Any) -> tuple[Any, Any]:
            if self._done == WARM_UP:
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # the interpreter's every call: slow, large, and not the question
                jax.profiler.start_trace(self._folder, profiler_options=options)
                self._running = True
            with jax.profiler.StepTraceAnnotation("train", step_num=self._done):
                result = step(*args)
            self._done += 1
            if self._done == WARM_UP + self._calls:
                jax.block_until_ready(result)
                self._stop()
            return result

        return traced

    def close(self) -> None:
        """Ends a trace that the run was too short for."""
        if self._running:
            self._stop()
        elif self._done <= WARM_UP:
            self._say(f"profile: nothing traced, the run ended within the {WARM_UP} calls of warm-up")

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        self._say(f"profile: a trace of {self._done - WARM_UP} calls is in {self._folder}; open it with XProf")
