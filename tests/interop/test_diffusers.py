"""UNet2DModel: outputs recorded from diffusers by scripts/make_interop_fixtures.py; and what does not fit."""

import ast
import contextlib
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.assembly.recipe import make_recipe
from jaxdiff.config import Config, Diffusion, Model
from jaxdiff.errors import UserError
from jaxdiff.interop import export_unet, names, read_unet
from jaxdiff.interop import safetensors as ours
from jaxdiff.interop.diffusers import abstract_params, unet_fields
from jaxdiff.interop.export import refuse_unmapped, unet_config, write_card
from jaxdiff.models import DiT, UNet
from jaxdiff.objectives import Hybrid, MeanFlow

ROOT = Path(__file__).parent.parent / "fixtures" / "interop"
NETWORKS = sorted(path.name for path in ROOT.iterdir() if path.is_dir())


def predict(found, x, t, cond):
    # Optimising each network takes XLA longer than running it ten times.
    args = {"params": found.params}, x, t, cond
    return jax.jit(found.network.apply).lower(*args).compile({"xla_backend_optimization_level": 0})(*args)


def recorded(name):
    """x, t, cond and output, as ours: t = (n + 1)/1000, channels last."""
    io = np.load(ROOT / name / "io.npz")
    cond = jnp.asarray(io["labels"], jnp.int32) if "labels" in io else None
    x, output = (np.ascontiguousarray(io[key].transpose(0, 2, 3, 1)) for key in ("x", "output"))
    return x, ((io["timesteps"] + 1) / 1000).astype(np.float32), cond, output


@pytest.fixture
def folder(tmp_path):
    """A copy of a model that a test may spoil."""
    return Path(shutil.copytree(ROOT / "defaults", tmp_path / "model"))


def spoil(folder, change):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def configure(folder, **changes):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", NETWORKS)
def test_imported_network_computes_what_theirs_does(name):
    x, t, cond, output = recorded(name)
    found = read_unet(ROOT / name)
    assert found.image_shape == x.shape[1:]
    assert np.abs(predict(found, x, t, cond) - output).max() <= 2e-5


@pytest.mark.parametrize("name", ["adm", "cos_first"])
def test_export_gives_the_weights_back(name, tmp_path):
    """Import, export, import: the same parameters, but for the rounding of the time embedding's rotation."""
    null = "labels" in np.load(ROOT / name / "io.npz")
    first = read_unet(ROOT / name, null_class=null)
    export_unet(first.fields, first.params, first.image_shape, tmp_path)
    again = read_unet(tmp_path, null_class=null)
    assert {**again.fields} == {**first.fields}
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    theirs = safetensors.numpy.load_file(ROOT / name / "unet" / "diffusion_pytorch_model.safetensors")
    exported = safetensors.numpy.load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert exported.keys() == theirs.keys()
    for key in theirs.keys() - {"time_embedding.linear_1.weight"}:
        np.testing.assert_array_equal(exported[key], theirs[key].astype(np.float32), key)


