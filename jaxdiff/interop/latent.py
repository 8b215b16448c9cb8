"""The networks of Stable Diffusion 1 and 2: diffusers' AutoencoderKL and UNet2DConditionModel, CLIP's text encoder.

As diffusers and transformers save them (or saved them, in Flax), each in a folder with its config.json.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop import names
from jaxdiff.interop.diffusers import replace_time_kernel
from jaxdiff.interop.lora import TEXT, UNET, Lora, merged
from jaxdiff.interop.options import fill
from jaxdiff.interop.schedulers import read_json
from jaxdiff.interop.weights import DIFFUSERS, TRANSFORMERS, read_weights, unwrapped
from jaxdiff.models import Autoencoder, TextEncoder, UNet
from jaxdiff.models.layers import GUIDANCE_SINUSOIDS

_UNET: dict[str, Any] = {  # of UNet2DConditionModel 0.42, and two of the Flax class
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "upcast_attention": False,
    "addition_embed_type_num_heads": 64,
    "use_memory_efficient_attention": False,
    "split_head_dim": False,
}
_UNET_ONLY: dict[str, tuple] = {  # what our U-Net has no other form of
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "transformer_layers_per_block": (1,),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None, GUIDANCE_SINUSOIDS),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "projection_class_embeddings_input_dim": (None,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
    "freq_shift": (0, 1),
    "downsample_padding": (0, 1),
}
_VAE: dict[str, Any] = {  # of AutoencoderKL 0.42
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [64],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "force_upcast": True,
}
_VAE_ONLY: dict[str, tuple] = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
}
_TEXT: dict[str, Any] = {  # of CLIPTextConfig; what else it holds is not of the network
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "model_type": "clip_text_model",
}
_TEXT_ONLY: dict[str, tuple] = {
    "hidden_act": ("quick_gelu", "gelu"),
    "layer_norm_eps": (1e-5,),
    "model_type": ("clip_text_model",),
}

SCALE = "time_embedding.cond_proj.weight"
"""Of LCM: added to the time's sinusoids, where ours is added to what the first layer makes of them."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A network of a pipeline as ours.

    Attributes:
      network: a module of jaxdiff.models.
      params: its parameters.
      config: theirs, with its defaults filled in.
      notes: which weights were taken, where there was a choice, a line each.
    """

    network: Any
    params: Any
    config: dict[str, Any]
    notes: tuple[str, ...] = ()


def read_text_unet(folder: os.PathLike | str, *, sharding: Any = None, lora: Lora | None = None) -> Part:
    """A UNet2DConditionModel (or the Flax class of that name) as a `UNet` under a text; one of LCM's is told the scale.

    Args:
      folder: holds config.json and the weights, see `weights.read_weights`.
      sharding: see `names.load`.
      lora: added to the weights.

    Raises:
      UserError: no such model, options that `UNet` does not have, tensors that do not fit; all of them.
    """
    part = _read(folder, text_unet, DIFFUSERS, "time_embedding.linear_1.weight", sharding, lora, UNET)
    shift = part.network.frequency_shift
    replace_time_kernel(
        part.params, lambda kernel: names.shift_time(kernel, 1.0, shift, part.config["flip_sin_to_cos"])
    )
    return part


def read_autoencoder(folder: os.PathLike | str, *, sharding: Any = None) -> Part:
    """An AutoencoderKL (or the Flax class of that name) as an `Autoencoder`; see `read_text_unet`."""
    return _read(folder, autoencoder, DIFFUSERS, "encoder.conv_in.weight", sharding)


def open_autoencoder(folder: str) -> tuple[Autoencoder, Any]:
    """The network of a folder and its parameters; without one Stable Diffusion's, and their shapes alone.

    Raises:
      UserError: see `read_autoencoder`.
    """
    if folder:
        part = read_autoencoder(folder)
        return part.network, part.params
    network = Autoencoder()
    side = 2 ** (len(network.channel_mults) - 1)
    return network, _abstract(network, (1, side, side, network.out_channels))


def read_text_encoder(folder: os.PathLike | str, *, sharding: Any = None, lora: Lora | None = None) -> Part:
    """A CLIPTextModel (or the Flax class of that name) as a `TextEncoder`; see `read_text_unet`."""
    return _read(folder, text_encoder, TRANSFORMERS, "embeddings.token_embedding.weight", sharding, lora, TEXT)


def _read(
    folder: os.PathLike | str,
    build: Callable,
    stems: tuple[str, str, str],
    anchor: str,
    sharding: Any,
    lora: Lora | None = None,
    prefixes: tuple[str, ...] = (),
) -> Part:
    folder = Path(folder)
    network, config, params, table = build(read_json(folder / "config.json"))
    notes: list[str] = []
    tensors = merged(unwrapped(read_weights(folder, stems, notes), anchor, str(folder), notes), lora, prefixes)
    tensors.pop("embeddings.position_ids", None)  # of a text encoder: 0, 1, 2, ..., which old versions saved
    if SCALE in tensors and anchor in tensors:
        tensors[SCALE] = np.asarray(tensors[anchor], np.float32) @ np.asarray(tensors[SCALE], np.float32)
    return Part(network, names.load(params, table, tensors, str(folder), sharding), config, tuple(notes))


def _abstract(network: Any, *shapes: tuple[int, ...], dtype: Any = jnp.float32, cond: Any = None) -> Any:
    inputs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.eval_shape(network.init, jax.random.key(0), *inputs, *([cond] if cond else []))["params"]


def text_unet(config: Mapping[str, Any]) -> tuple[UNet, dict[str, Any], Any, names.Table]:
    """A UNet2DConditionModel config -> our network, the full config, the parameters' shapes and their names.

    Raises:
      UserError: options that our network does not have, all of them.
    """
    kinds = ("UNet2DConditionModel", "FlaxUNet2DConditionModel")
    defaults = {**{option: choices[0] for option, choices in _UNET_ONLY.items()}, **_UNET}
    depth = config.get("transformer_layers_per_block")
    if isinstance(depth, list) and set(depth) == {1}:
        config = {**config, "transformer_layers_per_block": 1}
    c, problems = fill(config, kinds, defaults, _UNET_ONLY)
    channels, levels = _widths(c, problems)
    attends = _attends(c, levels, problems)
    heads = c["attention_head_dim"]  # which is what they call the number of heads
    heads = heads if isinstance(heads, list | tuple) else [heads] * levels
    if len(heads) != levels or not all(type(n) is int and n > 0 for n in heads):
        problems.append(f"attention_head_dim={c['attention_head_dim']!r} (only a number of heads, or one a level)")
    elif bad := levels and [w for w, n in zip(c["block_out_channels"], heads, strict=True) if w % n]:
        problems.append(f"attention_head_dim={c['attention_head_dim']!r} does not divide {bad} channels")
    whole = {name: c[name] for name in ("cross_attention_dim", "in_channels", "out_channels")}
    _refuse_unless_natural("UNet2DConditionModel", whole, problems)
    network = UNet(
        out_channels=c["out_channels"],
        channels=channels,
        channel_mults=tuple(width // channels for width in c["block_out_channels"]),
        blocks=c["layers_per_block"],
        attention_levels=tuple(i for i, attend in enumerate(attends) if attend),
        num_heads=tuple(heads),
        downsample_padding=("end", "both")[c["downsample_padding"]],
        norm_groups=c["norm_num_groups"],
        norm_eps=float(c["norm_eps"]),
        frequency_shift=c["freq_shift"],
    )
    side = 2 ** (levels - 1)
    cond = {"text": jax.ShapeDtypeStruct((1, 1, c["cross_attention_dim"]), jnp.float32)}
    if c["time_cond_proj_dim"]:
        cond["guidance"] = jax.ShapeDtypeStruct((1,), jnp.float32)
    params = _abstract(network, (1, side, side, c["in_channels"]), (1,), cond=cond)
    return network, c, params, names.diffusers_table(params, levels, text=True)


def autoencoder(config: Mapping[str, Any]) -> tuple[Autoencoder, dict[str, Any], Any, names.Table]:
    """An AutoencoderKL config, likewise."""
    defaults = {**{option: choices[0] for option, choices in _VAE_ONLY.items()}, **_VAE}
    c, problems = fill(config, ("AutoencoderKL", "FlaxAutoencoderKL"), defaults, _VAE_ONLY)
    channels, levels = _widths(c, problems)
    for option, only in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if c[option] not in ([only] * levels, (only,) * levels):
            problems.append(f"{option}={c[option]!r} (only {only}, one a width)")
    if not isinstance(c["scaling_factor"], int | float) or not c["scaling_factor"] > 0:
        problems.append(f"scaling_factor={c['scaling_factor']!r} (only a positive number)")
    whole = {name: c[name] for name in ("latent_channels", "in_channels", "out_channels")}
    _refuse_unless_natural("AutoencoderKL", whole, problems)
    network = Autoencoder(
        out_channels=c["out_channels"],
        latent_channels=c["latent_channels"],
        channels=channels,
        channel_mults=tuple(width // channels for width in c["block_out_channels"]),
        blocks=c["layers_per_block"],
        norm_groups=c["norm_num_groups"],
    )
    side = 2 ** (levels - 1)
    params = _abstract(network, (1, side, side, c["in_channels"]))
    return network, c, params, names.autoencoder_table(params, levels)


def text_encoder(config: Mapping[str, Any]) -> tuple[TextEncoder, dict[str, Any], Any, names.Table]:
    """A CLIPTextModel config, likewise."""
    given = {key: config[key] for key in _TEXT.keys() & config.keys()}
    c, problems = fill(given, ("CLIPTextModel",), _TEXT, _TEXT_ONLY)
    whole = {name: value for name, value in c.items() if name not in _TEXT_ONLY}
    _refuse_unless_natural("CLIPTextModel", whole, problems)
    if c["hidden_size"] % c["num_attention_heads"]:
        raise UserError(f"hidden_size={c['hidden_size']} is no multiple of its {c['num_attention_heads']} heads")
    network = TextEncoder(
        vocabulary=c["vocab_size"],
        max_tokens=c["max_position_embeddings"],
        features=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        hidden=c["intermediate_size"],
        activation=c["hidden_act"],
    )
    params = _abstract(network, (1, 1), dtype=jnp.int32)
    return network, c, params, names.text_encoder_table(params)


def _widths(c: Mapping[str, Any], problems: list[str]) -> tuple[int, int]:
    """The first width and the number of levels; adds to problems what our networks cannot be built with."""
    widths, groups, layers = c["block_out_channels"], c["norm_num_groups"], c["layers_per_block"]
    natural = isinstance(widths, list | tuple) and bool(widths) and all(type(n) is int and n > 0 for n in widths)
    if not natural:
        problems.append(f"block_out_channels={widths!r} (only a list of widths)")
        return 1, 0
    if bad := [width for width in widths if width % widths[0]]:
        problems.append(f"block_out_channels {bad} are no multiples of the first, {widths[0]}")
    if type(groups) is not int or groups < 1 or any(width % groups for width in widths):
        problems.append(f"norm_num_groups={groups!r} does not divide every one of {list(widths)}")
    if type(layers) is not int or not 1 <= layers <= 64:
        problems.append(f"layers_per_block={layers!r} (only one number for all)")
    return widths[0], len(widths)


def _attends(c: Mapping[str, Any], levels: int, problems: list[str]) -> tuple[bool, ...]:
    both = (c["down_block_types"], c["up_block_types"])
    down, up = (list(kinds) if isinstance(kinds, list | tuple) else [kinds] for kinds in both)
    up = up[::-1]
    attends = [kind == "CrossAttnDownBlock2D" for kind in down]
    same = attends == [kind == "CrossAttnUpBlock2D" for kind in up]
    known = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    if not same or any(kind not in known for kind in down + up) or len(down) != levels:
        problems.append(
            f"blocks {down} and {up[::-1]} (only CrossAttnDownBlock2D and DownBlock2D, one a width, and the same up)"
        )
    return tuple(attends)


def _refuse_unless_natural(kind: str, whole: Mapping[str, Any], problems: list[str]) -> None:
    problems += [f"{k}={v!r} (only a natural number)" for k, v in whole.items() if type(v) is not int or v < 1]
    if problems:
        raise UserError(f"this {kind} has what jaxdiff does not: {'; '.join(problems)}")
