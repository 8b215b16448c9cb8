"""Stable Diffusion's networks: outputs recorded from diffusers and transformers (scripts/make_latent_fixtures.py)."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from jaxdiff.assembly.recipe import make_recipe, make_setting
from jaxdiff.assembly.training_program import example
from jaxdiff.commands import main
from jaxdiff.config import Config, Diffusion, validate
from jaxdiff.errors import UserError
from jaxdiff.interop import export_part, latent, read_autoencoder, read_text_encoder, read_text_unet, safetensors
from jaxdiff.models import DiT
from tests.stable_diffusion import ROOT, network_folder, tensors_of

WEIGHTS = "diffusion_pytorch_model.safetensors"
READERS = {"unet": read_text_unet, "vae": read_autoencoder, "text_encoder": read_text_encoder}


def apply(part, *inputs, **keywords):
    def run(params, *inputs):
        return part.network.apply({"params": params}, *inputs, **keywords)

    fast = {"xla_backend_optimization_level": 0}  # optimising takes XLA longer than running
    return jax.jit(run, compiler_options=fast)(part.params, *inputs)


def recorded(name):
    """The arrays of a network, channels last."""
    io = np.load(ROOT / name / "io.npz")
    return {k: np.ascontiguousarray(v.transpose(0, 2, 3, 1)) if v.ndim == 4 else v for k, v in io.items()}


def assert_same(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return network_folder("vae", tmp_path_factory.mktemp("vae") / "vae")


@pytest.mark.parametrize("version", ["1", "2", "lcm"])
def test_unet_computes_what_theirs_does(version, tmp_path):
    """Under a text, and for LCM's under a guidance scale of each example."""
    io = recorded(f"unet_{version}")
    part = read_text_unet(network_folder(f"unet_{version}", tmp_path / "unet"))
    t = ((io["timesteps"] + 1) / 1000).astype(np.float32)
    cond = {name: io[name] for name in ("text", "guidance") if name in io}
    close = 1e-4 if "guidance" in cond else 2e-5  # sinusoids of 1000 times the scale: float32 has 4e-4 of 7000
    assert np.abs(apply(part, io["x"], t, cond) - io["output"]).max() <= close


@pytest.mark.parametrize("version", ["1", "2"])
def test_text_encoder_computes_what_theirs_does(version, tmp_path):
    """quick_gelu and gelu, from the token ids of their tokenizer."""
    io = recorded(f"text_encoder_{version}")
    part = read_text_encoder(network_folder(f"text_encoder_{version}", tmp_path / "text"))
    assert np.abs(apply(part, io["tokens"][:3]) - io["output"]).max() <= 2e-5


@pytest.mark.parametrize("name", ["unet_1", "unet_2", "unet_lcm", "vae", "text_encoder_1"])
def test_export_gives_the_tensors_back(name, tmp_path):
    """Under their names, in their shapes, bit for bit but for the rotation of the time embedding; and reads again."""
    reader = READERS[name.removesuffix("_lcm").rstrip("_12")]
    part = reader(network_folder(name, tmp_path / "theirs"))
    export_part(part, tmp_path / "ours")
    (path,) = (tmp_path / "ours").glob("*.safetensors")
    found = {key.removeprefix("text_model."): value for key, value in safetensors.read(path).items()}
    wanted = tensors_of(name)  # transformers 5 leaves out the prefix that published files have
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        close = {"time_embedding.linear_1.weight": 1e-6, "time_embedding.cond_proj.weight": 1e-5}.get(key, 0)
        np.testing.assert_allclose(found[key], value, rtol=1e-7, atol=close, err_msg=key)
    again = reader(tmp_path / "ours")
    assert again.network == part.network and again.config == part.config


def test_autoencoder_computes_what_theirs_does(vae):
    io, part = recorded("vae"), read_autoencoder(vae)
    found = apply(part, io["x"], method="encode")
    assert np.abs(found.mean - io["mean"]).max() <= 2e-5
    assert np.abs(found.log_variance - io["log_variance"]).max() <= 2e-5
    assert np.abs(apply(part, io["z"], method="decode") - io["image"]).max() <= 2e-5
    assert np.abs(apply(part, io["x"]) - apply(part, found.mean, method="decode")).max() <= 2e-5