def test_old_names_of_attention_are_read(folder):
    def age(tensors):
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for name in list(tensors):
            for new in old:
                if f".{new}." in name:
                    tensors[name.replace(new, old[new])] = tensors.pop(name)

    first = read_unet(folder)
    spoil(folder, age)
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(read_unet(folder).params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_tensor_that_does_not_fit_is_named(folder):
    def change(tensors):
        del tensors["conv_in.bias"], tensors["mid_block.attentions.0.to_q.weight"]
        tensors["extra.weight"] = np.zeros((2, 3), np.float16)
        tensors["conv_out.weight"] = tensors["conv_out.weight"][:2]
        tensors["conv_out.bias"] = tensors["conv_out.bias"].astype(np.int32)

    spoil(folder, change)
    with pytest.raises(UserError, match="5 tensors are wrong") as error:
        read_unet(folder)
    for part in (
        "missing: conv_in.bias",
        "missing: mid_block.attentions.0.to_q.weight",
        "unknown: extra.weight [2, 3]",
        "misshapen: conv_out.weight [2, 8, 3, 3], not [3, 8, 3, 3]",
        "not floats: conv_out.bias is int32",
    ):
        assert part in str(error.value)


def test_every_option_that_we_do_not_have_is_named(folder):
    configure(
        folder,
        center_input_sample=True,
        time_embedding_type="fourier",
        mid_block_scale_factor=1.4,
        add_attention=False,
        act_fn="gelu",
        class_embed_type="timestep",
        new_option=1,
        sample_size=None,
        down_block_types=["SkipDownBlock2D", "DownBlock2D"],
    )
    with pytest.raises(UserError) as error:
        read_unet(folder)
    for part in (
        *("center_input_sample=True", "fourier", "mid_block_scale_factor=1.4", "add_attention=False", "gelu"),
        *("class_embed_type='timestep'", "unknown options new_option", "sample_size=None", "SkipDownBlock2D"),
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"resnet_time_scale_shift": "scale_shift"}, "gives the middle's attention no norm"),
        ({"attn_norm_num_groups": 2}, "gives the middle's attention 2 groups"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "on the way up"),
        ({"upsample_type": "resnet"}, "only all conv or all resnet"),
        ({"block_out_channels": [8, 12]}, "[12] are no multiples of the first, 8"),
        ({"norm_num_groups": 3}, "norm_groups is 3"),
        ({"time_embedding_dim": 7}, "time_embedding_dim=7"),
        ({"_class_name": "UNet1DModel"}, "UNet1DModel"),
    ],
)
def test_config_is_refused(folder, changes, part):
    configure(folder, **changes)
    with pytest.raises(UserError, match=r"jaxdiff|fit itself") as error:
        read_unet(folder)
    assert part in str(error.value)


def test_missing_files_are_named(folder, tmp_path):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"it has config\.json"):
        read_unet(folder)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        read_unet(tmp_path)


