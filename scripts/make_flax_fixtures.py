"""Makes tests/fixtures/flax with the Flax classes that diffusers and transformers had: names, shapes and outputs.

They are gone from today's releases, so their environment is an older one, made apart:

    python3.11 -m venv /tmp/flaxenv
    /tmp/flaxenv/bin/pip install torch==2.13.0 "diffusers==0.35.*" "transformers==4.49.*" "huggingface_hub<1" \\
        "jax<0.7" "flax<0.11" safetensors
    JAX_PLATFORMS=cpu /tmp/flaxenv/bin/python scripts/make_flax_fixtures.py

Weights are not kept: tests make them again from the names. In two places diffusers' Flax blocks computed otherwise than
the torch blocks whose weights they took: GELU by tanh, and a norm's epsilon of 1e-5. Here both are as in torch.
"""

import functools
import json
import math
import types
import zlib
from pathlib import Path

import diffusers
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import transformers
from diffusers import FlaxAutoencoderKL, FlaxUNet2DConditionModel
from diffusers.models import attention_flax
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers import CLIPTextConfig, FlaxCLIPTextModel

ROOT = Path(__file__).parent.parent / "tests" / "fixtures" / "flax"


class AsInTorch(types.ModuleType):
    """flax.linen with the GELU and the epsilon that the torch blocks have."""

    gelu = staticmethod(functools.partial(nn.gelu, approximate=False))

    @staticmethod
    def GroupNorm(num_groups, epsilon):
        """With epsilon 1e-6, whatever is asked for."""
        del epsilon
        return nn.GroupNorm(num_groups, epsilon=1e-6)

    def __getattr__(self, name):
        """Everything else as it is."""
        return getattr(nn, name)


def weight(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that tests can make again from the path."""
    spread = 1.7 / math.sqrt(np.prod(shape[:-1])) if path.endswith("kernel") else 0.3
    value = spread * np.random.RandomState(zlib.crc32(path.encode())).uniform(-1, 1, shape)
    return (value + path.endswith("scale")).astype(np.float32)


def named_weights(params: dict, folder: Path) -> dict:
    """Parameters of the same shapes, and tensors.json beside them."""
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten_dict(params, sep="/").items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tensors.json").write_text(json.dumps(shapes) + "\n")
    return unflatten_dict({path: weight(path, shape) for path, shape in shapes.items()}, sep="/")


def main() -> None:
    """Writes all fixtures and says how large they are."""
    attention_flax.nn = AsInTorch("flax.linen")
    key = jax.random.key(0)
    random = np.random.RandomState(0)

    unet = FlaxUNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=16,
    )
    params = named_weights(jax.eval_shape(unet.init_weights, key), ROOT / "unet")
    x, text = random.randn(2, 4, 8, 8).astype(np.float32), random.randn(2, 5, 16).astype(np.float32)
    timesteps = np.array([3, 700])
    output = unet.apply({"params": params}, x, jnp.asarray(timesteps), text).sample
    unet.save_config(ROOT / "unet")
    np.savez_compressed(ROOT / "unet" / "io.npz", x=x, text=text, timesteps=timesteps, output=output)

    vae = FlaxAutoencoderKL(block_out_channels=(32,), norm_num_groups=32, sample_size=8)
    params = named_weights(jax.eval_shape(vae.init_weights, key), ROOT / "vae")
    image, z = random.randn(1, 3, 8, 8).astype(np.float32), random.randn(1, 4, 8, 8).astype(np.float32)
    mean = vae.apply({"params": params}, image, method=vae.encode).latent_dist.mean  # channels last
    decoded = vae.apply({"params": params}, z, method=vae.decode).sample
    vae.save_config(ROOT / "vae")
    np.savez_compressed(ROOT / "vae" / "io.npz", x=image, mean=np.moveaxis(mean, -1, 1), z=z, image=decoded)

    config = CLIPTextConfig(50, 16, 32, num_hidden_layers=2, num_attention_heads=2, bos_token_id=0, eos_token_id=1)
    model = FlaxCLIPTextModel(config)
    params = named_weights(model.params, ROOT / "text_encoder")
    tokens = np.arange(20).reshape(2, 10) * 7 % 50
    output = model(jnp.asarray(tokens), params=params).last_hidden_state
    config.save_pretrained(ROOT / "text_encoder")
    np.savez_compressed(ROOT / "text_encoder" / "io.npz", tokens=tokens.astype(np.int32), output=output)

    versions = {module.__name__: module.__version__ for module in (diffusers, transformers, flax, jax, np)}
    (ROOT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    size = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    print(f"{ROOT}: {size / 1e6:.2f} MB, {versions}")


if __name__ == "__main__":
    main()
