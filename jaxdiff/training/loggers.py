"""Loggers: where the numbers of a run go, by name (`LOGGERS`); each goes on with the record of the start before.

A member is a factory: (folder, first_step, title) -> an object with write(step, values) and
close(), and, where it can show them, picture(step, name, pixels) and text(step, name, markdown). Values hold "time",
in `time.time` seconds. All files that a record needs to go on begin with `metrics.`, so that a bucket can bring them.
"""

import contextlib
import csv
import importlib.util
import io
import json
import math
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxdiff.errors import UserError
from jaxdiff.family import Family
from jaxdiff.storage import write_whole
from jaxdiff.training.checkpoints import report


class Jsonl:
    """metrics.jsonl: one line a `write`, none twice and none missing.

    On opening, lines past `first_step` (of steps that are about to be done again) and a last line cut short by a
    crash are dropped; the file is replaced as a whole.
    """

    def __init__(self, folder: Path, first_step: int, title: str, /):
        del title
        path = folder / "metrics.jsonl"
        lines = _lines(path) if path.exists() else ()
        write_whole(path, "".join(text + "\n" for at, text in lines if at <= first_step).encode())
        self._file = path.open("a")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends one line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(step, text) of each whole line."""
    for text in path.read_bytes().decode(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError, ValueError):
            yield int(json.loads(text)["step"]), text


class TensorBoard:
    """TensorBoard events: numbers become scalars; the events of an earlier start past `first_step` are superseded."""

    def __init__(self, folder: Path, first_step: int, title: str, /):
        del title
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore

        # An absolute path: it takes a name that begins with s3: or gs: for a bucket.
        # Not SummaryWriter: its thread dies of a full disk, and whoever then closes it waits for ever.
        self._events = EventsWriter(os.path.abspath(folder / "events"), f".{os.getpid()}")
        self._events.write_event(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._events.flush()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes an event a number."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore
        from tensorboardX.summary import scalar

        for name, value in values.items():
            if name != "time" and isinstance(value, (int, float)) and math.isfinite(value):  # it complains of others
                self._events.write_event(Event(wall_time=values["time"], step=step, summary=scalar(name, value)))
        self._events.flush()

    def picture(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w c"]) -> None:
        """Writes a picture, of 1, 3 or 4 channels."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore
        from tensorboardX.summary import image

        pixels = pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels
        summary = image(name, pixels, dataformats="HWC")
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._events.flush()

    def text(self, step: int, name: str, markdown: str) -> None:
        """Writes a text."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore
        from tensorboardX.summary import text

        self._events.write_event(Event(wall_time=time.time(), step=step, summary=text(name, markdown)))
        self._events.flush()

    def close(self) -> None:
        """Closes the file."""
        self._events.close()


class Csv:
    """metrics.csv: a row a `write`, cut back on opening as metrics.jsonl is; a new name makes a new column."""

    def __init__(self, folder: Path, first_step: int, title: str, /):
        del title
        self._path = folder / "metrics.csv"
        self._columns: list[str] = ["step"]
        rows = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                reader = csv.DictReader(file)
                for row in reader:
                    with contextlib.suppress(TypeError, ValueError):  # a row cut short
                        if None not in row.values() and int(row["step"]) <= first_step:
                            rows.append(row)
            self._columns = list(reader.fieldnames or self._columns)
        self._replace(rows)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends one row."""
        row = {"step": step, **numbers(values)}
        new = [name for name in row if name not in self._columns]
        if new:
            self._file.close()
            with self._path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            self._columns += new
            self._replace(rows)
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _replace(self, rows: Iterable[dict[str, Any]]) -> None:
        """Writes the file anew, with all columns, and opens it for more."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self._path, text.getvalue().encode())
        self._file = self._path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, self._columns, restval="")


class _Service:
    """A logger that sends to a service: the run's name there, and the last step it has, in metrics.NAME.json.

    A step that it has already is not sent again; one that cannot be sent is lost, with one line on stderr: a service
    that is down is no reason to stop training.
    """

    name: str

    def __init__(self, folder: Path):
        self._path = folder / f"metrics.{self.name}.json"
        self.record: dict[str, Any] = {"id": "", "step": 0}
        if self._path.exists():
            self.record = json.loads(self._path.read_text())
        self._failed = False

    def keep(self) -> None:
        """Writes the record."""
        write_whole(self._path, json.dumps(self.record).encode())

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Sends all numbers."""
        if step <= self.record["step"]:
            return
        try:
            self.send(step, numbers(values))
        except Exception as error:  # of whichever client: a service that is down is no reason to stop training
            if not self._failed:
                report(f"{self.name}: step {step} not logged ({_first_line(error)}); training goes on")
            self._failed = True
            return
        self.record["step"] = step
        self.keep()

    def send(self, step: int, values: dict[str, float]) -> None:
        """Sends the values of a step."""
        raise NotImplementedError


