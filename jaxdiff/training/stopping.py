"""Stopping when asked to: at the next step with everything saved, or at once where there is nothing to save."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

ECHO_S = 1.0  # between a signal and its echo


class StopRequest:
    """SIGTERM, SIGINT and SIGHUP become a request to stop after the step; a second one ends the process at once.

    SIGHUP says that the terminal is gone; where it is ignored, as under nohup, it stays so.

    Launchers pass on a signal that the process got from the terminal already, so one that follows within ECHO_S is
    the same request.

    Of several processes, JAX passes a SIGTERM to one on to all, and chooses the step after which every one stops; a
    handler of ours would hide the signal from it. The others are made into SIGTERM there.

    Until the first step of this start is done there is nothing to save. Then a process alone leaves at once, from a
    thread, since Python runs no handler while XLA compiles, which may take longer than the notice given.

    Args:
      leave: ends the process before the first step, given the signal's name.

    Attributes:
      name: the signal's name once there was one, else None.
    """

    def __init__(self, leave: Callable[[str], None] = lambda name: None):
        self.name: str | None = None
        self._since: float | None = None
        self._leave, self._working = leave, False
        self._asked = 0
        self._before: dict[int, Any] = {}

    def after(self) -> bool:
        """Whether to stop after this step; to be asked after every call, in every process."""
        self._working = True
        self._asked += 1
        if multihost_utils.reached_preemption_sync_point(self._asked):  # JAX chooses one of consecutive numbers
            self.name = "SIGTERM"
        return self.name is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[jax.process_count() > 1 :]:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
            self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._read,), daemon=True, name="signals").start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._write)  # ends the thread
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._since is None:
            self._since = time.monotonic()
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self.name = signal.Signals(number).name
        elif time.monotonic() - self._since > ECHO_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _watch(self, pipe: int) -> None:
        """Reads the numbers of signals as they arrive, whatever the main thread is doing."""
        with contextlib.closing(os.fdopen(pipe, "rb", buffering=0)) as numbers:
            while number := numbers.read(1):
                if number[0] in self._before and not self._working and jax.process_count() == 1:
                    self._leave(signal.Signals(number[0]).name)
