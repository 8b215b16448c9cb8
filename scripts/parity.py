"""Full-size parity with diffusers, in two parts that share a folder: `torch` writes it, `jax` compares with it.

    /tmp/torchenv/bin/python scripts/parity.py torch /tmp/parity
    .venv/bin/python scripts/parity.py jax /tmp/parity

google/ddpm-cifar10-32's architecture at full size with random weights (nothing is downloaded), output against output;
and back: the imported network exported, loaded by DDPMPipeline.from_pretrained, which must give the same again.
So are Stable Diffusion's autoencoder and text encoder; its U-Net (860 M parameters, 3.4 GB twice over) is compared at
tiny size only, in the fixtures.
`make parity` makes the fixtures anew and runs all three steps.
"""

import argparse
import functools
from pathlib import Path

import numpy as np

CONFIG = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
TIMESTEPS = np.array([0, 250, 999])
VAE = {  # Stable Diffusion's
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}  # CLIP ViT-L/14's


def torch_side(folder: Path) -> None:
    """Writes the pipeline, inputs and outputs."""
    import torch
    from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, UNet2DModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    net = UNet2DModel(**CONFIG).eval()
    x = torch.randn(len(TIMESTEPS), 3, 32, 32)
    with torch.no_grad():
        output = net(x, torch.tensor(TIMESTEPS)).sample
    DDPMPipeline(net, DDPMScheduler(variance_type="fixed_large")).save_pretrained(folder / "theirs")
    np.savez(folder / "io.npz", x=x.numpy(), output=output.numpy())

    vae, text = AutoencoderKL(**VAE).eval(), CLIPTextModel(CLIPTextConfig(**TEXT)).eval()
    image, tokens = torch.randn(1, 3, 64, 64), torch.randint(0, 49408, (1, 77))
    with torch.no_grad():
        mean = vae.encode(image).latent_dist.mean
        arrays = {"mean": mean, "decoded": vae.decode(mean).sample, "tokens": tokens.int(), "text": text(tokens)[0]}
    vae.save_pretrained(folder / "vae")
    text.save_pretrained(folder / "text_encoder")
    np.savez(folder / "latent.npz", image=image, **arrays)


def jax_side(folder: Path) -> None:
    """Compares our network with theirs, and exports it."""
    import jax

    from jaxdiff.interop import export_pipeline, read_scheduler, read_unet

    io = np.load(folder / "io.npz")
    x, output = io["x"].transpose(0, 2, 3, 1), io["output"].transpose(0, 2, 3, 1)
    found = read_unet(folder / "theirs")
    t = ((TIMESTEPS + 1) / 1000).astype(np.float32)
    ours = jax.jit(found.network.apply)({"params": found.params}, x, t)
    size = sum(leaf.size for leaf in jax.tree.leaves(found.params))
    print(f"import: {size:,} parameters, outputs up to {np.abs(output).max():.3f}, max abs error "
          f"{np.abs(np.asarray(ours) - output).max():.2e}")  # fmt: skip
    schedule = read_scheduler(folder / "theirs").schedule
    export_pipeline(found.fields, found.params, found.image_shape, schedule, "noise", folder / "ours")

    latent_side(folder)


def latent_side(folder: Path) -> None:
    """Compares the autoencoder and the text encoder."""
    import jax

    from jaxdiff.interop import read_autoencoder, read_text_encoder

    io = {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in np.load(folder / "latent.npz").items()}
    vae, text = read_autoencoder(folder / "vae"), read_text_encoder(folder / "text_encoder")
    for name, part, method, given, wanted in (
        ("encode", vae, lambda net, x: net.encode(x).mean, io["image"], io["mean"]),
        ("decode", vae, lambda net, z: net.decode(z), io["mean"], io["decoded"]),
        ("text", text, lambda net, tokens: net(tokens), io["tokens"], io["text"]),
    ):
        ours = jax.jit(functools.partial(part.network.apply, method=method))({"params": part.params}, given)
        size = sum(leaf.size for leaf in jax.tree.leaves(part.params))
        print(f"{name}: {size:,} parameters, outputs up to {np.abs(wanted).max():.3f}, max abs error "
              f"{np.abs(np.asarray(ours) - wanted).max():.2e}")  # fmt: skip


def back_side(folder: Path) -> None:
    """Loads what we exported with diffusers, and compares it with what was imported."""
    import torch
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(folder / "ours")
    io = np.load(folder / "io.npz")
    with torch.no_grad():
        output = pipeline.unet(torch.from_numpy(io["x"]), torch.tensor(TIMESTEPS)).sample.numpy()
    image = pipeline(batch_size=1, num_inference_steps=2, output_type="np").images
    print(f"export: max abs error {np.abs(output - io['output']).max():.2e}; the pipeline drew {image.shape}")


def main() -> None:
    """Runs the part named first on the folder named second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("torch", "jax", "back"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    {"torch": torch_side, "jax": jax_side, "back": back_side}[arguments.part](arguments.folder)


if __name__ == "__main__":
    main()