class WandB(_Service):
    """Weights & Biases, written to WORKDIR/wandb for `wandb sync`; with WANDB_MODE=online in the environment, sent.

    The project is WANDB_PROJECT of the environment, or jaxdiff.
    """

    name = "wandb"

    def __init__(self, folder: Path, first_step: int, title: str, /):
        del first_step
        super().__init__(folder)
        self.record["id"] = self.record["id"] or secrets.token_hex(4)
        wandb = _package("wandb")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "jaxdiff"),
                name=title,
                id=self.record["id"],
                resume="allow",
                dir=str(folder),
                mode=os.environ.get("WANDB_MODE", "offline"),
                settings=wandb.Settings(console="off", silent=True),
            )
        except Exception as error:  # its own kinds, of no account, no network, a wrong setting
            raise UserError(
                f"wandb does not start: {_first_line(error)}; set WANDB_MODE=offline, or leave it"
            ) from error
        self.keep()

    def send(self, step: int, values: dict[str, float]) -> None:
        """Sends the values of a step."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


class MLflow(_Service):
    """MLflow, at MLFLOW_TRACKING_URI from the environment, or in the data base WORKDIR/metrics.mlflow.db.

    The experiment is MLFLOW_EXPERIMENT_NAME of the environment, or jaxdiff.
    """

    name = "mlflow"

    def __init__(self, folder: Path, first_step: int, title: str, /):
        del first_step
        super().__init__(folder)
        own = f"sqlite:///{folder.resolve() / 'metrics.mlflow.db'}"
        address = os.environ.get("MLFLOW_TRACKING_URI", own)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "jaxdiff")
        mlflow = _package("mlflow")
        try:
            self._client = mlflow.MlflowClient(tracking_uri=address)
            if not self.record["id"]:
                known = self._client.get_experiment_by_name(experiment)
                identity = known.experiment_id if known else self._client.create_experiment(experiment)
                self.record["id"] = self._client.create_run(identity, run_name=title).info.run_id
            else:
                self._client.update_run(self.record["id"], status="RUNNING")
        except Exception as error:  # MLflow raises what its store does: HTTP, SQL, files
            raise UserError(
                f"mlflow does not start at {address}: {_first_line(error)}; set MLFLOW_TRACKING_URI"
            ) from error
        self._metric = mlflow.entities.Metric
        self.keep()

    def send(self, step: int, values: dict[str, float]) -> None:
        """Sends the values of a step."""
        now = round(1000 * values.pop("time"))
        self._client.log_batch(
            self.record["id"], [self._metric(name, value, now, step) for name, value in values.items()]
        )

    def close(self) -> None:
        """Ends the run there."""
        with contextlib.suppress(Exception):  # said by write
            self._client.set_terminated(self.record["id"])


LOGGERS = Family("logger", {"jsonl": Jsonl, "tensorboard": TensorBoard, "csv": Csv, "wandb": WandB, "mlflow": MLflow})
_PACKAGES = ("wandb", "mlflow")  # an extra each, of the same name


def check_loggers(names: Sequence[str]) -> None:
    """Refuses unknown loggers, and those whose package is missing, before anything is written.

    Raises:
      UserError: what is wrong, with the choices or the extra to install.

    >>> check_loggers(["jsonl", "json"])
    Traceback (most recent call last):
    ...
    jaxdiff.errors.UserError: unknown logger 'json'; choose among jsonl, tensorboard, csv, wandb, mlflow
    """
    for name in names:
        if name not in LOGGERS.members:
            raise UserError(f"unknown logger {name!r}; choose among {', '.join(LOGGERS.members)}")
        if names.count(name) > 1:
            raise UserError(f"the logger {name} is named twice; once is enough")
        if name in _PACKAGES and importlib.util.find_spec(name) is None:
            raise UserError(f"the logger {name} needs the package {name}: pip install 'jaxdiff[{name}]'")


def numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """All finite numbers, those of a dict as name/key.

    >>> numbers({"loss": 0.5, "seconds": {"total": 2.0}, "mfu": float("nan"), "note": "none"})
    {'loss': 0.5, 'seconds/total': 2.0}
    """
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            flat[prefix + name] = value
    return flat


def _package(name: str) -> Any:
    """The package of a logger, which `check_loggers` has seen."""
    return importlib.import_module(name)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
