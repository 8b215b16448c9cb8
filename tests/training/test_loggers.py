"""Loggers: each record has every line once, whatever was killed and done again; a missing package is one line."""

import csv
import json
import struct
import sys
import types

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxdiff.errors import UserError
from jaxdiff.job import training as training_job
from jaxdiff.training.loggers import LOGGERS, check_loggers
from jaxdiff.training.logs import DEFAULT, Log


def values(step):
    return {"loss": 1.0 / step, "seconds": {"total": 2.0}, "note": "none"}


def in_pieces(tmp_path, loggers):
    """Steps 1 to 4, then again from 2 on as after a kill, with a new value; the workdir."""
    for first, last in ((0, 4), (2, 5)):
        log = Log(tmp_path, first, loggers)
        for step in range(first + 1, last + 1):
            log.write(step, values(step) if first == 0 else {**values(step), "mfu": 0.5})
        log.close()
    return tmp_path


def _steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_the_log_drops_what_will_be_done_again_and_a_line_cut_short(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = Log(tmp_path, 0)
    for step in (1, 2, 3, 4):
        log.write(step, {"loss": 0.5})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # what kill -9 leaves
    log = Log(tmp_path, 2)
    assert _steps(path) == [1, 2]
    log.write(3, {"loss": 0.25})
    log.close()
    assert _steps(path) == [1, 2, 3]
    assert any("tfevents" in p.name for p in tmp_path.iterdir())


def test_csv_has_every_step_once_and_a_column_a_number(tmp_path):
    path = in_pieces(tmp_path, ["csv"]) / "metrics.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row["mfu"] for row in rows] == ["", "", "0.5", "0.5", "0.5"]
    assert float(rows[3]["loss"]) == 0.25 and rows[0]["seconds/total"] == "2.0" and "note" not in rows[0]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_csv_drops_a_row_cut_short(tmp_path):
    path = in_pieces(tmp_path, ["csv"]) / "metrics.csv"
    with path.open("a") as file:
        file.write("6,0.1")
    Log(tmp_path, 9, ["csv"]).close()
    assert len(path.read_text().splitlines()) == 1 + 5


def _events(folder):
    """All events of a folder's files, in order: each a length, a checksum, the event, a checksum."""
    for path in sorted(folder.glob("*tfevents*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_tensorboard_has_numbers_pictures_and_texts(tmp_path):
    log = Log(tmp_path, 3)
    log.write(4, values(4))
    log.picture(4, "samples", np.zeros((5, 7, 1), np.uint8))
    log.text(4, "config", "steps: 5")
    log.close()
    found = [(event.step, value) for event in _events(tmp_path) for value in event.summary.value]
    assert [(step, value.tag) for step, value in found] == [(4, "loss"), (4, "samples"), (4, "config/text_summary")]
    (_, loss), (_, picture), (_, text) = found
    assert loss.simple_value == 0.25 and (picture.image.height, picture.image.width) == (5, 7)
    assert text.tensor.string_val[0] == b"steps: 5"
    assert any(event.session_log.status and event.step == 4 for event in _events(tmp_path))  # what was past it is void


class _WandB(types.ModuleType):
    """What wandb does, as far as it is used: runs by id, in memory."""

    def __init__(self):
        super().__init__("wandb")
        self.calls, self.runs = [], {}

    def Settings(self, **options):
        return options

    def init(self, **options):
        self.calls.append(options)
        lines = self.runs.setdefault(options["id"], [])
        log = lambda values, step: lines.append((step, values["loss"]))  # noqa: E731
        return types.SimpleNamespace(log=log, finish=lambda: None)


def test_wandb_goes_on_with_its_run_offline_and_sends_no_step_twice(tmp_path, monkeypatch):
    wandb = _WandB()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    in_pieces(tmp_path / "run", ["wandb"])
    [[key, lines]] = wandb.runs.items()
    assert lines == [(step, 1.0 / step) for step in range(1, 6)]
    assert json.loads((tmp_path / "run" / "metrics.wandb.json").read_text()) == {"id": key, "step": 5}
    assert {call["mode"] for call in wandb.calls} == {"offline"}
    assert wandb.calls[0]["dir"] == str(tmp_path / "run") and wandb.calls[0]["name"] == "run"
    monkeypatch.setenv("WANDB_MODE", "online")
    Log(tmp_path / "run", 5, ["wandb"]).close()
    assert wandb.calls[-1]["mode"] == "online"


def test_a_service_that_is_down_loses_lines_with_one_word_and_not_the_run(tmp_path, monkeypatch, capsys):
    wandb = _WandB()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(wandb, "init", lambda **options: types.SimpleNamespace(finish=lambda: None, log=wandb.fail))
    wandb.fail = lambda values, step: 1 / 0
    in_pieces(tmp_path, ["jsonl", "wandb"])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "wandb: step 1 not logged (division by zero); training goes on" and len(said) == 2  # two starts
    assert _steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5]

    def refuse(**options):
        raise RuntimeError("no account\nlong explanation")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match="wandb does not start: no account; set WANDB_MODE=offline, or leave it"):
        Log(tmp_path, 5, ["wandb"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_real_package_takes_a_record_in_pieces(name, tmp_path):
    pytest.importorskip(name)
    in_pieces(tmp_path, [name])
    record = json.loads((tmp_path / f"metrics.{name}.json").read_text())
    assert record["step"] == 5
    if name == "wandb":
        assert len(list(tmp_path.glob(f"wandb/offline-run-*-{record['id']}"))) >= 1
        return
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'metrics.mlflow.db'}")
    history = client.get_metric_history(record["id"], "loss")
    assert sorted((point.step, point.value) for point in history) == [(n, 1.0 / n) for n in range(1, 6)]
    assert client.get_run(record["id"]).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["tensorbord"], "unknown logger 'tensorbord'; choose among jsonl, tensorboard, csv, wandb, mlflow"),
        (["csv", "csv"], "the logger csv is named twice; once is enough"),
        (["jsonl", "wandb"], "the logger wandb needs the package wandb: pip install 'jaxdiff[wandb]'"),
        (["mlflow"], "the logger mlflow needs the package mlflow: pip install 'jaxdiff[mlflow]'"),
    ],
)
def test_a_logger_that_cannot_be_is_refused_before_anything_is_written(names, line, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        check_loggers(names)
    assert str(refused.value) == line
    from jaxdiff.config import Config, Train

    with pytest.raises(UserError, match="logger"):
        training_job.train(Config(workdir=str(tmp_path / "run"), train=Train(loggers=tuple(names))), 0.0)
    assert not (tmp_path / "run").exists()


def test_the_default_is_as_ever_and_all_are_named():
    assert DEFAULT == ("jsonl", "tensorboard")
    assert list(LOGGERS.members) == ["jsonl", "tensorboard", "csv", "wandb", "mlflow"]
    check_loggers(DEFAULT)
