"""improved-diffusion's and guided-diffusion's U-Nets: their flags as our fields, their .pt as our parameters.

A .pt holds tensors and no config: the flags it was trained with have to be given, as their READMEs list them.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop import names
from jaxdiff.interop.diffusers import ANCHOR as DIFFUSERS_ANCHOR
from jaxdiff.interop.diffusers import Imported, abstract_params, replace_time_kernel
from jaxdiff.interop.weights import read_file, unwrapped
from jaxdiff.models import UNet, check

_IMPROVED: dict[str, Any] = {  # defaults of improved-diffusion's script_util.py
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "attention_resolutions": "16,8",
    "dropout": 0.0,
    "learn_sigma": False,
    "class_cond": False,
    "use_scale_shift_norm": True,
    "diffusion_steps": 1000,
    "rescale_timesteps": True,
}
_GUIDED: dict[str, Any] = {  # and of guided-diffusion's
    **_IMPROVED,
    "channel_mult": "",
    "num_head_channels": -1,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "rescale_timesteps": False,
}
FLAGS = {"improved-diffusion": _IMPROVED, "guided-diffusion": _GUIDED}
# Not of the network: how it is trained, sampled or computed.
_OTHERS = (
    *("sigma_small", "noise_schedule", "timestep_respacing", "use_kl", "predict_xstart", "use_checkpoint"),
    *("rescale_learned_sigmas", "use_fp16"),
)
_MULTS = {512: "0.5,1,1,2,2,4,4", 256: "1,1,2,2,4,4", 128: "1,1,2,3,4", 64: "1,2,3,4", 32: "1,2,2,2"}
CLASSES = 1000  # both know ImageNet only; their forks have their own, which a file tells
ANCHOR = "time_embed.0.weight"  # which every U-Net of theirs has


def read_openai(
    path: os.PathLike | str, flags: Mapping[str, Any], *, project: str, null_class: bool = False, sharding: Any = None
) -> Imported:
    """A checkpoint (.pt, or its tensors as .safetensors) of improved-diffusion or guided-diffusion.

    Their learned variance (learn_sigma) is left out: of the output the first half, the noise, is kept. Whether there
    are classes or a learned variance, and how many classes, is the file's to say where the flags do not.

    Args:
      path: the EMA's file, as published; or a folder of them, of which the newest average is taken.
      flags: MODEL_FLAGS and DIFFUSION_FLAGS of their README, by name, as text or as values.
      project: "improved-diffusion" or "guided-diffusion".
      null_class: whether the last class means "no class"; otherwise a row of zeros is added for it.
      sharding: see `names.load`.

    Raises:
      UserError: unknown flags, or tensors that do not fit them; all of them.
    """
    openai_fields(flags, project)  # before anything is read
    notes: list[str] = []
    path = _newest_average(Path(path), notes)
    tensors = unwrapped(read_file(path), ANCHOR, str(path), notes)
    if any(name.endswith(DIFFUSERS_ANCHOR) for name in tensors):
        raise UserError(f"{path} {unknown_network(tensors)}")
    process = {"diffusion_steps": 1000, "noise_schedule": "linear", "predict_xstart": False}
    if unsaid := [f"--{flag} {value}" for flag, value in process.items() if flag not in flags]:
        notes.append(f"the flags do not say {', '.join(unsaid)}: assumed, as {project} does")
    flags = dict(flags)
    table, out = tensors.get("label_emb.weight"), tensors.get("out.2.bias")
    for flag, has in (("class_cond", table is not None), ("learn_sigma", out is not None and out.shape == (6,))):
        if has and flag not in flags:
            flags[flag] = True
            notes.append(f"{flag}: the flags do not say so, the tensors do")
    fields, shape, c = openai_fields(flags, project)
    if c["class_cond"] and table is not None:
        fields["num_classes"] = len(table) - null_class
        if not null_class:
            tensors["label_emb.weight"] = np.pad(np.asarray(table, np.float32), ((0, 1), (0, 0)))
            notes.append(
                f"classes 0..{len(table) - 1}, none of them 'no class': guidance without a classifier needs one "
                "(--null-class)"
            )
    network = UNet(**fields)
    abstract = abstract_params(network, shape)  # pyright: ignore[reportArgumentType]  # Linen modules are frozen
    heads = _heads(fields)
    where = names.openai_table(abstract, heads, bool(c.get("use_new_attention_order")))
    if c["learn_sigma"]:
        for name in ("out.2.weight", "out.2.bias"):
            if name in tensors and tensors[name].shape[0] == 2 * shape[-1]:
                tensors[name] = tensors[name][: shape[-1]]
        notes.append("learn_sigma: the learned variance is left out; use ddim, or ddpm with a fixed variance")
    params = names.load(abstract, where, tensors, str(path), sharding)
    # They see k - 1 of T, scaled to 1000 if rescale_timesteps; we see 1000 k/T. Cosines come first.
    shift = 1000.0 / c["diffusion_steps"]
    replace_time_kernel(params, lambda kernel: names.shift_time(kernel, shift, 0, cos_first=True))
    return Imported(fields, params, shape, tuple(notes))


def unknown_network(tensors: Mapping[str, Any]) -> str:
    """What a file's tensors are of, and what to do, to follow its name in a message."""
    if any(name.endswith(DIFFUSERS_ANCHOR) for name in tensors):
        return "is a network of diffusers: give the folder that it lies in, with the config.json of its unet"
    some = ", ".join(name[:80] for name in [*tensors][:3]) + (", ..." if len(tensors) > 3 else "")
    known = any(name.endswith(ANCHOR) for name in tensors)
    what = "says nothing of its network" if known else f"is of no network that is known here (it has {some})"
    return f"{what}: add --project ({', '.join(FLAGS)}) and --flags" + ("" if known else ", if one of these wrote it")