def test_weights_in_several_files(folder):
    whole = read_unet(folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        part = {name: value for name, value in tensors.items() if files[name] == file}
        safetensors.numpy.save_file(part, folder / "unet" / file)
    path.unlink()
    (folder / "unet" / f"{path.name}.index.json").write_text(json.dumps({"weight_map": files}))
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(read_unet(folder).params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_a_flax_class_are_read(folder):
    """diffusion_flax_model.msgpack in the place of safetensors: their names and layout."""
    whole = read_unet(folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    flat = {}
    for name, value in safetensors.numpy.load_file(path).items():
        *modules, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
        if leaf == "weight":
            leaf = "scale" if value.ndim == 1 else "kernel"
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        flat["/".join([*modules, leaf])] = value
    path.unlink()
    tree = serialization.to_bytes(unflatten_dict(flat, sep="/"))
    (folder / "unet" / "diffusion_flax_model.msgpack").write_bytes(tree)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(read_unet(folder).params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_network_of_text_to_image_is_refused_with_what_reads_it(folder):
    configure(folder, _class_name="FlaxUNet2DConditionModel")
    with pytest.raises(UserError, match=r"sample\.py PIPELINE --prompt.*read_text_unet"):
        read_unet(folder)


def test_weights_go_straight_into_their_sharding():
    mesh = Mesh(np.array(jax.devices()[:2]), ("fsdp",))

    def where(path, target):
        return NamedSharding(mesh, PartitionSpec("fsdp") if target.shape[0] % 2 == 0 else PartitionSpec())

    plain, placed = read_unet(ROOT / "defaults"), read_unet(ROOT / "defaults", sharding=where)
    leaves = jax.tree_util.tree_leaves_with_path(placed.params)
    for (path, leaf), value in zip(leaves, jax.tree.leaves(plain.params), strict=True):
        assert leaf.sharding == where(path, leaf)
        np.testing.assert_array_equal(leaf, value)


def test_null_class_is_their_last_or_a_new_one_of_zeros():
    added, last = read_unet(ROOT / "adm"), read_unet(ROOT / "adm", null_class=True)
    assert added.fields["num_classes"] == 7 and last.fields["num_classes"] == 6
    table = added.params["embedding"]["classes"]["embedding"]
    assert not table[7].any() and table[6].any()
    np.testing.assert_array_equal(table[:7], last.params["embedding"]["classes"]["embedding"])


def test_network_without_an_equal_is_not_exported(tmp_path):
    net = UNet(3, channels=32, channel_mults=(1, 2), attention_resolutions=())
    params = abstract_params(net, (8, 8, 3))
    with pytest.raises(UserError, match=r"norms of 8 to .*model\.norm_groups=8"):
        export_unet({"out_channels": 3, "channels": 32, "channel_mults": (1, 2)}, params, (8, 8, 3), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="num_heads"):
        unet_config(UNet(3, channels=32, channel_mults=(1, 2), norm_groups=8, num_heads=4), (8, 8, 3))
    with pytest.raises(UserError, match=r"model\.patch=1"):
        unet_config(UNet(3, patch=2, channels=128, channel_mults=(1,)), (8, 8, 3))


def test_published_config_is_the_published_network():
    """google/ddpm-ema-church-256 and celebahq-256: their number of parameters."""
    fields, shape = unet_fields(
        {
            "sample_size": 256,
            "block_out_channels": [128, 128, 256, 256, 512, 512],
            "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
        }
    )
    params = abstract_params(UNet(**fields), shape)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 113_673_219


def test_time_shift_is_a_change_of_the_embeddings_argument():
    from jaxdiff.models.layers import timestep_embedding

    kernel = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    t = jnp.array([1.0, 37.0, 500.0]) / 1000
    for shift in (0, 1):
        shifted = timestep_embedding(t, 64, shift) @ names.shift_time(kernel, 0.25, shift)
        plain = timestep_embedding(t - 0.25 / 1000, 64, shift) @ kernel
        np.testing.assert_allclose(shifted, plain, atol=5e-4)


def test_our_safetensors_are_those_of_the_library(tmp_path):
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array(2.5, np.float16),
        "none": np.zeros((0, 3), np.int8),
        "half": np.asarray(jnp.arange(4, dtype=jnp.bfloat16)),
    }
    ours.write(tmp_path / "ours.safetensors", tensors, {"k": "v"})
    found = ours.read(tmp_path / "ours.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)
    del tensors["half"]  # the library's NumPy side has no bfloat16
    ours.write(tmp_path / "ours.safetensors", tensors, {"k": "v"})
    for name, value in safetensors.numpy.load_file(tmp_path / "ours.safetensors").items():
        np.testing.assert_array_equal(value, tensors[name])
        assert value.dtype == tensors[name].dtype


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 20,
        (20).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "Q", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"a": 3}',
        b"[" * 100_000,
    ],
)
def test_damaged_safetensors_are_refused(content, tmp_path):
    path = tmp_path / "x.safetensors"
    if content[:1] in (b"{", b"["):
        content = len(content).to_bytes(8, "little") + content + b"\0" * 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.safetensors"):
        ours.read(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"model": DiT(width=8, depth=1, num_heads=2)}, "no network like DiTModule"),
        ({"diffusion": Diffusion(schedule="flow")}, "discrete schedule of 1000 steps"),
        ({"objective": Hybrid()}, "told to say the variance"),
        ({"objective": MeanFlow(), "diffusion": Diffusion(schedule="flow", prediction="flow")}, "told r"),
        ({"model": Model(channels=32, channel_mults=(1, 2), attention_resolutions=())}, "model.norm_groups=8"),
    ],
)
def test_what_diffusers_lacks_is_known_before_training(changes, words):
    recipe = make_recipe(Config(**{"model": Model(attention_resolutions=(8,)), **changes}), (16, 16, 3))
    with pytest.raises(UserError, match=words) if words else contextlib.nullcontext():
        refuse_unmapped(recipe)


def test_classes_are_drawn_in_diffusers_as_the_folder_says(tmp_path):
    """The code was run with torch by hand; here it is Python, of the model's sizes."""
    write_card(tmp_path, 10, 1.5, (8, 6, 3))
    text = (tmp_path / "README.md").read_text()
    code = text.partition("```py\n")[2].partition("```")[0]
    ast.parse(code)
    assert "torch.randn(16, 3, 8, 6)" in code and "torch.full_like(labels, 10), 1.5" in code
