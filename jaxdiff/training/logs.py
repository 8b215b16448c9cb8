"""The log of a run: all its loggers as one, and the progress on the terminal."""

import datetime
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxdiff.storage import Place, in_bucket, write_whole
from jaxdiff.training.hooks import Mean
from jaxdiff.training.loggers import LOGGERS

DEFAULT = ("jsonl", "tensorboard")
UPLOAD_S = 60.0  # between two, if nothing else asks for one
DAY = 86400.0
LINE_S = 30.0  # between two lines of progress where the output is no terminal


class Log:
    """The loggers of a workdir; one `write` goes to all of them.

    A bucket's files cannot be appended to: they are written in a folder of this machine, and go there whole, now and
    then and with every `upload`.

    Args:
      workdir: of the run.
      step: done already; later lines of an earlier start are dropped.
      loggers: names of `loggers.LOGGERS`.
    """

    def __init__(self, workdir: Place, step: int, loggers: Sequence[str] = DEFAULT):
        self._bucket = workdir if in_bucket(workdir) else None
        self._folder = Path(tempfile.mkdtemp(prefix="jaxdiff-log-")) if self._bucket else Path(workdir)
        if self._bucket:
            for file in self._bucket.glob("metrics.*"):
                (self._folder / file.name).write_bytes(file.read_bytes())
        self._loggers = [LOGGERS.build(name, {}, self._folder, step, workdir.name) for name in loggers]
        self.upload()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds one line to every record."""
        for logger in self._loggers:
            logger.write(step, {**values, "time": round(time.time(), 3)})
        if time.monotonic() - self._uploaded > UPLOAD_S:
            self.upload()

    def picture(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w c"]) -> None:
        """Gives a picture to the loggers that show pictures."""
        for logger in self._loggers:
            if hasattr(logger, "picture"):
                logger.picture(step, name, pixels)

    def text(self, step: int, name: str, markdown: str) -> None:
        """Gives a text to the loggers that show texts."""
        for logger in self._loggers:
            if hasattr(logger, "text"):
                logger.text(step, name, markdown)

    def upload(self) -> None:
        """Brings a bucket up to date; to be called before a checkpoint is saved, so that no line of its steps lacks."""
        self._uploaded = time.monotonic()
        if self._bucket:
            for file in self._folder.rglob("*"):
                if file.is_file():
                    write_whole(self._bucket / file.relative_to(self._folder).as_posix(), file.read_bytes())

    def close(self) -> None:
        """Writes what is still in memory."""
        for logger in self._loggers:
            logger.close()
        self.upload()
        if self._bucket:
            shutil.rmtree(self._folder, ignore_errors=True)


class Progress:
    """A bar with loss, images a second and the time left; where the output is no terminal, a line every LINE_S seconds.

    A line has the time of day and the mean loss since the line before; the first and the last step have one always.
    Nothing is shown unless `shown`.

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
        self._mean, self._printed = Mean(), 0.0
        self._bar = None
        if shown() and sys.stderr.isatty():
            columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()]
            self._bar = Bar(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
            self._task = self._bar.add_task("starting", total=steps, completed=first)
            self._bar.start()

    def update(self, step: int, loss: float, images_per_s: float) -> None:
        """Shows where the run is."""
        rate = f"  {images_per_s:.0f} images/s" if images_per_s else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"loss {loss:.4f}{rate}")
        if not shown():
            return
        self._mean.add(loss)
        due = step in (self._first + 1, self._steps) or time.monotonic() - self._printed >= LINE_S
        left = (self._steps - step) * self._batch_size / images_per_s if images_per_s else 0.0
        if step == self._first + 1 and left > DAY:
            print(f"note: at this rate the run takes MORE THAN A DAY: {clock_time(left)}", flush=True)
        if due and not (self._bar is not None and sys.stdout.isatty()):
            self._printed = time.monotonic()
            now = datetime.datetime.now().isoformat(" ", "seconds")
            text = f"{now}  step {step}/{self._steps}  loss {self._mean.value:.4f}{rate}"
            print(text + (f"  {clock_time(left)} left" if left else ""), flush=True)
            self._mean.reset()

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.stop()


def shown() -> bool:
    """Whether progress is: unless the logger "jaxdiff" of Python's logging is set to WARNING or above."""
    return logging.getLogger("jaxdiff").level < logging.WARNING


def clock_time(seconds: float) -> str:
    """Seconds as m:ss, h:mm:ss or days.

    >>> clock_time(61.4), clock_time(3600), clock_time(475200)
    ('1:01', '1:00:00', '5.5 days')
    """
    if seconds > DAY:
        return f"{seconds / DAY:.1f} days"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
