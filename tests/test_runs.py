"""A run goes on, begins from another, and is a model in Python: `load`, `fit`, --allow-change, --init."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import jaxdiff as jd
from jaxdiff.commands import main
from jaxdiff.config.files import load as load_config
from jaxdiff.errors import UserError
from jaxdiff.job.trained import initial_leaves
from jaxdiff.training.checkpoints import restore
from jaxdiff.training.loop import Hook
from tests.test_readme import run_blocks

CONFIG = """
from jaxdiff.config import *
config = Config(
    data=Data(name="folder", path={path!r}),
    model=Model(channels=4, channel_mults=(1,), blocks=1, attention_resolutions=(), num_classes=2),
    optimizer=Optimizer(learning_rate=0.05, warmup_steps=2),
    train=Train(steps=4, batch_size=8, checkpoint_every=3, keep=1, keep_every=2, log_every=1, sample_every=0),
    sampling=Sampling(steps=3, guidance=1.5, threshold="none"),
)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config file whose data are 2 classes of 12 grey images."""
    folder = tmp_path_factory.mktemp("data")
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (24, 4, 4), np.uint8)):
        path = folder / "images" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "tiny.py").write_text(CONFIG.format(path=str(folder / "images")))
    return str(folder / "tiny.py")


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """The workdir of a run of 4 steps; kept are 2 and 4."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    assert main(["train", config, "--workdir", str(workdir)]) == 0
    return workdir


def _history(workdir):
    return [json.loads(line) for line in (workdir / "history.jsonl").read_text().splitlines()]


def test_a_loaded_run_draws_what_sample_draws(run, tmp_path):
    model = jd.load(run)
    assert (model.step, model.class_names) == (4, ("cat", "dog"))
    out = tmp_path / "s.npz"
    assert main(["sample", str(run), "--num", "4", "--classes", "dog", "--seed", "3", "--out", str(out)]) == 0
    np.testing.assert_array_equal(model.draw(4, "dog", seed=3), np.load(out)["images"])
    with pytest.raises(UserError, match="sampling has no 'step'; did you mean 'steps'"):
        model.draw(4, step=2)

    keys = jd.sample_keys(jax.random.key(0), 2)
    times = jd.time_grid(model.schedule, 3)
    cond = model.cond(["cat", "1"], 2)
    assert cond["label"].tolist() == [0, 1]
    how = {"shape": model.recipe.shape, "times": times, "schedule": model.schedule}
    plain, guided = (
        jd.sample(keys, model.denoise(cond, guidance), jd.samplers.ddim(eta=0.0), **how) for guidance in (1.0, 3.0)
    )
    assert not np.allclose(plain, guided)
    x_t, t = jax.random.normal(jax.random.key(1), (2, *model.recipe.shape)), jnp.full(2, 0.4)
    noise = model.denoise(cond)(x_t, t).noise
    np.testing.assert_allclose(noise, model.predict(x_t, t, cond), atol=1e-5)
    assert not np.allclose(model.predict(x_t, t), model.predict(x_t, t, cond))


def test_the_readme_draws_from_a_loaded_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cats").symlink_to(run)
    names = run_blocks("python", 2, 3)
    assert names["images"].shape == (16, 4, 4, 1) and names["x"].shape == (16, 4, 4, 1)


def test_other_steps_and_guidance_of_a_loaded_run_compile_nothing(run):
    model = jd.load(run)
    first = model.draw(2, steps=2, guidance=2.0)
    second = model.draw(2, steps=3, guidance=3.0)
    assert len(model._drawn) == 1 and not np.array_equal(first, second)


def test_kept_steps_are_sampled_and_loaded_and_others_refused(run, capsys):
    assert jd.load(run, step=2).step == 2
    assert main(["sample", str(run), "--num", "2", "--step", "2"]) == 0
    assert "samples of step 2 " in capsys.readouterr().out
    assert main(["sample", str(run), "--num", "2", "--step", "3"]) == 2
    assert "no checkpoint of step 3 in" in capsys.readouterr().err
    raw, ema = (jax.tree.leaves(jd.load(run, weights=kind).params) for kind in ("raw", "ema"))
    assert any(not np.array_equal(a, b) for a, b in zip(raw, ema, strict=True))