def _newest_average(path: Path, notes: list[str]) -> Path:
    """Of a folder ema_RATE_STEP.pt of the last step, and the largest rate; else model_STEP.pt. A file: itself."""
    folder = path if path.is_dir() else path.parent
    matches = [m for file in folder.iterdir() if (m := re.fullmatch(r"(ema_([\d.]+)_|model_?)(\d+)\.pt", file.name))]
    averages = sorted((int(m[3]), float(m[2]), m[0]) for m in matches if m[2])
    if path.is_dir():
        candidates = averages or sorted((int(m[3]), 0.0, m[0]) for m in matches)
        if not candidates:
            raise UserError(f"{path} has no ema_RATE_STEP.pt or modelSTEP.pt: give the file itself")
        path = path / candidates[-1][2]
        notes.append(f"{'averaged' if averages else 'raw'} weights: {path.name}")
    elif any(m[0] == path.name and not m[2] for m in matches) and averages:
        notes.append(f"raw weights: averaged ones are beside them, such as {averages[-1][2]}")
    return path


def _heads(fields: Mapping[str, Any]) -> Any:
    return lambda width: fields["num_heads"] or width // (fields["head_dim"] or width)


def openai_fields(
    flags: Mapping[str, Any], project: str
) -> tuple[dict[str, Any], tuple[int, int, int], dict[str, Any]]:
    """Their flags -> (fields of our UNet, image shape, all flags with their defaults).

    Raises:
      UserError: an unknown flag, or one that our U-Net has no form of.
    """
    if project not in FLAGS:
        raise UserError(f"project {project!r} is not imported; choose one of {', '.join(FLAGS)}")
    defaults = FLAGS[project]
    if unknown := sorted(flags.keys() - defaults.keys() - set(_OTHERS)):
        raise UserError(f"{project} has no flags {', '.join(unknown)}; it has {', '.join([*defaults, *_OTHERS])}")
    c = {name: _value(name, flags[name], value) if name in flags else value for name, value in defaults.items()}
    size, steps = c["image_size"], c["diffusion_steps"]
    problems = []
    if size not in _MULTS and not c.get("channel_mult"):
        problems.append(f"image_size={size} without channel_mult (only {', '.join(map(str, _MULTS))})")
    if steps < 1:
        problems.append(f"diffusion_steps={steps} (only 1 or more)")
    if steps != 1000 and not c["rescale_timesteps"]:
        problems.append(f"diffusion_steps={steps} without rescale_timesteps (only 1000)")
    if c["num_heads_upsample"] not in (-1, c["num_heads"]):
        problems.append(f"num_heads_upsample={c['num_heads_upsample']} (only num_heads, {c['num_heads']})")
    if problems:
        raise UserError(f"{project} can do what jaxdiff's U-Net cannot: {'; '.join(problems)}")
    mults = _listed("channel_mult", c.get("channel_mult") or _MULTS[size])
    if project == "improved-diffusion" and size == 256:
        mults = [1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    channels = c["num_channels"]
    if any(m % 1 for m in mults):
        raise UserError(f"{project} can do what jaxdiff's U-Net cannot: channel_mult={mults} (only whole numbers)")
    head_dim = c.get("num_head_channels", -1)
    fields = {
        "out_channels": 3,
        "channels": channels,
        "channel_mults": tuple(int(m) for m in mults),
        "blocks": c["num_res_blocks"],
        "attention_resolutions": tuple(int(r) for r in _listed("attention_resolutions", c["attention_resolutions"])),
        "head_dim": None if head_dim == -1 else head_dim,
        "num_heads": c["num_heads"] if head_dim == -1 else None,
        "dropout": c["dropout"],
        "num_classes": CLASSES if c["class_cond"] else 0,
        "time_injection": "scale_shift" if c["use_scale_shift_norm"] else "add",
        "resample": "resblock" if c.get("resblock_updown") else "conv",
        "downsample_padding": "both",
        "norm_groups": 32,
        "norm_eps": 1e-5,
        "frequency_shift": 0,
    }
    try:
        check(UNet(**fields), (size, size, 3))
    except ValueError as error:
        raise UserError(f"these flags do not fit each other: {error}") from None
    return fields, (size, size, 3), c


def openai_diffusion(flags: Mapping[str, Any], project: str) -> dict[str, Any]:
    """The process of their flags as a scheduler_config of diffusers: what `schedulers.scheduler_from_config` takes."""
    _, _, c = openai_fields(flags, project)
    kind = str(flags.get("noise_schedule", "linear"))
    steps = c["diffusion_steps"]
    beta_schedules = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    if kind not in beta_schedules:
        raise UserError(f"flag noise_schedule must be one of {', '.join(beta_schedules)}")
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": steps,
        "beta_schedule": beta_schedules[kind],
        "beta_start": 1e-4 * 1000 / steps,
        "beta_end": 0.02 * 1000 / steps,
        "prediction_type": "sample"
        if _value("predict_xstart", flags.get("predict_xstart", False), False)
        else "epsilon",
        "variance_type": "fixed_small"
        if _value("sigma_small", flags.get("sigma_small", False), False)
        else "fixed_large",
        "timestep_spacing": "linspace",
    }


def _listed(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if math.isfinite(float(part))]
    except ValueError:
        raise UserError(f"flag {name} must be like 1,2,4, not {text[:80]!r}") from None


def _value(name: str, value: Any, default: Any) -> Any:
    """A flag as its default's type, from text as their command line takes it."""
    if isinstance(value, str) and not isinstance(default, str):
        try:
            value = (
                {"true": True, "false": False}.get(value.lower(), None)
                if isinstance(default, bool)
                else json.loads(value)
            )
        except ValueError:
            value = None
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise UserError(f"flag {name} must be like {default!r}")
    return value
