"""Where the wall time of a run went, over all its starts, those that were killed among them."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxdiff.storage import Place, in_bucket, write_whole

SPANS = ("startup", "compile", "data_wait", "productive", "logging", "checkpoint", "sampling", "evaluation", "lost")
BEAT_S = 0.1  # between signs of life: how exactly the end of a killed process is known
BUCKET_BEAT_S = 10.0  # the same in a bucket, where each is an object written anew


def process_start(default: float) -> float:
    """When this process was started, in `time.time` seconds: before the interpreter was; default if unknown.

    >>> 0 <= time.time() - process_start(0.0)
    True
    """
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):  # Linux alone says it
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    return default


class Clock:
    """Wall time by what it went to, over all the starts of a run.

    Every span is measured where it happens; `other` is what none of them covered, and is small. `lost` is time
    that earlier starts spent after the checkpoint this one goes on from, and so in vain (`Ledger`).

    Args:
      began: when the process did, in `time.time` seconds; the time since then was start-up.
      earlier: `totals` at the checkpoint that this start goes on from.
      lost: seconds that earlier starts spent and `earlier` does not hold.

    >>> clock = Clock(began=time.time() - 2)
    >>> with clock("compile"):
    ...     pass
    >>> totals = clock.totals()
    >>> round(totals["startup"]), round(totals["total"]), totals["other"] < 0.1
    (2, 2, True)
    """

    def __init__(self, began: float, earlier: dict[str, float] | None = None, lost: float = 0.0):
        earlier = earlier or {}
        self._began = began - earlier.get("total", 0.0) - lost
        self.spans = {name: earlier.get(name, 0.0) for name in SPANS}
        self.spans["startup"] += time.time() - began
        self.spans["lost"] += lost

    @contextlib.contextmanager
    def __call__(self, span: str | Callable[[], str]) -> Iterator[None]:
        """Counts what happens inside towards span, one of SPANS, or what it returns when all has happened."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spans[span if isinstance(span, str) else span()] += time.perf_counter() - start

    def busy(self) -> float:
        """Seconds of training proper: steps, and waiting for their data."""
        return self.spans["productive"] + self.spans["data_wait"]

    def totals(self) -> dict[str, float]:
        """Seconds by span, `other` and `total`, rounded to milliseconds."""
        total = time.time() - self._began
        seconds = {**self.spans, "other": total - sum(self.spans.values()), "total": total}
        return {name: round(value, 3) for name, value in seconds.items()}


class Ledger:
    """The time that all starts of a run have spent, in a file that holds a sign of life.

    A process that is killed writes nothing any more. So the file says when this start began and what the starts
    before it had spent; a thread writes the time into it ten times a second, and the next start adds what lies
    between. In a bucket, whose files cannot be changed in place, it is written anew every ten seconds. The time a
    file was changed says nothing: a copy has another.

    Args:
      path: the file; made or replaced.
      began: when the process did, in `time.time` seconds.

    Attributes:
      spent: seconds that earlier starts spent in all.
    """

    def __init__(self, path: Place, began: float):
        self._path, self._began = path, began
        self.spent, self._closed = _earlier(path)
        self._write(None)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="sign of life")
        self._thread.start()

    def clock(self, step: int, saved: dict[str, float] | None) -> Clock:
        """The clock of this start.

        Args:
          step: at which it goes on.
          saved: `Clock.totals` when the checkpoint of that step was saved, if there is one.
        """
        if self._closed and self._closed["step"] == step:  # the start before ended there: its last account
            saved = self._closed["seconds"]
        saved = saved or {}
        return Clock(self._began, saved, max(0.0, self.spent - saved.get("total", 0.0)))

    def close(self, step: int | None = None, seconds: dict[str, float] | None = None) -> None:
        """Ends the signs of life; with the account of a start that ended as it should, at a step it has saved.

        To close again changes nothing.
        """
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self._write(None if step is None else {"step": step, "seconds": seconds})

    def _write(self, closed: dict[str, Any] | None) -> None:
        content = {"began": self._began, "spent": round(self.spent, 3), "closed": closed}
        write_whole(self._path, b'{"alive": %s, %s' % (_now(), json.dumps(content).encode()[1:]))

    def _beat(self) -> None:
        bucket = in_bucket(self._path)
        while not self._stop.wait(BUCKET_BEAT_S if bucket else BEAT_S):
            with contextlib.suppress(Exception):  # a sign of life missed is no reason to stop
                if bucket:
                    self._write(None)
                else:
                    with open(self._path, "r+b", buffering=0) as file:
                        file.seek(len(b'{"alive": '))
                        file.write(_now())


def _now() -> bytes:
    """The time in as many bytes at any time."""
    return b"%17.6f" % time.time()


def _earlier(path: Place) -> tuple[float, dict[str, Any] | None]:
    """(seconds spent, account if the last start ended well) from a ledger; nothing from none, or one cut short."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text())
        spent = float(content["spent"]) + max(0.0, float(content["alive"]) - float(content["began"]))
        closed = content["closed"]
        if closed is not None:
            closed = {
                "step": int(closed["step"]),
                "seconds": {name: float(value) for name, value in closed["seconds"].items()},
            }
        return spent, closed
    return 0.0, None
