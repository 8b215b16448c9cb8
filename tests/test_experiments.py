"""An experiment end to end on a few images of noise, with a tiny network: what it leaves, and that it goes on."""

import json
import struct
import sys

import numpy as np
import pytest

from benchmarks.experiments import common, eta


def write_idx(path, array):
    magic = struct.pack(">HBB", 0, 8, array.ndim)
    path.write_bytes(magic + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes())


@pytest.mark.slow
def test_eta_trains_measures_and_measures_nothing_twice(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("train", "t10k"):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", rng.integers(0, 256, (100, 28, 28)))
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.arange(100) % 10)
    plain, ruler, drawn = common.base, common.Ruler, []

    class Small(ruler):
        def __init__(self, place, n, file="results.json"):
            super().__init__(place, 96, file)

        def _draw(self, run, sampling):
            drawn.append(sampling)
            return super()._draw(run, sampling)

    def base(place):
        train = {"steps": 2, "batch_size": 8, "sample_every": 0}
        return common.change(plain(place), model={"channels": 4}, train=train)

    monkeypatch.setattr(common, "base", base)
    monkeypatch.setattr(common, "Ruler", Small)
    monkeypatch.setattr(common, "BATCH", 48)
    monkeypatch.setattr(common, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(eta, "ETAS", (0.0, 1.0))
    monkeypatch.setattr(eta, "STEPS", (10, 20))
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["eta", "--data", str(tmp_path), "--runs", str(tmp_path), "--out", str(out)])
    eta.main()
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(row["sampler"], row["steps"]) for row in rows[1:3]] == [("ddim eta=0", 10), ("ddim eta=1", 10)]
    assert len(rows) == 1 + 4 and len({row["what"] for row in rows}) == 2  # the floor and one network
    table = (out / "table.md").read_text()
    assert "| eta | 10 steps | 20 steps |" in table and "n = 96" in table and rows[0]["reference"]["digest"] in table
    assert (out / "plot.png").stat().st_size > 0

    eta.main()
    assert len(drawn) == 4 and (out / "table.md").read_text() == table
