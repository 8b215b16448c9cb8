"""Text to image: whole pipelines against what diffusers drew (scripts/make_latent_fixtures.py), and the command."""

import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from jaxdiff import diffusion, pictures
from jaxdiff.commands import main
from jaxdiff.job import sampling as sampling_job
from jaxdiff.keys import purpose_key
from tests.stable_diffusion import ROOT, pipeline_folder
from tests.training.test_processes import Job

SHAPE = (8, 8, 4)


@pytest.fixture(scope="module", autouse=True)
def on_one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling_job, "make_mesh", one_device)
        yield


def one_device():
    return Mesh(np.array(jax.devices()[:1]), ("data",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline of version 2, which no test changes."""
    return pipeline_folder("pipeline_v", tmp_path_factory.mktemp("sd") / "model")[0]


HORSE = {"prompt": ("a red horse",), "negative_prompt": "blurry", "steps": 3, "guidance": 2.0}


def draw(folder, num, batch_size, mesh, key, **asked):
    """Images of a folder as the command draws them, with a key of one's own."""
    request = sampling_job.Request(folder, **asked)
    opened = sampling_job.open_pipeline(request, num, NamedSharding(mesh, PartitionSpec()))
    make = diffusion.make_draw(opened.recipe, opened.method, batch_size, mesh)
    return make(opened.params, key, num, opened.batch, away=opened.away)


@pytest.mark.parametrize(
    "name",
    [
        "pipeline_ddim",
        "pipeline_lcm",
        pytest.param("pipeline_dpm", marks=pytest.mark.slow),
        pytest.param("pipeline_outdated", marks=pytest.mark.slow),
        pytest.param("pipeline_pndm", marks=pytest.mark.slow),
        pytest.param("pipeline_v", marks=pytest.mark.slow),
    ],
)
def test_images_are_those_of_diffusers(name, tmp_path, monkeypatch):
    """The same prompts, latents, guidance and steps: DDIM, PNDM, DPM-Solver++, LCM; noise and v; an outdated config."""
    folder, about = pipeline_folder(name, tmp_path / "model")
    io = {key: value.astype(np.float32) for key, value in np.load(ROOT / name / "io.npz").items()}
    latents = jnp.asarray(io["latents"].transpose(0, 2, 3, 1))
    monkeypatch.setattr(diffusion, "normal_like", lambda keys, x: latents)
    if "noise" in io:  # of every step
        noise, module = jnp.asarray(io["noise"].transpose(0, 2, 3, 1)), importlib.import_module("jaxdiff.samplers.lcm")
        monkeypatch.setattr(module, "normal_like", lambda keys, x: noise)
    asked = {name: about[name] for name in ("prompt", "negative_prompt", "steps", "guidance")}
    asked["prompt"] = (asked["prompt"],)
    images = draw(folder, 2, 2, one_device(), jax.random.key(0), **asked)
    assert images.shape[1:3] == (2 * SHAPE[0], 2 * SHAPE[1])
    assert np.mean(np.abs(images) < 1) > 0.5  # theirs are clipped
    assert np.abs(np.clip(images / 2 + 0.5, 0, 1) - io["images"]).max() <= 2e-5


@pytest.fixture(scope="module")
def drawn(folder, tmp_path_factory):
    """What the command draws: three images of seed 3, two at a time."""
    out = tmp_path_factory.mktemp("out") / "three.npz"
    options = ["--num", "3", "--batch-size", "2", "--steps", "3", "--seed", "3", "--guidance", "2"]
    words = ["--prompt", "a red horse", "--negative-prompt", "blurry", "--out", str(out)]
    assert main(["sample", str(folder), *options, *words]) == 0
    return np.load(out)["images"]


def test_command_draws_images(drawn):
    assert drawn.shape == (3, 16, 16, 3) and drawn.dtype == np.uint8
    assert drawn.std() > 10 and (drawn[0] != drawn[1]).any()


def test_image_depends_on_seed_and_number_alone(folder, drawn):
    """Image 2 of three, drawn two at a time, and image 2 of five drawn at once, on the same noise."""
    five = draw(folder, 5, 5, one_device(), purpose_key(3, "sample"), **HORSE)
    assert np.abs(pictures.to_uint8(five[:3]).astype(int) - drawn.astype(int)).max() <= 1


def three(folder, mesh, **changes):
    """The images of `drawn`, made on the devices of a mesh, with another dtype."""
    images = draw(folder, 3, 2, mesh, purpose_key(3, "sample"), **HORSE, **changes)
    return pictures.to_uint8(images).astype(int)


@pytest.mark.slow
def test_two_devices_draw_the_same(folder, drawn):
    found = three(folder, Mesh(np.array(jax.devices()[:2]), ("data",)))
    assert np.abs(found - drawn.astype(int)).max() <= 1


@pytest.mark.slow
def test_bfloat16_is_near(folder, drawn):
    found = three(folder, one_device(), dtype="bfloat16")
    assert 0.05 < np.abs(found - drawn.astype(int)).mean() < 5


@pytest.mark.slow
def test_a_folder_with_eulers_scheduler(folder, drawn, tmp_path):
    """On Karras sigmas, between the entries: another walk to images of the same kind."""
    config = {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "prediction_type": "v_prediction"}
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    found = three(copy, one_device())
    assert 1 < np.abs(found - drawn.astype(int)).mean() < 80 and found.std() > 10


@pytest.mark.slow
def test_two_processes_draw_the_same(folder, drawn, tmp_path):
    out = tmp_path / "two.npz"
    words = ["--prompt", "a red horse", "--negative-prompt", "blurry", "--out", str(out), "--seed", "3"]
    options = [str(folder), "--num", "3", "--batch-size", "2", "--steps", "3", "--guidance", "2", *words]
    job = Job(tmp_path / "job", 2, 1, ["sample.py"], options)
    assert job.wait() == [0, 0], job.text(0) + job.text(1)
    assert [job.text(i, "out").count("3 samples") for i in range(2)] == [1, 0]
    assert np.abs(np.load(out)["images"].astype(int) - drawn.astype(int)).max() <= 1


def refused(folder, capsys, *options):
    assert main(["sample", str(folder), *options]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_wrong_requests_are_refused_in_one_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask = ("--prompt", "a horse")
    assert 'give --prompt "..."' in refused(folder, capsys)
    assert "--classes is for runs" in refused(folder, capsys, *ask, "--classes", "1")
    assert "--guidance -1.0 must lie in 0..1000" in refused(folder, capsys, *ask, "--guidance", "-1")
    assert "--num 0" in refused(folder, capsys, *ask, "--num", "0")
    assert "--height 18 must be a multiple of 4" in refused(folder, capsys, *ask, "--height", "18")
    assert "--width 0 must be a multiple of 4" in refused(folder, capsys, *ask, "--width", "0")
    assert "--steps 0: num_steps must lie in 1..1000" in refused(folder, capsys, *ask, "--steps", "0")
    assert "begin beyond T = 1000" in refused(folder, capsys, *ask, "--steps", "1000")
    assert "--eta 0.5 with heun" in refused(folder, capsys, *ask, "--sampler", "heun", "--eta", "0.5")
    assert "--out x.gif must end in one of" in refused(folder, capsys, *ask, "--out", "x.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "is a StableDiffusionXLPipeline, which takes no prompt here"),
        ({"vae": ["diffusers", "VQModel"]}, "vae is a VQModel (only AutoencoderKL"),
        ({"unet": None}, "names no unet"),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "parts that jaxdiff has not: text_encoder_2"),
    ],
)
def test_other_pipelines_are_refused(folder, tmp_path, capsys, change, part):
    copy = shutil.copytree(folder, tmp_path / "model")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | change))
    assert part in refused(copy, capsys, "--prompt", "a horse")


