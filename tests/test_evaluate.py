"""`python -m jaxdiff.evaluate` end to end, in process, on a run of one step with a tiny network."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import cli, evaluate
from jaxdiff.evaluation import frechet_distance
from jaxdiff.evaluation.moments import Gaussian

CONFIG = """
from jaxdiff.config import *
config = Config(
    data=Data(name="fashion_mnist", path={path!r}),
    model=Model(patch=4, channels=4, channel_mults=(1,), blocks=1, attention_resolutions=(), num_classes=10),
    train=Train(steps=1, batch_size=8, log_every=1, sample_every=0),
    sampling=Sampling(steps=2),
)
"""


def write_idx(path, array):
    magic = struct.pack(">HBB", 0, 8, array.ndim)
    path.write_bytes(magic + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run on 200 grey images of 28x28; 100 more are the test split."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for name, n in (("train", 200), ("t10k", 100)):
        write_idx(folder / f"{name}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(n) % 10)
    (folder / "tiny.py").write_text(CONFIG.format(path=str(folder)))
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {option: getattr(jax.config, option) for option in options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        workdir = tmp_path_factory.mktemp("runs") / "tiny"
        assert cli.train_main([str(folder / "tiny.py"), "--workdir", str(workdir)]) == 0
        yield workdir
    for option, value in before.items():
        jax.config.update(option, value)


def scores(run):
    return json.loads((run / "evaluation" / "scores.json").read_text())["scores"]


def command(run, *options):
    return evaluate.main([str(run), "--num", "100", "--batch-size", "64", "--metrics", "fid,precision", *options])


def test_table_scores_and_plot_and_going_on(run, capsys, monkeypatch):
    assert command(run, "--steps", "2") == 0
    table = capsys.readouterr().out
    assert "| test (floor) | | |" in table and "| ddim | 2 | 2 |" in table and "n = 100" in table
    floor, cell = scores(run)
    assert (floor["what"], floor["n"], cell["sampler"], cell["nfe"], cell["ema"]) == ("test", 100, "ddim", 2, 0.9999)
    assert floor["values"]["fid"] < cell["values"]["fid"]  # noise against noise, and against an untrained network
    assert (run / "evaluation" / "fid.png").stat().st_size > 0

    drawn = []
    plain = evaluate.build_sample
    monkeypatch.setattr(
        evaluate, "build_sample", lambda config, cell, *rest: drawn.append(cell) or plain(config, cell, *rest)
    )
    assert command(run, "--steps", "2,3", "--sampler", "euler,ddim") == 0  # what is there is not drawn again
    assert [(cell.sampler, cell.steps) for cell in drawn] == [("euler", 2), ("euler", 3), ("ddim", 3)]
    assert [score for score in scores(run) if score in (floor, cell)] == [floor, cell]
    assert len(scores(run)) == 5


def test_samples_are_those_of_sample_py(run, tmp_path):
    """FID of the samples that sample.py writes for the same seed, computed here, is the one in scores.json."""
    assert command(run, "--steps", "2") == 0
    out = tmp_path / "samples.npz"
    assert cli.sample_main([str(run), "--num", "100", "--steps", "2", "--batch-size", "64", "--out", str(out)]) == 0
    extractor = evaluate.fashion_mnist_classifier()
    data = evaluate.open_dataset("fashion_mnist", json.loads((run / "config.json").read_text())["data"]["path"])

    def gaussian(images):
        features = np.asarray(extractor.apply(extractor.params, jnp.asarray(images))[0], np.float64)
        return Gaussian(len(images), features.mean(axis=0), np.cov(features.T))

    with np.load(out) as arrays:
        expected = frechet_distance(gaussian(data.gather(np.arange(200))["image"]), gaussian(arrays["images"]))
    found = next(s["values"]["fid"] for s in scores(run) if s["sampler"] == "ddim" and s["steps"] == 2)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "right"),
    [
        (("--metrics", "fid,fud"), "'fud' is not one of fid, kid"),
        (("--metrics", "kid"), "2000..200"),
        (("--num", "201"), "100..200"),
        (("--steps", "2,x"), "whole numbers"),
        (("--steps", "2000"), "at most 1000"),
        (("--sampler", "dimm"), "one of"),
        (("--eta", "0.5", "--sampler", "heun"), "means nothing to heun"),
        (("--batch-size", "0"), "at least 1"),
        (("--data-path", "/nowhere"), "/nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(run, capsys, options, right):
    before = sorted(run.rglob("*"))
    assert command(run, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and right in error
    assert sorted(run.rglob("*")) == before


def test_no_run(tmp_path, capsys):
    assert command(tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err


def test_scores_of_somebody_else_are_not_overwritten(run, tmp_path, capsys):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    (tmp_path / "evaluation" / "scores.json").write_text('{"scores": [{"fid": 3}]}')
    assert command(tmp_path) == 2
    assert "unknown field" in capsys.readouterr().err