@pytest.mark.slow
def test_a_run_is_named_by_its_folder_or_its_config(config, run, tmp_path, capsys):
    workdir = tmp_path / "again"
    assert main(["train", str(run / "config.json"), "--workdir", str(workdir), "--train.steps", "2"]) == 0
    assert main(["train", str(workdir), "--train.steps", "3"]) == 0
    assert [line["step"] for line in _history(workdir)] == [0, 2]
    assert [line["from"] for line in _history(workdir)] == [str(run / "config.json"), str(workdir)]
    assert main(["train", str(workdir / "config.json"), "--train.steps", "4"]) == 0
    for a, b in zip(jax.tree.leaves(restore(run)), jax.tree.leaves(restore(workdir)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_what_does_not_define_a_run_changes_by_word(run, config, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert main(["train", config, "--workdir", str(workdir), "--train.steps", "2"]) == 0
    change = ["train", str(workdir), "--data.flip", "True", "--train.steps", "3"]
    assert main(change) == 2
    assert "data.flip False -> True; choose another --workdir, or go on with --allow-change data.flip" in (
        capsys.readouterr().err
    )
    assert main([*change, "--allow-change", "optimizer", "data.flip"]) == 0
    assert "data.flip is True from step 2 on, and was False" in capsys.readouterr().err
    assert _history(workdir)[-1]["changed"] == {"data.flip": [False, True]}

    images = tmp_path / "images"
    for i in range(4):
        (images / ("cat", "dog")[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 50 * i, np.uint8)).save(images / ("cat", "dog")[i % 2] / f"{i}.png")
    other = ["train", str(workdir), "--data.path", str(images), "--train.steps", "4"]
    assert main(other) == 2
    assert "go on with --allow-change data" in capsys.readouterr().err
    assert main([*other, "--allow-change", "data"]) == 0
    assert "images" in _history(workdir)[-1]["changed"]
    assert int(restore(workdir).step) == 4


def test_a_new_run_begins_with_the_weights_of_another(run, config, tmp_path, capsys):
    init = ["train", config, "--init", str(run), "--train.steps", "1", "--seed", "1"]  # one step of 0.025
    assert main([*init, "--workdir", str(tmp_path / "same")]) == 0
    for a, b in zip(*(jax.tree.leaves(jd.load(path).params) for path in (run, tmp_path / "same")), strict=True):
        np.testing.assert_allclose(a, b, atol=0.026)
    assert main(["train", config, "--init", str(tmp_path / "none"), "--workdir", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()


def test_an_exported_run_is_drawn_from_loaded_begun_from_and_read_on_its_own(run, config, tmp_path, capsys):
    folder, out = tmp_path / "cats", tmp_path / "s.npz"
    assert main(["export", str(run), str(folder), "--step", "2"]) == 0
    assert {p.name for p in folder.iterdir()} == {
        *("README.md", "config.json", "model.json", "model.safetensors", "samples.png")
    }
    model, loaded = jd.load(run, step=2), jd.load(str(folder))
    assert (loaded.step, loaded.class_names, loaded.image_shape) == (2, ("cat", "dog"), (4, 4, 1))
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(loaded.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert main(["sample", str(folder), "--num", "4", "--classes", "dog", "--out", str(out)]) == 0
    np.testing.assert_array_equal(model.draw(4, "dog"), np.load(out)["images"])
    leaves = initial_leaves(str(folder), "ema", model.params)
    np.testing.assert_array_equal(leaves["conv_in/kernel"], model.params["conv_in"]["kernel"])
    capsys.readouterr()

    assert main(["export", str(run), str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["sample", str(folder), "--step", "2"]) == 2
    assert "is exported: it has one set of weights" in capsys.readouterr().err
    assert main(["train", str(folder)]) == 2
    assert "begin from it by --init" in capsys.readouterr().err
    assert load_config(str(folder / "config.json"), folder).workdir == ""
    (folder / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"model.json cannot be read .*; export the run again"):
        jd.load(folder)


def test_weights_of_other_shapes_begin_anew_and_are_listed(run, capsys):
    model = jd.load(run, weights="raw")
    kernel = model.params["conv_in"]["kernel"]
    wanted = {**model.params, "conv_in": {"kernel": kernel[:, :2]}, "new": {"bias": kernel}}
    begin = dataclasses.replace(model.config, init=str(run), init_weights="raw")
    found = initial_leaves(begin.init, begin.init_weights, wanted)
    said = capsys.readouterr().err
    for line in ("conv_in/kernel begins anew: (3, 3, 1, 4) there, (3, 2, 1, 4) here", "new/bias begins anew: none th"):
        assert line in said
    assert not {"conv_in/kernel", "conv_in/bias", "new/bias"} & found.keys()
    np.testing.assert_array_equal(found["conv_out/kernel"], model.params["conv_out"]["kernel"])
    with pytest.raises(UserError, match="no parameter of"):
        initial_leaves(begin.init, begin.init_weights, {"new": {"bias": kernel}})


DATA = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32) * 0.5 + np.array([2.0, -1.0], np.float32)


def _fit(workdir, data=None, **options):
    schedule = jd.schedules.flow()

    def predict(params, x_t, t, cond=None):
        return x_t @ params["w"] + params["b"]

    def loss(params, batch, keys):
        how = {"schedule": schedule, "prediction": "flow"}
        return jd.denoising_loss(keys, partial(predict, params), batch["x"], **how)

    params = {"w": jnp.zeros((2, 2)), "b": jnp.zeros((1, 2))}
    options = {"steps": 20, "batch_size": 16, "loggers": ("jsonl",), "checkpoint_every": 8, **options}
    return jd.fit(
        str(workdir), lambda key: params, loss, {"x": DATA} if data is None else data, optax.adam(0.1), **options
    )


def test_own_loss_goes_on_bit_for_bit(tmp_path):
    seen = []
    straight = _fit(tmp_path / "a", hooks=[Hook(5, lambda step, metrics, state: seen.append(step))])
    _fit(tmp_path / "b", steps=11)
    pieces = _fit(tmp_path / "b", mode="pmap")
    assert seen == [5, 10, 15, 20] and int(straight.step) == 20
    mesh = _fit(tmp_path / "c", steps=11)
    assert int(mesh.step) == 11
    again = _fit(tmp_path / "c")
    for a, b, c in zip(*(jax.tree.leaves(state) for state in (straight, again, pieces)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-5)
    assert not np.allclose(straight.params["b"], 0) and not np.allclose(straight.params["b"], straight.ema_params["b"])
    lines = (tmp_path / "c" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [11, 20]


def test_own_data_are_arrays_iterables_or_functions_alike(tmp_path):
    def batches():
        for i in range(100):
            yield {"x": DATA[np.arange(16) + i]}

    def tail(first):
        return ({"x": DATA[np.arange(16) + i]} for i in range(first, 48))

    states = [_fit(tmp_path / "f", tail, steps=6), _fit(tmp_path / "i", batches(), steps=6)]
    _fit(tmp_path / "p", tail, steps=3)
    states.append(_fit(tmp_path / "p", list(tail(0)), steps=6))
    for state in states[1:]:
        np.testing.assert_array_equal(state.params["w"], states[0].params["w"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stepz": 3}, "unknown field 'stepz'; did you mean 'steps'"),
        ({"seed": 1}, "seed 0 -> 1; choose another"),
        ({"batch_size": 32}, "batch_size 16 -> 32.*--allow-change train.batch_size"),
        ({"data": {"x": DATA, "y": DATA[:3]}}, "one length above 0"),
        ({"data": [{"x": DATA}]}, r"x \(64, 2\): a batch has train.batch_size=16 rows"),
        ({"fsdp": 3}, "parallel.fsdp=3"),
    ],
)
def test_what_fit_cannot_do_is_one_line(tmp_path_factory, options, words):
    workdir = tmp_path_factory.getbasetemp() / "fitted"
    if not workdir.exists():
        _fit(workdir, steps=2)
    with pytest.raises(UserError, match=words):
        _fit(workdir, **options)
    assert int(restore(workdir).step) == 2
