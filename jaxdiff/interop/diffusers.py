"""diffusers' UNet2DModel: its config as the fields of our U-Net, its weights as our parameters.

Their network sees the integer step n = k - 1 where ours sees 1000 t = k. The difference is folded into the first
dense layer of the time embedding (`names.shift_time`), so that what is imported is an ordinary network
of ours (export.py is the way back).
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop import names
from jaxdiff.interop.options import check_types, fill
from jaxdiff.interop.schedulers import read_json
from jaxdiff.interop.weights import DIFFUSERS, read_weights, unwrapped
from jaxdiff.models import UNet, check

TIME_KERNEL = ("embedding", "dense1", "kernel")
ANCHOR = "time_embedding.linear_1.weight"
"""A tensor that every U-Net of theirs has, whatever stands before its name."""

_AVERAGED = ("unet_ema", "ema_unet", "ema_model", "model_ema", "ema")  # folders that trainers keep averages in
_OTHER_FOLDERS = {  # a name in it -> what a folder is
    "random_states_0.pkl": "accelerate's checkpoint of a network that it has no config.json of: copy that of the run's "
    "unet there (it is in the pipeline that the run saves), and convert again",
    ".metadata": "a distributed checkpoint of torch: join it with "
    "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt`, and give the file",
    "latest": "a checkpoint of DeepSpeed: join it with its `zero_to_fp32.py`, and give the file",
    "_CHECKPOINT_METADATA": "a checkpoint of Orbax: sample.py and train.py take the workdir of its run",
    "manifest.ocdbt": "a checkpoint of Orbax: sample.py and train.py take the workdir of its run",
    "saved_model.pb": "a SavedModel of TensorFlow, which is not read",
    "config.py": "a run's workdir: sample.py and train.py take it as it is, and --to diffusers makes a folder of it",
}

_DEFAULTS: dict[str, Any] = {  # of UNet2DModel 0.42; a file may leave out what it does not change
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
_ONLY: dict[str, tuple] = {  # what our U-Net has no other form of
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "freq_shift": (0, 1),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
_DOWN = {"DownBlock2D": (False, "conv"), "AttnDownBlock2D": (True, ""), "ResnetDownsampleBlock2D": (False, "resnet")}
_UP = {"UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, ""), "ResnetUpsampleBlock2D": (False, "resnet")}


@dataclasses.dataclass(frozen=True)
class Imported:
    """A network of another project as ours.

    Attributes:
      fields: of `jaxdiff.models.UNet` (and of config.Model, `out_channels` aside).
      params: its parameters.
      image_shape: (h, w, c) that it was made for.
      notes: what the reader of the weights should know, a line each.
    """

    fields: dict[str, Any]
    params: Any
    image_shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()

    @property
    def network(self) -> UNet:
        """The module that the parameters are of."""
        return UNet(**self.fields)


def read_unet(folder: os.PathLike | str, *, null_class: bool = False, sharding: Any = None) -> Imported:
    """A UNet2DModel folder, or a pipeline's or a trainer's folder with one in its `unet_ema` or `unet`.

    Args:
      folder: holds config.json and the weights: safetensors (one file or several) or a .bin; see `read_weights`.
      null_class: whether the last of their classes means "no class", which guidance needs. Otherwise a row of
        zeros is added for it.
      sharding: see `names.load`.

    Raises:
      UserError: no such model, options that our U-Net does not have, tensors that do not fit; all of them.
    """
    notes: list[str] = []
    folder = _network_folder(Path(folder), notes)
    config = read_json(folder / "config.json")
    if str(config.get("_class_name")).endswith("UNet2DConditionModel"):
        raise UserError(
            f"{folder} is a {config['_class_name']}, the network of a text-to-image pipeline, which is not a run: "
            "`sample.py PIPELINE --prompt` draws from the whole folder, jaxdiff.interop.read_text_unet reads this one"
        )
    fields, shape = unet_fields(config, null_class=null_class)
    network = UNet(**fields)
    abstract = abstract_params(network, shape)  # pyright: ignore[reportArgumentType]  # Linen modules are frozen
    table = names.diffusers_table(abstract, len(fields["channel_mults"]))
    tensors = unwrapped(read_weights(folder, DIFFUSERS, notes), ANCHOR, str(folder), notes)
    if fields["num_classes"] and not null_class:
        key = "class_embedding.weight"
        if key in tensors:
            tensors[key] = np.pad(np.asarray(tensors[key], np.float32), ((0, 1), (0, 0)))
        notes.append(
            f"classes 0..{fields['num_classes'] - 1}, none of them 'no class': guidance needs one (--null-class)"
        )
    params = names.load(abstract, table, tensors, str(folder), sharding)
    flip = {**_DEFAULTS, **config}["flip_sin_to_cos"]
    replace_time_kernel(params, lambda k: names.shift_time(k, 1.0, fields["frequency_shift"], cos_first=flip))
    return Imported(fields, params, shape, tuple(notes))


def _network_folder(folder: Path, notes: list[str]) -> Path:
    """The folder of the network itself: of an average, where there is one.

    Raises:
      UserError: there is none; says what is there instead.
    """
    snapshots = sorted(folder.glob("snapshots/*/"))  # of the hub's cache
    if len(snapshots) == 1:
        folder = snapshots[0]
    inside = [name for name in (*_AVERAGED, "unet") if (folder / name / "config.json").is_file()]
    if inside:
        if inside[0] != "unet":
            raw = f", not {inside[-1]}" if inside[-1] == "unet" else ""
            notes.append(f"averaged weights: those of {folder / inside[0]}{raw}")
        return folder / inside[0]
    if (folder / "config.json").is_file() and not (folder / "config.py").is_file():
        beside = [name for name in _AVERAGED if (folder.parent / name / "config.json").is_file()]
        if folder.name in _AVERAGED:
            notes.append(f"averaged weights: those of {folder}")
        elif folder.name == "unet" and beside:
            notes.append(f"raw weights: the averaged ones are in {folder.parent / beside[0]}")
        return folder
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    if len(snapshots) > 1:
        raise UserError(f"{folder} is of a hub's cache: give one of {', '.join(map(str, snapshots[:4]))}")
    checkpoints = [path for path in folder.glob("checkpoint-*/") if path.name[11:].isdigit()]
    if checkpoints:
        newest = max(checkpoints, key=lambda path: int(path.name[11:]))
        raise UserError(f"{folder} holds no network, but a trainer's checkpoints: give one, such as {newest}")
    names = {path.name for path in folder.iterdir()}
    for name, what in _OTHER_FOLDERS.items():
        if name in names:
            raise UserError(f"{folder} is {what}")
    listed = ", ".join(sorted(names)[:20])
    raise UserError(
        f"{folder / 'config.json'} is missing, nor is there a unet with one; there is {listed or 'nothing'}"
    )


@functools.lru_cache(maxsize=16)  # tracing a network takes seconds
def abstract_params(network: UNet, shape: tuple[int, int, int]) -> Any:
    """The parameter tree of a network for images of that shape, as ShapeDtypeStructs."""
    x, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    cond = jax.ShapeDtypeStruct((1,), jnp.int32) if network.num_classes else None
    return jax.eval_shape(network.init, jax.random.key(0), x, t, cond)["params"]


def replace_time_kernel(params: Any, change: Any) -> None:
    """Changes, in place of the tree, the first kernel of the time embedding; it stays where it lies."""
    dense = params["embedding"]["dense1"]
    kernel = change(np.asarray(dense["kernel"]))
    placed = isinstance(dense["kernel"], jax.Array)
    dense["kernel"] = jax.device_put(kernel, dense["kernel"].sharding) if placed else kernel


def unet_fields(config: Mapping[str, Any], *, null_class: bool = False) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """A UNet2DModel config -> (fields of our UNet, image shape).

    Raises:
      UserError: options that our U-Net does not have, all of them.
    """
    c, problems = fill(config, ["UNet2DModel", "UNetUnconditionalModel"], _DEFAULTS, _ONLY)
    check_types(c, _DEFAULTS, _ONLY)
    channels = c["block_out_channels"]
    if c["time_embedding_dim"] not in (None, 4 * channels[0]):
        problems.append(f"time_embedding_dim={c['time_embedding_dim']} (only {4 * channels[0]})")
    if bad := [width for width in channels if width % channels[0]]:
        problems.append(f"block_out_channels {bad} are no multiples of the first, {channels[0]}")
    mid_groups = c["norm_num_groups"] if c["resnet_time_scale_shift"] == "default" else None
    mid_groups = c["attn_norm_num_groups"] or mid_groups
    if mid_groups != c["norm_num_groups"]:
        problems.append(
            f"attn_norm_num_groups={c['attn_norm_num_groups']} gives the middle's attention "
            f"{f'{mid_groups} groups' if mid_groups else 'no norm'} (only {c['norm_num_groups']}, norm_num_groups)"
        )
    attends, resample = _block_types(c, problems)
    sizes = c["sample_size"] if isinstance(c["sample_size"], list | tuple) else [c["sample_size"]] * 2
    if not all(type(size) is int and size > 0 for size in sizes) or len(sizes) != 2:
        problems.append(f"sample_size={c['sample_size']!r} (a size is needed: write it into config.json)")
    if problems:
        raise UserError(f"this UNet2DModel has what jaxdiff's U-Net does not: {'; '.join(problems)}")
    classes = c["num_class_embeds"]
    fields = {
        "out_channels": c["out_channels"],
        "channels": channels[0],
        "channel_mults": tuple(width // channels[0] for width in channels),
        "blocks": c["layers_per_block"],
        "attention_resolutions": tuple(sizes[0] >> i for i, attend in enumerate(attends) if attend),
        "head_dim": c["attention_head_dim"],
        "dropout": float(c["dropout"]),
        "num_classes": 0 if classes is None else classes - null_class,
        "time_injection": {"default": "add", "scale_shift": "scale_shift"}[c["resnet_time_scale_shift"]],
        "resample": {"conv": "conv", "resnet": "resblock"}[resample],
        "downsample_padding": ("end", "both")[c["downsample_padding"]],
        "norm_groups": c["norm_num_groups"],
        "norm_eps": float(c["norm_eps"]),
        "frequency_shift": c["freq_shift"],
    }
    shape = (sizes[0], sizes[1], c["in_channels"])
    try:
        check(UNet(**fields), shape)
    except ValueError as error:
        raise UserError(f"config.json does not fit itself: {error}") from None
    return fields, shape


def _block_types(c: Mapping[str, Any], problems: list[str]) -> tuple[list[bool], str]:
    """Which levels attend, and how they are joined ("conv" or "resnet"); adds to problems what has no equal."""
    down, up = c["down_block_types"], c["up_block_types"][::-1]
    foreign = [kind for kind in down if kind not in _DOWN] + [kind for kind in up if kind not in _UP]
    if foreign:
        problems.append(f"blocks {', '.join(dict.fromkeys(foreign))} (only {', '.join([*_DOWN, *_UP])})")
        return [], "conv"
    if len(down) != len(up) or len(down) != len(c["block_out_channels"]):
        problems.append("down_block_types, up_block_types and block_out_channels of different lengths")
        return [], "conv"
    attends = [_DOWN[kind][0] for kind in down]
    if attends != [_UP[kind][0] for kind in up]:
        problems.append(f"attention on the way down in {down}, but on the way up in {up}, of the same levels")
    # of the last level nothing is resampled
    ways = {_DOWN[kind][1] or c["downsample_type"] for kind in down[:-1]}
    ways |= {_UP[kind][1] or c["upsample_type"] for kind in up[1:]}
    ways = ways or {"conv"}
    if len(ways) > 1 or not ways <= {"conv", "resnet"}:
        problems.append(
            f"levels joined by {' and '.join(map(repr, sorted(ways, key=str)))} (only all conv or all resnet)"
        )
        return attends, "conv"
    return attends, ways.pop()
