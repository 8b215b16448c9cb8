"""Samples come batch by batch with a bar, stop at once, and few programs serve all numbers of them."""

import contextlib
import os
import signal
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxdiff.commands import main
from jaxdiff.config import Config, Data, Model, Sampling
from jaxdiff.job import drawing
from jaxdiff.job import sampling as sampling_job
from tests.test_evaluate import save_run

TINY = Model(patch=4, channels=4, channel_mults=(1,), blocks=1, attention_resolutions=())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = Config(data=Data(name="folder"), model=TINY, sampling=Sampling(steps=50))
    return save_run(tmp_path_factory.mktemp("run"), config, (8, 8, 1))


@pytest.fixture
def hears():
    """Ctrl-C is heard, though a shell may have started the tests in the background, where it is not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears")
def test_a_signal_stops_within_a_batch_and_what_is_finished_is_written(run, tmp_path, monkeypatch, capsys):
    class Left(BaseException):
        pass

    def make_draw(*_, **__):
        def draw(params, key, num, batch, first, **_):
            if first:
                os.kill(os.getpid(), signal.SIGINT)
                threading.Event().wait(60)  # as XLA, which hears nothing
            return np.zeros((num, 8, 8, 1))

        return draw

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(sampling_job, "make_draw", make_draw)
    monkeypatch.setattr(os, "_exit", leave)
    out = tmp_path / "a.png"
    with pytest.raises(Left, match="75"):
        main(["sample", str(run), "--num", "70", "--batch-size", "32", "--out", str(out)])
    assert f"stopped after 32 of 70 samples, which are in {out}\n" in capsys.readouterr().err
    with Image.open(out) as image:
        assert image.text["num"] == "32"


def test_numbers_of_samples_share_programs(run, tmp_path, monkeypatch):
    made = []

    def make_draw(recipe, method, batch_size, mesh, **_):
        made.append(batch_size)
        return lambda params, key, num, *_, **__: np.zeros((num, 8, 8, 1))

    monkeypatch.setattr(sampling_job, "make_draw", make_draw)
    for num in (9, 16, 40, 64, 70, 1000):
        sampling_job.draw(sampling_job.Request(run, num=num, out=tmp_path / "a.npz"))
    assert made == [16, 16, 64, 64, 64, 64]


def test_the_bar_counts_steps_and_an_error_is_that_of_the_batch(monkeypatch):
    shown, timed = [], []
    bar = contextlib.nullcontext(lambda done, what: shown.append((done, what)))
    monkeypatch.setattr(drawing, "_bar", lambda total: shown.append(total) or bar)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    wait = threading.Event().wait

    def draw(i):
        wait(0.25)
        return 10 * i

    assert drawing.draw_batches(draw, range(2), 20, lambda: timed.append(wait(0.01))) == ([0, 10], False)
    assert shown[0] == 40 and len(timed) == 2
    counts = [done for done, _ in shown[1:]]
    assert counts == sorted(counts) and {done > 20 for done in counts} == {True, False}
    assert any(what.startswith("batch 2 of 2, step ") and what.endswith(" of 20") for _, what in shown[1:])
    with pytest.raises(ZeroDivisionError):
        drawing.draw_batches(lambda i: 1 // i, [0], 20, None)
