"""OpenAI's checkpoints: outputs recorded from their own code, with weights made again from the tensors' names."""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop import read_openai, safetensors
from jaxdiff.interop.openai import openai_diffusion, openai_fields
from jaxdiff.interop.schedulers import scheduler_from_config

ROOT = Path(__file__).parent.parent / "fixtures" / "interop"
PROJECTS = ("guided-diffusion", "improved-diffusion")


def flags_of(project):
    about = json.loads((ROOT / f"openai_{project}.json").read_text())
    words = about["flags"].replace("--", "").split()
    return dict(zip(words[::2], words[1::2], strict=True)), about["shapes"]


def weight(name, shape):
    """As scripts/make_interop_fixtures.py has it."""
    spread = 0.3 if len(shape) == 1 else 1.7 / np.sqrt(np.prod(shape[1:]))
    value = spread * np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    return (value + (len(shape) == 1 and name.endswith("weight"))).astype(np.float32)


@pytest.fixture(params=PROJECTS)
def checkpoint(request, tmp_path):
    flags, shapes = flags_of(request.param)
    path = tmp_path / "model.safetensors"
    safetensors.write(path, {name: weight(name, shape) for name, shape in shapes.items()}, {})
    return request.param, flags, path


def test_imported_network_computes_what_theirs_does(checkpoint):
    project, flags, path = checkpoint
    found = read_openai(path, flags, project=project)
    io = np.load(ROOT / f"openai_{project}.npz")
    x, output = (np.ascontiguousarray(io[key].transpose(0, 2, 3, 1)) for key in ("x", "output"))
    t = ((io["timesteps"] + 1) / int(flags.get("diffusion_steps", 1000))).astype(np.float32)
    cond = jnp.array([0, 500, 999], jnp.int32) if found.fields["num_classes"] else None
    args = {"params": found.params}, x, t, cond
    ours = jax.jit(found.network.apply).lower(*args).compile({"xla_backend_optimization_level": 0})(*args)
    assert found.image_shape == x.shape[1:]
    assert any("learn_sigma" in note for note in found.notes)  # of their six channels we keep the noise
    assert np.abs(ours - output[..., :3]).max() <= 2e-5


@pytest.mark.parametrize("project", PROJECTS)
def test_process_has_their_betas(project):
    found = scheduler_from_config(openai_diffusion(flags_of(project)[0], project))
    np.testing.assert_allclose(found.schedule.betas, np.load(ROOT / f"openai_{project}.npz")["betas"], rtol=1e-9)
    assert found.method == "ddpm" and found.options == {"variance": "large"}


def test_flags_that_do_not_fit_the_tensors_are_refused(checkpoint):
    project, flags, path = checkpoint
    with pytest.raises(UserError, match=r"tensors are wrong: .*missing: input_blocks"):
        read_openai(path, flags | {"num_res_blocks": "2"}, project=project)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"chanels": "3"}, "no flags chanels"),
        ({"num_channels": "many"}, "flag num_channels"),
        ({"class_cond": "maybe"}, "flag class_cond"),
        ({"image_size": 512}, "channel_mult"),
        ({"image_size": 48}, "image_size=48 without channel_mult"),
        ({"diffusion_steps": 4000}, "diffusion_steps=4000 without rescale_timesteps"),
        ({"num_heads_upsample": 2}, "num_heads_upsample=2"),
        ({"num_channels": 20}, "norm_groups is 32"),
    ],
)
def test_flags_are_refused(flags, part):
    with pytest.raises(UserError) as error:
        openai_fields(flags, "guided-diffusion")
    assert part in str(error.value)


def test_other_projects_and_noise_schedules_are_refused():
    with pytest.raises(UserError, match="guided-diffusion"):
        openai_fields({}, "glide")
    with pytest.raises(UserError, match="noise_schedule"):
        openai_diffusion({"noise_schedule": "warm"}, "guided-diffusion")
