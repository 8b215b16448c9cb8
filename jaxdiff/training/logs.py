"""What a run tells: metrics.jsonl, TensorBoard events, the progress line."""

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdiff.places import Place, in_bucket, write_whole

UPLOAD_S = 60.0  # between two, if nothing else asks for one


class Log:
    """metrics.jsonl and TensorBoard events of a workdir: one line a `write`, none twice and none missing.

    On opening, lines past `step` (of steps that are about to be done again) and a last line cut short by a crash
    are dropped; the file is replaced as a whole. A bucket's files cannot be appended to: they are written in a folder
    of this machine, and go there whole, now and then and with every `upload`.
    """

    def __init__(self, workdir: Place, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore

        self._bucket = workdir if in_bucket(workdir) else None
        self._folder = Path(tempfile.mkdtemp(prefix="jaxdiff-log-")) if self._bucket else Path(workdir)
        path = workdir / "metrics.jsonl"
        lines = _lines(path) if path.exists() else ()
        path = self._folder / path.name
        write_whole(path, "".join(text + "\n" for at, text in lines if at <= step).encode())
        self._file = path.open("a")
        # An absolute path: it takes a name that begins with s3: or gs: for a bucket.
        # Not SummaryWriter: its thread dies of a full disk, and whoever then closes it waits for ever.
        self._events = EventsWriter(os.path.abspath(self._folder / "events"), f".{os.getpid()}")
        self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        self.upload()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends one line; numbers also become TensorBoard scalars."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore
        from tensorboardX.summary import scalar

        now = time.time()
        self._file.write(json.dumps({"step": step, **values, "time": round(now, 3)}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value):  # else TensorBoard's writer complains
                self._events.write_event(Event(wall_time=now, step=step, summary=scalar(name, value)))
        self._events.flush()
        if time.monotonic() - self._uploaded > UPLOAD_S:
            self.upload()

    def upload(self) -> None:
        """Brings a bucket up to date; to be called before a checkpoint is saved, so that no line of its steps lacks."""
        self._uploaded = time.monotonic()
        if self._bucket:
            self._events.flush()
            for file in self._folder.iterdir():
                write_whole(self._bucket / file.name, file.read_bytes())

    def close(self) -> None:
        """Writes what is still in memory."""
        self.upload()
        self._file.close()
        self._events.close()
        if self._bucket:
            shutil.rmtree(self._folder, ignore_errors=True)


def _lines(path: Place) -> Iterator[tuple[int, str]]:
    """(step, text) of each whole line."""
    for text in path.read_bytes().decode(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError, ValueError):
            yield int(json.loads(text)["step"]), text


class Progress:
    """A bar with loss, images a second and the time left; where the output is no terminal, ten lines in all.

    Args:
      first: steps already done.
      steps: steps in all.
      batch_size: images a step.
    """

    def __init__(self, first: int, steps: int, batch_size: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._first, self._steps, self._batch_size = first, steps, batch_size
        self._bar = None
        if sys.stderr.isatty():
            columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()]
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("starting", total=steps, completed=first)
            self._bar.start()

    def update(self, step: int, loss: float, images_per_s: float) -> None:
        """Shows where the run is."""
        text = f"loss {loss:.4f}" + (f"  {images_per_s:.0f} images/s" if images_per_s else "")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif step * 10 // self._steps > (step - 1) * 10 // self._steps or step == self._first + 1:
            left = (self._steps - step) * self._batch_size / images_per_s if images_per_s else 0.0
            print(f"step {step}/{self._steps}  {text}" + (f"  {clock_time(left)} left" if left else ""), flush=True)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.stop()


def clock_time(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss.

    >>> clock_time(61.4), clock_time(3600)
    ('1:01', '1:00:00')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
