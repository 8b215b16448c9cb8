"""Full-size parity with diffusers, in two parts that share a folder: `torch` writes it, `jax` compares with it.

    /tmp/torchenv/bin/python scripts/parity.py torch /tmp/parity
    .venv/bin/python scripts/parity.py jax /tmp/parity

google/ddpm-cifar10-32's architecture at full size with random weights (nothing is downloaded), output against output;
and back: the imported network exported, loaded by DDPMPipeline.from_pretrained, which must give the same again.
`make parity` makes the fixtures anew and runs all three steps.
"""

import argparse
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


def torch_side(folder: Path) -> None:
    """Writes the pipeline, inputs and outputs."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(**CONFIG).eval()
    x = torch.randn(len(TIMESTEPS), 3, 32, 32)
    with torch.no_grad():
        output = net(x, torch.tensor(TIMESTEPS)).sample
    DDPMPipeline(net, DDPMScheduler(variance_type="fixed_large")).save_pretrained(folder / "theirs")
    np.savez(folder / "io.npz", x=x.numpy(), output=output.numpy())


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
