"""Weights of other projects as runs of ours, and back: what `jaxdiff convert` does."""

import dataclasses
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff import parallel
from jaxdiff.assembly.recipe import make_update
from jaxdiff.config import Config, Data, Diffusion, Model, Sampling, Train, make_schedule, validate
from jaxdiff.config.files import to_json
from jaxdiff.errors import UserError
from jaxdiff.interop import Imported, export_pipeline, names, read_openai, read_scheduler, read_unet
from jaxdiff.interop.export import refuse_unmapped, write_card
from jaxdiff.interop.openai import openai_diffusion, unknown_network
from jaxdiff.interop.schedulers import Scheduler, refuse_other_counts, scheduler_file, scheduler_from_config
from jaxdiff.interop.weights import read_file
from jaxdiff.job.export import check_free, export_model
from jaxdiff.job.trained import load
from jaxdiff.pictures import write_whole
from jaxdiff.training.checkpoint_files import directory_of
from jaxdiff.training.checkpoints import Checkpoints
from jaxdiff.training.state import init_state

STEPS = {"plms": 50, "ddim": 50, "dpmpp_2m": 20, "dpmpp_2m_sde": 20, "dpmpp_3m": 20, "unipc": 20}  # ddpm takes all


def import_run(source: Path, workdir: Path, null_class: bool, project: str | None, flags: str) -> list[str]:
    """Makes a workdir of another project's model; returns what to say of it.

    Raises:
      UserError: the model does not fit ours, or the workdir is taken; nothing was written.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"{workdir} is not empty; choose a new workdir")
    directory_of(workdir)  # refuses a name that cannot be written to, before anything is read
    place = _split_over_devices()
    if not source.exists():
        link = " (a link to nowhere)" if source.is_symlink() else ""
        raise UserError(f"{source} does not exist{link}; give a diffusers folder, or a .pt or .safetensors file")
    if project is not None:
        given = _flags(flags)
        imported = read_openai(source, given, project=project, null_class=null_class, sharding=place)
        scheduler = scheduler_from_config(openai_diffusion(given, project))
    elif source.is_dir():
        imported, scheduler = read_unet(source, null_class=null_class, sharding=place), _scheduler(source)
        refuse_other_counts(scheduler)
    else:
        raise UserError(f"{source} {unknown_network(read_file(source))}")
    config, notes = _config(imported, scheduler, workdir)
    broken = [path for path, leaf in names.leaf_paths(imported.params) if not _is_finite(leaf)]
    if broken:
        raise UserError(f"{source} holds values that are not finite, in {', '.join(broken)}")
    state = init_state(imported.params, make_update(config.optimizer, config.train.steps, config.model)[0])
    about = {"shape": list(imported.image_shape), "num_classes": config.model.num_classes, "fingerprint": None}
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, {**about, "source": str(source), "skipped": 0, "time": time.time()}, wait=True)
    write_whole(workdir / "config.py", _as_python(config, source).encode())
    write_whole(workdir / "config.json", to_json(config).encode())
    count = sum(leaf.size for leaf in jax.tree.leaves(imported.params))
    return [*(f"note: {note}" for note in notes), f"{count:,} parameters of {source} in {workdir}"]


def _split_over_devices() -> Callable[[str, Any], Any]:
    """(leaf name, ShapeDtypeStruct) -> its sharding: as a run of parallel.fsdp = all devices has it."""
    mesh = parallel.make_mesh(jax.device_count())
    return lambda name, leaf: parallel.state_shardings({"params": {name: leaf}}, mesh)["params"][name]


def _is_finite(leaf: jax.Array) -> bool:
    return all(np.isfinite(shard.data).all() for shard in leaf.addressable_shards)


def _scheduler(source: Path) -> Scheduler:
    if scheduler_file(source):
        return read_scheduler(source)
    assumed = scheduler_from_config({"_class_name": "DDPMScheduler"})
    note = (
        f"no scheduler_config.json in {source} or above it says how the network was trained: assumed as DDPM, "
        "betas linear in 0.0001..0.02, 1000 steps, noise predicted; if not so, put its folder scheduler there"
    )
    return dataclasses.replace(assumed, notes=(note,))


def _flags(text: str) -> dict[str, str]:
    """ "--image_size 64 --class_cond=True" -> {"image_size": "64", "class_cond": "True"}."""
    try:
        words = [part for word in shlex.split(text) for part in word.split("=", 1)]
    except ValueError as error:  # a quotation without its end
        raise UserError(f"--flags {text!r}: {str(error).lower()}") from None
    if len(words) % 2 or any(not name.startswith("--") for name in words[::2]):
        raise UserError("--flags must be like --flags '--image_size 64 --class_cond True'")
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def _config(imported: Imported, scheduler: Scheduler, workdir: Path) -> tuple[Config, list[str]]:
    """The config of the run, and what it cannot say."""
    h, w, channels = imported.image_shape
    fields = dict(imported.fields)
    if (outputs := fields.pop("out_channels")) != channels:
        raise UserError(f"a run predicts as many channels as its images have: {channels}, not {outputs}")
    diffusion = dataclasses.replace(_diffusion(scheduler), class_dropout=0.1 if _guided(imported) else 0.0)
    sampling, notes = _sampling(scheduler)
    config = Config(
        workdir=str(workdir),
        data=Data(name="folder", resize=h if h == w else None),
        model=Model(**fields),
        diffusion=diffusion,
        train=Train(batch_size=16),
        sampling=sampling,
    )
    return validate(config), [*imported.notes, *scheduler.notes, *notes]


def _guided(imported: Imported) -> bool:
    """Whether the last row of the class table was trained to mean "no class"."""
    return bool(imported.fields["num_classes"]) and bool(
        np.any(np.asarray(imported.params["embedding"]["classes"]["embedding"][-1]))
    )


def _diffusion(scheduler: Scheduler) -> Diffusion:
    """The Diffusion whose betas are theirs."""
    betas = scheduler.schedule.betas
    kinds = ("linear", "scaled_linear", "cosine", "sigmoid")
    for kind in kinds:
        for zero_snr in (False, True):
            diffusion = dataclasses.replace(
                Diffusion(),
                schedule=kind,
                num_steps=scheduler.config["num_train_timesteps"],
                zero_snr=zero_snr,
                prediction=scheduler.prediction,
            )
            try:
                same = make_schedule(diffusion).betas
            except ValueError:  # betas that reach 1 with so few steps
                continue
            if betas is not None and same is not None and np.allclose(same, betas, rtol=1e-6, atol=0):
                return diffusion
    raise UserError(
        f"the scheduler's betas are those of none of a run's schedules ({', '.join(kinds)}); use "
        "jaxdiff.interop.read_unet and read_scheduler in Python, which take any"
    )


def _sampling(scheduler: Scheduler) -> tuple[Sampling, list[str]]:
    """Their way to sample as a run's default, and where it differs."""
    c, notes = scheduler.config, []
    method, top = scheduler.method, c["num_train_timesteps"]
    steps = min(STEPS.get(method, top), top)
    spacing = "trailing" if steps == top else c["timestep_spacing"]  # all of the steps, whatever the spacing
    if c.get("use_karras_sigmas"):
        spacing = "karras"
        notes.append("use_karras_sigmas: the run's steps go to the nearest whole ones")
    elif scheduler.walk is not scheduler.schedule and spacing == "linspace":
        notes.append("linspace: the run's steps are whole ones, theirs lie between")
    if method in ("dpmpp_3m", "unipc"):
        notes.append(f"{method}: the run's has its own coefficients and order, which falls before leaps")
    if c["steps_offset"] and spacing == "leading":
        notes.append(f"steps_offset={c['steps_offset']}: the run's leading steps have no offset")
    if scheduler.last_entry:
        notes.append(
            "the last step goes to the image (t = 0), theirs to t = 1/T (set_alpha_to_one or final_sigmas_type)"
        )
    threshold = "dynamic" if c.get("thresholding") else "static" if c.get("clip_sample") else "none"
    if threshold == "static" and (c["clip_sample_range"] != 1 or method == "ddim"):
        notes.append("clip_sample: x_0 is clipped to [-1, 1], and the noise follows from it (theirs stays as it was)")
    if threshold == "dynamic":
        notes.append("thresholding: to the percentile 0.995, and the noise follows from x_0")
    variance = scheduler.options.get("variance", "small") if method == "ddpm" else "small"
    fields = {"sampler": method, "steps": steps, "variance": variance, "spacing": spacing, "threshold": threshold}
    eta = scheduler.options.get("eta") or None
    return dataclasses.replace(Sampling(), **fields, eta=eta), notes