FULL = {  # published configs where they differ from the defaults of `latent`, and the number of parameters
    "unet 1": (latent.text_unet, {"cross_attention_dim": 768}, 859_520_964),
    "unet 2": (
        latent.text_unet,
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
        865_910_724,
    ),
    "vae": (
        latent.autoencoder,
        {
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
        },
        83_653_863,
    ),
    "text 1": (
        latent.text_encoder,
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        123_060_480,
    ),
    "text 2": (
        latent.text_encoder,
        {
            **{"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
            **{"num_hidden_layers": 23, "hidden_act": "gelu"},
        },
        340_387_840,
    ),
}


@pytest.mark.parametrize("name", FULL)
def test_published_config_is_the_published_network(name):
    """Stable Diffusion 1 and 2 at full size, as shapes only: their numbers of parameters."""
    build, config, count = FULL[name]
    network, _, params, table = build(config)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert len({source.name for source in table.values()}) == len(table) == len(jax.tree.leaves(params))
    if name in ("vae", "text 1"):
        assert network == type(network)()  # our defaults


def test_old_names_and_half_precision_files_are_read(vae, tmp_path):
    """As Stable Diffusion's autoencoder was published: attention's names of 2022, and 1x1 kernels as matrices."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    aged = {}
    for name, value in tensors_of("vae").items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        aged[name] = value.astype(np.float16)
    assert aged.keys() != tensors_of("vae").keys()
    folder = tmp_path / "vae"
    folder.mkdir()
    shutil.copy(vae / "config.json", folder)
    safetensors.write(folder / "diffusion_pytorch_model.fp16.safetensors", aged, {})
    halves = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), read_autoencoder(vae).params)
    assert_same(read_autoencoder(folder).params, halves)


def test_text_encoder_s_prefix_and_positions_are_not_needed(tmp_path):
    """Old files have the prefix text_model and a table 0, 1, 2, ...; files of today need not."""
    folder = network_folder("text_encoder_1", tmp_path / "text")
    first = read_text_encoder(folder).params
    tensors = {f"text_model.{name.removeprefix('text_model.')}": v for name, v in tensors_of("text_encoder_1").items()}
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
    other = shutil.copytree(folder, tmp_path / "other")  # not over what is memory-mapped
    safetensors.write(other / "model.safetensors", tensors, {})
    assert_same(read_text_encoder(other).params, first)
    plain = {name.removeprefix("text_model."): value for name, value in tensors.items() if "_ids" not in name}
    other = shutil.copytree(folder, tmp_path / "plain")
    safetensors.write(other / "model.safetensors", plain, {})
    assert_same(read_text_encoder(other).params, first)


def test_weights_go_straight_into_their_sharding(vae):
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec())
    placed = read_autoencoder(vae, sharding=sharding).params
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(placed))
    assert_same(placed, read_autoencoder(vae).params)


def test_every_tensor_that_does_not_fit_is_named(vae, tmp_path):
    folder = shutil.copytree(vae, tmp_path / "vae")
    tensors = tensors_of("vae")
    del tensors["quant_conv.bias"]
    tensors["post_quant_conv.weight"] = tensors["post_quant_conv.weight"][:2]
    tensors["decoder.extra"] = np.zeros(2, np.float32)
    safetensors.write(folder / WEIGHTS, tensors, {})
    with pytest.raises(UserError, match="3 tensors are wrong") as error:
        read_autoencoder(folder)
    for part in (
        "missing: quant_conv.bias",
        "post_quant_conv.weight [2, 4, 1, 1], not [4, 4",
        "unknown: decoder.extra",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        (
            "unet_1",
            {"class_embed_type": "timestep", "addition_embed_type": "text_time", "new_option": 1, "sample_size": None},
            ["class_embed_type='timestep'", "addition_embed_type='text_time'", "unknown options new_option"],
        ),
        ("unet_1", {"down_block_types": ["DownBlock2D"] * 3}, ["CrossAttnUpBlock2D", "the same up"]),
        ("unet_1", {"attention_head_dim": [2, 2]}, ["attention_head_dim=[2, 2] (only a number of heads"]),
        ("unet_1", {"attention_head_dim": 3}, ["attention_head_dim=3 does not divide [8, 8, 16]"]),
        ("unet_1", {"block_out_channels": [8, 12, 16]}, ["[12] are no multiples of the first, 8"]),
        ("unet_1", {"block_out_channels": []}, ["block_out_channels=[]"]),
        ("unet_1", {"block_out_channels": "a", "norm_num_groups": None}, ["block_out_channels='a'"]),
        ("unet_1", {"transformer_layers_per_block": [1, 2, 10]}, ["transformer_layers_per_block=[1, 2, 10] (only 1)"]),
        ("unet_1", {"layers_per_block": [1, 2, 2], "norm_num_groups": 3}, ["layers_per_block=[1", "norm_num_groups=3"]),
        ("unet_1", {"cross_attention_dim": [16, 16]}, ["cross_attention_dim=[16, 16] (only a natural number)"]),
        ("unet_1", {"_class_name": "UNet3DConditionModel"}, ["UNet3DConditionModel"]),
        ("vae", {"shift_factor": 0.1, "use_quant_conv": False}, ["shift_factor=0.1", "use_quant_conv=False"]),
        ("vae", {"scaling_factor": 0, "latent_channels": -1}, ["scaling_factor=0", "latent_channels=-1"]),
        ("vae", {"up_block_types": ["UpDecoderBlock2D"]}, ["up_block_types="]),
        (
            "text_encoder_1",
            {"hidden_act": "relu", "layer_norm_eps": 1e-6},
            ["hidden_act='relu'", "layer_norm_eps=1e-06"],
        ),
        ("text_encoder_1", {"num_attention_heads": 3}, ["hidden_size=16 is no multiple of its 3 heads"]),
        (
            "text_encoder_1",
            {"num_attention_heads": 0, "hidden_size": "16"},
            ["num_attention_heads=0", "hidden_size='16'"],
        ),
        ("text_encoder_1", {"model_type": "t5"}, ["model_type='t5'"]),
    ],
)
def test_every_option_that_we_do_not_have_is_named(name, changes, parts, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(ROOT / name / "config.json", folder)
    configure(folder, **changes)
    with pytest.raises(UserError) as error:
        READERS[name.rstrip("_12")](folder)
    for part in parts:
        assert part in str(error.value)


def test_folders_without_weights_say_what_they_have(vae, tmp_path):
    folder = shutil.copytree(vae, tmp_path / "vae")
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"diffusion_flax_model\.msgpack; it has config\.json"):
        read_autoencoder(folder)


def test_a_run_is_in_the_latents_of_an_autoencoder(vae):
    """Encoded as the folder's own network does, with its weights as arguments; loss and samples are of latents."""
    diffusion = Diffusion(codec="autoencoder", codec_options={"folder": str(vae), "scale": 2.0})
    config = validate(Config(model=DiT(width=8, depth=1, num_heads=1), diffusion=diffusion))
    recipe = make_recipe(config, (16, 16, 3))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    part = read_autoencoder(vae)
    mean = apply(part, images / 127.5 - 1, method="encode").mean
    x = jax.jit(recipe.encode)(recipe.frozen, images)
    assert recipe.shape == x.shape[1:] == (8, 8, 4)
    np.testing.assert_allclose(x, 2 * mean, atol=1e-4)
    assert jax.eval_shape(recipe.decode, recipe.frozen, x).shape == images.shape
    params = jax.eval_shape(recipe.network.init, jax.random.key(0), *example(recipe))
    loss, keys = config.objective.make(make_setting(config, recipe)).loss, jax.random.split(jax.random.key(0), 2)
    assert jax.eval_shape(loss, params["params"], recipe.frozen, {"image": jnp.asarray(images)}, keys).shape == (2,)


def test_an_autoencoder_without_weights_is_for_plans_and_refuses_other_images(tmp_path, capsys):
    config = Config(model=DiT(width=8, depth=1, num_heads=1), diffusion=Diffusion(codec="autoencoder"))
    recipe = make_recipe(config, (64, 32, 3))
    assert recipe.shape == (8, 4, 4)
    assert sum(leaf.size for leaf in jax.tree.leaves(recipe.frozen)) == 83_653_863  # Stable Diffusion's VAE
    for shape in ((64, 30, 3), (64, 32, 1)):
        with pytest.raises(UserError, match="takes 3 channels and sides that are multiples of 8"):
            make_recipe(config, shape)
    for i in range(2):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / f"{i}.png")
    options = ["--data.name", "folder", "--data.path", str(tmp_path), "--diffusion.codec", "autoencoder"]
    options += ["--model", "dit", "--model.num_classes", "0", "--model.width", "8", "--workdir", str(tmp_path / "run")]
    options += ["--model.num_heads", "1", "--train.batch_size", "8", "--sampling.guidance", "1"]
    assert main(["train", "digits", *options]) == 2
    assert "name their diffusion.codec_options.folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
