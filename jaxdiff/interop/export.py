"""Networks of ours as diffusers and transformers keep theirs: a run's U-Net, and the parts of Stable Diffusion."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.diffusion import Recipe
from jaxdiff.errors import UserError
from jaxdiff.interop import names, safetensors
from jaxdiff.interop.diffusers import replace_time_kernel
from jaxdiff.interop.latent import SCALE, Part
from jaxdiff.interop.scheduler_fields import VERSION
from jaxdiff.interop.schedulers import scheduler_config
from jaxdiff.interop.weights import DIFFUSERS, TRANSFORMERS
from jaxdiff.models import Autoencoder, TextEncoder, UNet
from jaxdiff.models.layers import group_count
from jaxdiff.models.unet import attends, num_heads
from jaxdiff.schedules import Schedule

_FLAX_ONLY = ("use_memory_efficient_attention", "split_head_dim")  # options that the torch class never had


def export_unet(
    fields: Mapping[str, Any], params: Any, image_shape: tuple[int, int, int], folder: os.PathLike | str
) -> None:
    """Writes config.json and the weights of a UNet2DModel that computes what our network does.

    Args:
      fields: of `jaxdiff.models.UNet`.
      params: its parameters.
      image_shape: (h, w, c).
      folder: where to; made where it is missing.

    Raises:
      UserError: the network has what UNet2DModel does not; nothing is written.
    """
    network = UNet(**fields)
    config = unet_config(network, image_shape)
    table = names.diffusers_table(params, len(network.channel_mults))
    params = jax.tree.map(np.asarray, params)
    replace_time_kernel(params, lambda kernel: names.shift_time(kernel, -1.0, network.frequency_shift))
    tensors = {
        table[path].name: np.ascontiguousarray(names.to_torch(path, value)) for path, value in names.leaf_paths(params)
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / f"{DIFFUSERS[0]}.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def unet_config(network: UNet, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Our network -> the config of the UNet2DModel that computes the same.

    Raises:
      UserError: what UNet2DModel has no option for, all of it.
    """
    widths = [network.channels * mult for mult in network.channel_mults]
    sums = [a + b for a in widths for b in widths]
    groups = {network.norm_groups} if network.norm_groups else {group_count(width) for width in (*widths, *sums)}
    dims = {width // num_heads(network, i) for i, width in enumerate(widths)}
    heads = dims if network.num_heads else {network.head_dim}
    problems = []
    if network.time_scale != 1000:
        problems.append(f"a time_scale of {network.time_scale:g} (train with model.time_scale=1000)")
    if network.patch > 1:
        problems.append(f"patches of {network.patch} (train with model.patch=1)")
    if len(groups) > 1:
        problems.append(f"norms of {min(groups)} to {max(groups)} groups (train with model.norm_groups={min(groups)})")
    if len(heads) > 1:
        problems.append("num_heads with levels of different widths (train with model.head_dim)")
    if problems:
        raise UserError(f"diffusers has no UNet2DModel like this: {'; '.join(problems)}")
    height, width, channels = image_shape
    attended = [attends(network, i, height >> i) for i in range(len(widths))]
    resnet = network.resample == "resblock"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resnet else ("DownBlock2D", "UpBlock2D")
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": network.out_channels,
        "freq_shift": network.frequency_shift,
        "flip_sin_to_cos": False,
        "down_block_types": ["AttnDownBlock2D" if attend else plain[0] for attend in attended],
        "up_block_types": ["AttnUpBlock2D" if attend else plain[1] for attend in reversed(attended)],
        "block_out_channels": widths,
        "layers_per_block": network.blocks,
        "downsample_padding": int(network.downsample_padding == "both"),
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "dropout": network.dropout,
        "attention_head_dim": heads.pop(),
        "norm_num_groups": groups.copy().pop(),
        "attn_norm_num_groups": groups.pop(),
        "norm_eps": network.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if network.time_injection == "scale_shift" else "default",
        "num_class_embeds": network.num_classes + 1 if network.num_classes else None,
    }


def refuse_unmapped(recipe: Recipe) -> None:
    """Raises UserError, with the reason, unless a `DDPMPipeline` of diffusers computes what the recipe's model does."""
    conds = {*recipe.conditioner.spec, *recipe.extra_cond} - {"label"}
    if not isinstance(recipe.network, UNet):
        raise UserError(f"diffusers has no network like {type(recipe.network).__name__}; train with --model unet")
    if recipe.frozen or conds or recipe.learned_variance:
        what = (
            "latents" if recipe.frozen else f"a network told {', '.join(sorted(conds)) or 'to say the variance, too'}"
        )
        raise UserError(f"DDPMPipeline has no {what}")
    unet_config(recipe.network, recipe.shape)
    scheduler_config(recipe.schedule, recipe.prediction)