def _as_python(config: Config, source: Path) -> str:
    """A config file for train.py: what differs from the defaults."""
    groups = []
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), getattr(Config(), field.name)
        if dataclasses.is_dataclass(value) and value != default:
            parts = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
            inside = ", ".join(f"{name}={part!r}" for name, part in parts if part != getattr(default, name))
            groups.append(f"    {field.name}={type(value).__name__}({inside}),\n")
        elif value != default:
            groups.append(f"    {field.name}={value!r},\n")
    imports = "Config, Data, Diffusion, Model, Sampling, Train"
    about = f"{source.name}, imported; `train.py {config.workdir}/config.py --data.path PHOTOS` trains on."
    return f"{about!r}\n\nfrom jaxdiff.config import {imports}\n\nconfig = Config(\n{''.join(groups)})\n"


def export_run(workdir: Path, folder: Path, to: str) -> list[str]:
    """Writes the EMA parameters of a run in another form; returns what to say of it.

    Raises:
      UserError: there is no run, the folder is taken, or it has no such form; nothing was written.
    """
    check_free(folder)
    model = load(workdir)
    if to == "safetensors":
        return [f"{export_model(model, folder, picture=False)}, of {workdir}"]
    config, shape = model.config, model.image_shape
    refuse_unmapped(model.recipe)
    params = jax.tree.map(np.asarray, model.params)
    fields = {"out_channels": shape[-1], **vars(config.model)}
    export_pipeline(fields, params, shape, make_schedule(config.diffusion), config.diffusion.prediction, folder)
    done = f"{type(config.model).__name__} of step {model.step} (EMA) of {workdir} in {folder}"
    if not config.model.num_classes:
        return [done]
    write_card(folder, config.model.num_classes, config.sampling.guidance, shape)
    return [f"note: DDPMPipeline draws it without classes; {folder / 'README.md'} says how to draw with them", done]
