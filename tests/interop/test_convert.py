"""`jaxdiff convert`: what it makes is an ordinary run, and what does not fit leaves nothing behind."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from jaxdiff.assembly.recipe import make_update
from jaxdiff.commands import main
from jaxdiff.config import flat, make_schedule
from jaxdiff.config.files import load, read_run
from jaxdiff.errors import UserError
from jaxdiff.interop import names, read_scheduler, read_unet
from jaxdiff.interop.diffusers import abstract_params
from jaxdiff.interop.schedulers import scheduler_from_config
from jaxdiff.job import comparison, convert
from jaxdiff.job.workdir import check_workdir
from jaxdiff.training.checkpoints import Checkpoints, restore, restore_with_meta
from jaxdiff.training.state import init_state
from tests.evaluation.test_inception import write_weights

ROOT = Path(__file__).parent.parent / "fixtures" / "interop"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(ROOT / "defaults", tmp_path / "model"))


def refused(argv, capsys):
    assert main(["convert", *map(str, argv)]) == 2
    return capsys.readouterr().err


def test_imported_run_is_a_run(tmp_path):
    """Its config builds the network of its parameters, and its state is what training starts from."""
    workdir = tmp_path / "run"
    assert main(["convert", str(ROOT / "adm"), str(workdir), "--null-class"]) == 0
    config, found = read_run(workdir), read_unet(ROOT / "adm", null_class=True)
    state, meta = restore_with_meta(workdir)
    assert meta["shape"] == [16, 16, 3] and int(state.step) == 0
    assert config.model.module(3) == found.network and config.diffusion.class_dropout > 0
    for ours, theirs in zip(jax.tree.leaves(state.ema_params), jax.tree.leaves(found.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    betas = make_schedule(config.diffusion).betas
    np.testing.assert_allclose(betas, read_scheduler(ROOT / "adm").schedule.betas, rtol=1e-12)
    sampling = config.sampling
    assert (sampling.sampler, sampling.variance, sampling.steps) == ("ddpm", "large", 1000)

    wanted = jax.eval_shape(
        lambda: init_state(
            jax.tree.map(lambda p: jax.numpy.zeros(p.shape), abstract_params(found.network, (16, 16, 3))),
            make_update(config.optimizer, config.train.steps, config.model)[0],
        )
    )
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=device), wanted)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.restore(wanted)


@pytest.mark.slow
def test_training_goes_on_from_an_imported_run(tmp_path):
    """Two steps of train.py: from their parameters, which two steps hardly change."""
    workdir, photos = tmp_path / "run", tmp_path / "photos"
    assert main(["convert", str(ROOT / "defaults"), str(workdir)]) == 0
    photos.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)):
        Image.fromarray(pixels).save(photos / f"{i}.png")
    options = ["--data.path", str(photos), "--train.steps", "2", "--train.sample-every", "0"]
    options += ["--train.batch-size", "8", "--optimizer.learning_rate", "1e-3"]  # nothing is trained yet: one's own
    assert main(["train", str(workdir / "config.py"), *options]) == 0
    state, found = restore(workdir), read_unet(ROOT / "defaults")
    assert int(state.step) == 2
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(found.params), strict=True):
        assert 0 < np.abs(np.asarray(ours) - theirs).max() < 1e-3


@pytest.mark.slow
def test_imported_run_is_evaluated_with_the_features_of_fid(tmp_path, capsys, monkeypatch):
    """Any folder of colour images of the model's size, and a file of Inception's weights (here random ones)."""
    workdir, photos = tmp_path / "run", tmp_path / "photos"
    assert main(["convert", str(ROOT / "defaults"), str(workdir)]) == 0
    photos.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)):
        Image.fromarray(pixels).save(photos / f"{i}.png")
    monkeypatch.setattr(comparison, "LEAST", 16)
    options = ["--data-path", str(photos), "--metrics", "fid", "--num", "16", "--batch-size", "16"]
    weights = str(write_weights(tmp_path / "inception.safetensors"))
    assert main(["evaluate", str(workdir), *options, "--steps", "2", "--sampler", "ddim", "--features", weights]) == 0
    said = capsys.readouterr()
    assert "| ddim | 2 | 2 |" in said.out and "features: inception-2015-12-05" in said.out
    assert "no floor: data.split: test: a folder of images has one split" in said.err


@pytest.mark.slow
def test_weights_are_read_in_slices(tmp_path, monkeypatch):
    """Of a leaf that is split over the 8 devices nothing larger than a device's part is ever made."""
    make, parts = jax.make_array_from_callback, {}

    def watched(shape, sharding, read, *args, **kwargs):
        def one(at):
            value = read(at)
            parts.setdefault((shape, sharding.is_fully_replicated), []).append(value.size)
            return value

        return make(shape, sharding, one, *args, **kwargs)

    monkeypatch.setattr(names.jax, "make_array_from_callback", watched)
    assert main(["convert", str(ROOT / "ddpm_cifar10"), str(tmp_path / "run")]) == 0
    split = {shape: sizes for (shape, whole), sizes in parts.items() if not whole}
    assert (3, 3, 16, 16) in split and len(split) > 5
    for shape, sizes in split.items():
        assert set(sizes) == {np.prod(shape) // 8}, shape


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, ("ddim", "linspace", 1.0)),
        ({"_class_name": "UniPCMultistepScheduler", "use_karras_sigmas": True}, ("unipc", "karras", None)),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, ("dpmpp_3m", "linspace", None)),
    ],
)
def test_ways_of_sampling_become_the_runs(config, wanted):
    sampling, notes = convert._sampling(scheduler_from_config(config))
    assert (sampling.sampler, sampling.spacing, sampling.eta) == wanted and notes