_CARD = """---
library_name: diffusers
---

`DDPMPipeline` draws this model without its classes, of which there are {classes}; this draws with them:

```py
import torch
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained("{folder}")
unet, scheduler = pipeline.unet, pipeline.scheduler
labels = torch.arange(16) % {classes}
nothing, guidance = torch.full_like(labels, {classes}), {guidance:g}
x = torch.randn(16, {c}, {h}, {w})
scheduler.set_timesteps(50)
with torch.no_grad():
    for t in scheduler.timesteps:
        told, untold = (unet(x, t, class_labels=kind).sample for kind in (labels, nothing))
        x = scheduler.step(untold + guidance * (told - untold), t, x).prev_sample
images = (x / 2 + 0.5).clamp(0, 1)
```
"""


def write_card(folder: Path, classes: int, guidance: float, shape: tuple[int, int, int]) -> None:
    """Writes README.md: how diffusers draws classes of a model that `export_pipeline` wrote."""
    h, w, c = shape
    (folder / "README.md").write_text(
        _CARD.format(folder=folder.name, classes=classes, guidance=guidance, h=h, w=w, c=c)
    )


def export_pipeline(
    fields: Mapping[str, Any],
    params: Any,
    image_shape: tuple[int, int, int],
    schedule: Schedule,
    prediction: str,
    folder: os.PathLike | str,
) -> None:
    """Writes a folder that `DDPMPipeline.from_pretrained` loads: model_index.json, unet and scheduler.

    Args:
      fields: of `jaxdiff.models.UNet`.
      params: its parameters.
      image_shape: (h, w, c).
      schedule: a discrete one of 1000 steps, which is what 1000 t counts.
      prediction: "noise", "x_0" or "v".
      folder: where to; made where it is missing.

    Raises:
      UserError: diffusers has no such model or schedule; nothing is written.
    """
    scheduler = scheduler_config(schedule, prediction)
    folder = Path(folder)
    export_unet(fields, params, image_shape, folder / "unet")
    (folder / "scheduler").mkdir(exist_ok=True)
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")


def export_part(part: Part, folder: os.PathLike | str) -> None:
    """Writes config.json and the weights of a part of Stable Diffusion, as `from_pretrained` of its class loads them.

    Args:
      part: of `read_text_unet`, `read_autoencoder` or `read_text_encoder`, with any parameters of its network.
      folder: where to; made where it is missing.
    """
    params, network = jax.tree.map(np.asarray, part.params), part.network
    stem, prefix, kind = DIFFUSERS[0], "", type(network).__name__
    if isinstance(network, UNet):
        kind = "UNet2DConditionModel"
        table = names.diffusers_table(params, len(network.channel_mults), text=True)
        cos_first = part.config["flip_sin_to_cos"]
        shift = network.frequency_shift
        replace_time_kernel(params, lambda kernel: names.shift_time(kernel, -1.0, shift))
        if cos_first:
            replace_time_kernel(params, lambda kernel: np.concatenate(np.split(kernel, 2)[::-1]))
    elif isinstance(network, Autoencoder):
        kind, table = "AutoencoderKL", names.autoencoder_table(params, len(network.channel_mults))
    else:
        assert isinstance(network, TextEncoder)
        kind, table = "CLIPTextModel", names.text_encoder_table(params)
        stem, prefix = TRANSFORMERS[0], "text_model."
    one_by_one = ("quant_conv",) if kind == "AutoencoderKL" else ("proj_in", "proj_out")
    as_convolutions = kind == "AutoencoderKL" or not part.config.get("use_linear_projection", True)
    tensors = {}
    for path, leaf in names.leaf_paths(params):
        name, value = table[path].name, names.to_torch(path, leaf)
        if as_convolutions and name.endswith(".weight") and value.ndim == 2:
            value = value[:, :, None, None] if name.split(".")[-2].endswith(one_by_one) else value
        tensors[prefix + name] = np.ascontiguousarray(value)
    if SCALE in tensors:
        both = (tensors[name].astype(np.float64) for name in ("time_embedding.linear_1.weight", SCALE))
        tensors[SCALE] = np.linalg.lstsq(*both)[0].astype(np.float32)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / f"{stem}.safetensors", tensors, {"format": "pt"})
    about = (
        {"architectures": [kind]} if kind == "CLIPTextModel" else {"_class_name": kind, "_diffusers_version": VERSION}
    )
    (folder / "config.json").write_text(json.dumps({**about, **part.config}, indent=2) + "\n")