def test_missing_and_unfitting_parts_are_named(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "model")
    shutil.rmtree(copy / "vae")
    assert "the folder vae is missing" in refused(copy, capsys, "--prompt", "a horse")
    (copy / "vae").mkdir()
    assert "vae/config.json is missing" in refused(copy, capsys, "--prompt", "a horse")
    shutil.rmtree(copy / "vae")
    shutil.copytree(folder / "vae", copy / "vae")
    other = pipeline_folder("pipeline_ddim", tmp_path / "other")[0]
    shutil.rmtree(copy / "text_encoder")
    shutil.copytree(other / "text_encoder", copy / "text_encoder")
    assert "its parts do not fit: text's features" in refused(copy, capsys, "--prompt", "a horse")


def sampled(folder, out, *options):
    """What the command draws with a seed of its own, one image in a few steps."""
    words = ["--prompt", "a red horse", "--steps", "3", "--seed", "5", "--out", str(out)]
    assert main(["sample", str(folder), *words, *options]) == 0
    return np.load(out)["images"].astype(int)


@pytest.mark.slow
def test_every_option_of_sampling_works_for_a_folder_too(folder, tmp_path):
    """Another sampler with its options, spacing, guidance rule and threshold each give another picture; a walk too."""
    plain = sampled(folder, tmp_path / "a.npz")
    for options in (
        ("--sampler", "unipc", "--sampler-options.order", "2"),
        ("--spacing", "log_snr"),
        ("--guidance-rule", "rescaled", "--guidance-options.rescale", "0.9"),
        ("--threshold", "dynamic"),
    ):
        other = sampled(folder, tmp_path / "b.npz", *options)
        assert other.shape == plain.shape and (other != plain).any(), options
    walk = tmp_path / "walk.png"
    words = ["--prompt", "a red horse", "--steps", "2", "--trajectory", "--num", "1", "--out", str(walk)]
    assert main(["sample", str(folder), *words]) == 0 and walk.stat().st_size > 0


@pytest.mark.slow
def test_a_picture_is_where_the_walk_starts_and_black_of_the_mask_stays(folder, tmp_path, capsys):
    """Little strength leaves little to the noise; where nothing is drawn anew all seeds give the same."""
    pixels = sampled(folder, tmp_path / "start.npz")[0].astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    start = ("--init-image", str(tmp_path / "start.png"))
    apart = {}
    for strength in ("0.34", "1"):
        words = (*start, "--strength", strength, "--guidance", "1")
        one, other = (sampled(folder, tmp_path / "x.npz", *words, "--seed", seed) for seed in ("5", "6"))
        apart[strength] = np.abs(one - other).mean()
    assert apart["0.34"] < 0.7 * apart["1"]
    Image.fromarray(np.zeros(pixels.shape[:2], np.uint8)).save(tmp_path / "black.png")
    mask = ("--mask", str(tmp_path / "black.png"), "--sampler", "ddim")
    kept = [sampled(folder, tmp_path / "kept.npz", *start, *mask, "--seed", seed) for seed in ("5", "6")]
    assert np.abs(kept[0] - kept[1]).max() <= 1
    Image.fromarray(pixels[:4, :4]).save(tmp_path / "small.png")
    capsys.readouterr()
    assert "it must be 16x16" in refused(folder, capsys, "--prompt", "a", "--init-image", str(tmp_path / "small.png"))
    assert "--strength 2.0 must lie in 0..1" in refused(folder, capsys, "--prompt", "a", *start, "--strength", "2")
    assert "give the image too" in refused(folder, capsys, "--prompt", "a", *mask[:2])