def test_only_what_the_weights_are_of_is_fixed_until_it_trains(tmp_path):
    assert main(["convert", str(ROOT / "defaults"), str(tmp_path / "run")]) == 0
    config = read_run(tmp_path / "run")
    other = dataclasses.replace(config, seed=3, train=dataclasses.replace(config.train, batch_size=8))
    check_workdir(flat(other), tmp_path / "run")
    model = dataclasses.replace(config.model, channels=16)
    with pytest.raises(UserError, match=r"model\.channels 8 -> 16"):
        check_workdir(flat(dataclasses.replace(config, model=model)), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "5").mkdir()
    with pytest.raises(UserError, match=r"seed 0 -> 3, train\.batch_size 16 -> 8"):
        check_workdir(flat(other), tmp_path / "run")


def test_config_py_is_the_run_s_config(tmp_path):
    assert main(["convert", str(ROOT / "ddpm_cifar10"), str(tmp_path / "run")]) == 0
    config = load(str(tmp_path / "run" / "config.py"), Path("configs"))
    assert config == read_run(tmp_path / "run")


@pytest.mark.slow
def test_export_is_what_was_imported(tmp_path):
    main(["convert", str(ROOT / "ddpm_cifar10"), str(tmp_path / "run")])
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "diffusers"), "--to", "diffusers"]) == 0
    first, again = read_unet(ROOT / "ddpm_cifar10"), read_unet(tmp_path / "diffusers")
    assert first.fields == again.fields
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    betas = read_scheduler(tmp_path / "diffusers").schedule.betas
    np.testing.assert_allclose(betas, make_schedule(read_run(tmp_path / "run").diffusion).betas, rtol=1e-12)
    assert json.loads((tmp_path / "diffusers" / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"

    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "plain"), "--to", "safetensors"]) == 0
    plain = safetensors.numpy.load_file(tmp_path / "plain" / "model.safetensors")
    ours = {path.replace("/", "."): leaf for path, leaf in names.leaf_paths(first.params)}
    assert plain.keys() == ours.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(plain[name], value)
    assert json.loads((tmp_path / "plain" / "model.json").read_text())["shape"] == [16, 16, 3]


def test_nothing_is_written_unless_everything_fits(folder, tmp_path, capsys):
    target = tmp_path / "run"
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["conv_in.bias"][0] = np.nan
    safetensors.numpy.save_file(tensors, path)
    assert "not finite, in conv_in/bias" in refused([folder, target], capsys)
    del tensors["conv_in.bias"]
    safetensors.numpy.save_file(tensors, path)
    assert "missing: conv_in.bias" in refused([folder, target], capsys)
    assert "does not exist" in refused([tmp_path / "nowhere", target], capsys)
    (tmp_path / "model.ckpt").write_bytes(b"")
    assert "TensorFlow" in refused([tmp_path / "model.ckpt", target], capsys)
    assert "add --project" in refused([ROOT / "state.pt", target], capsys)
    wrong = [
        ROOT / "state.pt",
        target,
        "--project",
        "guided-diffusion",
        "--flags",
        "--image_size 16 --channel_mult 1,2",
    ]
    assert "tensors are wrong" in refused(wrong, capsys)
    assert "--flags must be like" in refused([*wrong[:-1], "image_size 16"], capsys)
    assert not target.exists()


def test_a_schedule_that_no_run_has_is_refused(folder, tmp_path, capsys):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.03}))
    assert "none of a run's schedules" in refused([folder, tmp_path / "run"], capsys)


def test_what_a_run_cannot_say_is_noted(folder, tmp_path, capsys):
    config = {"_class_name": "DDIMScheduler", "steps_offset": 1, "set_alpha_to_one": False}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert main(["convert", str(folder), str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "steps_offset=1" in said and "set_alpha_to_one" in said and "clip_sample" in said
    assert read_run(tmp_path / "run").sampling.spacing == "leading"


def test_taken_folders_are_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    assert "is not empty" in refused([ROOT / "defaults", tmp_path], capsys)
    main(["convert", str(ROOT / "defaults"), str(tmp_path / "run")])
    assert "is not empty" in refused([tmp_path / "run", tmp_path, "--to", "diffusers"], capsys)
    assert "holds no run" in refused([tmp_path, tmp_path / "new", "--to", "diffusers"], capsys)
