"""Evaluation while training, end to end: exact, harmless, one with `jaxdiff evaluate`, best and early end, refusals."""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdiff.assembly.assemble import assemble
from jaxdiff.commands import main
from jaxdiff.config.files import load
from jaxdiff.job import validation
from jaxdiff.training import logs
from jaxdiff.training.checkpoints import restore

CONFIG = """
from jaxdiff.config import *
from jaxdiff.models import DiT
config = Config(
    data=Data(name="folder", path={path!r}),
    model=DiT(width=8, depth=1, num_heads=1, num_classes=2, dropout=0.5),
    diffusion=Diffusion(num_steps=20, class_dropout=0.5),
    optimizer=Optimizer(learning_rate=1e-2, warmup_steps=0),
    train=Train(steps=4, batch_size=8, checkpoint_every=2, log_every=1, sample_every=0, ema_decay=0.5,
                evaluate_path={held_out!r}),
    sampling=Sampling(steps=2),
)
"""
EVERY = ("--train.evaluate-every", "2")
SAMPLES = ("--train.evaluate-num", "100", "--train.evaluate-features", "pixels", "--train.best", "fid")
METRICS = ("--train.evaluate-metrics", "fid", "sw", "validation_loss")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config file of 104 grey images of 4x4 in two classes, and 24 held-out ones."""
    folder = tmp_path_factory.mktemp("data")
    for part, n, seed in (("train", 104, 0), ("held_out", 24, 1)):
        for i, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (n, 4, 4), np.uint8)):
            path = folder / part / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (folder / "tiny.py").write_text(CONFIG.format(path=str(folder / "train"), held_out=str(folder / "held_out")))
    return str(folder / "tiny.py")


def train(config, workdir, *options):
    return main(["train", config, "--workdir", str(workdir), *options])


def lines(workdir):
    """What metrics.jsonl says of every evaluation, without the times."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name != "time"} for row in rows if "validation_loss" in row]


def same_state(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), one, other))


@pytest.fixture(scope="module")
def evaluated(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "evaluated"
    assert train(config, workdir, *EVERY, *METRICS, *SAMPLES) == 0
    return workdir


def test_training_is_as_without_it_and_resumes_exactly(config, evaluated, tmp_path, monkeypatch):
    """The second run stops where it is to evaluate, and owes that to the next start; the third never evaluates."""
    update = logs.Progress.update

    def interrupted(self, step, loss, rate):  # of step 1 it hears when step 2 is being computed, which is the last then
        update(self, step, loss, rate)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(logs.Progress, "update", interrupted)
        assert train(config, tmp_path / "a", *EVERY, *METRICS, *SAMPLES) == 75
    assert lines(tmp_path / "a") == [] and int(restore(tmp_path / "a").step) == 2
    assert train(config, tmp_path / "a", *EVERY, *METRICS, *SAMPLES) == 0
    assert train(config, tmp_path / "b") == 0
    rows = lines(evaluated)
    assert [row["step"] for row in rows] == [2, 4] and rows[0] != rows[1]
    assert rows == lines(tmp_path / "a")
    for other in ("a", "b"):
        assert same_state(restore(evaluated), restore(tmp_path / other))
    best = min(rows, key=lambda row: row["fid"])["step"]
    assert same_state(restore(evaluated, folder="best"), restore(evaluated, best))
    assert same_state(restore(evaluated, folder="best"), restore(tmp_path / "a", folder="best"))
    curves = {path.name for path in (evaluated / "evaluation" / "curves").iterdir()}
    assert curves == {"fid.png", "sw.png", "validation_loss.png"}


def test_metrics_are_those_of_the_command(evaluated):
    options = ("--num", "100", "--metrics", "fid,sw", "--features", "pixels", "--batch-size", "100")
    assert main(["evaluate", str(evaluated), *options]) == 0
    (score,) = json.loads((evaluated / "evaluation" / "scores.json").read_text())["scores"]
    assert {name: lines(evaluated)[-1][name] for name in ("fid", "sw")} == pytest.approx(score["values"], rel=1e-5)


def test_validation_loss_of_a_new_network_is_the_variance_of_noise_and_of_no_batching(config, monkeypatch):
    """It predicts no noise, which costs 1 at every level. Another batch size changes nothing: no dropout, no hiding."""
    run = assemble(load(config, Path()))
    program = run.program
    params = jax.jit(program.init)(program.keys["init"]).params
    held_out = run.reopen()

    def losses(params, num):
        return list(validation.Validation(run, held_out, num)(params).values())

    new = losses(params, 104)
    np.testing.assert_allclose(new, 1.0, atol=0.15)  # 1664 squares of normal numbers a level
    assert np.std(new) > 1e-3 and np.mean(new[1:]) == pytest.approx(new[0])
    params = jax.tree.map(lambda p: p + 0.1, params)
    whole = losses(params, 20)
    monkeypatch.setattr(validation, "BATCH", 7)
    assert losses(params, 20) == pytest.approx(whole, rel=1e-5)
    assert whole[0] != pytest.approx(whole[1], rel=0.1) or whole[1] != pytest.approx(whole[8], rel=0.1)


@pytest.mark.slow
def test_a_run_ends_early_once_and_its_best_is_drawn(config, tmp_path, capsys):
    """At a rate of nearly 0 nothing becomes better than the first evaluation, at step 1."""
    early = ("--train.evaluate-every", "1", "--train.best", "validation_loss", "--train.patience", "2")
    early += ("--optimizer.learning-rate", "1e-12", "--train.steps", "9")
    for _ in range(2):
        assert train(config, tmp_path, *early) == 0
        assert "stopped early after step 4 of 9: validation_loss has not improved for 2" in capsys.readouterr().out
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3] and int(restore(tmp_path).step) == 4
    out = tmp_path / "best.npz"
    assert main(["sample", str(tmp_path), "--best", "--num", "2", "--out", str(out)]) == 0
    assert "step 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "right"),
    [
        (["--train.evaluate-metrics", "fud"], "'fud' is not one of validation_loss, fid"),
        (["--train.best", "fid"], "train.best=fid must be one of train.evaluate_metrics"),
        (["--train.patience", "3"], "of the metric that train.best names"),
        (["--train.evaluate-metrics", "fid"], "train.evaluate_num 1000 must lie in 100..104"),
        (["--train.evaluate-path", ""], "name one of held-out images by train.evaluate_path"),
        (["--train.evaluate-metrics", "sw", "--train.evaluate-num", "100"], "these are 4x4x1; give --features"),
    ],
)
def test_what_cannot_be_measured_is_a_line_before_anything_is_written(config, tmp_path, capsys, options, right):
    assert train(config, tmp_path / "run", *EVERY, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and right in error, error
    assert not (tmp_path / "run").exists()


def test_a_loss_against_a_teacher_that_changes_is_no_validation_loss(config, evaluated, tmp_path, capsys):
    begun = ("--objective", "progressive", "--objective.start", str(evaluated))
    assert train(config, tmp_path / "run", *EVERY, *begun, "--train.evaluate-metrics", "validation_loss") == 2
    assert "against a teacher that changes; take metrics of samples" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
