"""The parts of a training run: what a config comes to, once and here, for its data and its devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import parallel
from jaxdiff.assembly.recipe import make_recipe, make_setting, make_update, open_data, user_errors
from jaxdiff.assembly.training_program import Program, example
from jaxdiff.config import Config, Data, Sampling, Train, flat
from jaxdiff.config.files import read_run
from jaxdiff.data.records import Numbering
from jaxdiff.data.sources import Source
from jaxdiff.diffusion import Recipe
from jaxdiff.errors import UserError
from jaxdiff.evaluation.extractors import digest
from jaxdiff.models import DiT
from jaxdiff.objectives import Objective, ObjectiveOptions, Setting
from jaxdiff.schema import encode
from jaxdiff.training.checkpoints import restore


class Assembly(NamedTuple):
    """What a training run is made of; what is below takes these parts, and sees no config.

    Attributes:
      source: the data, or what is known of it.
      reopen: fields of `config.Data` -> the data opened again, as the run's but for them.
      recipe: the model.
      setting: what its objective is made of.
      objective: Setting -> Objective, with the run's options.
      program: the training step, which train.py runs and the plan compiles.
      plain: () -> the same without rematerialisation: its arithmetic is the network's own.
      learning_rate: of update n = 0, 1, ...
      seed: of the run.
      init: whose weights a new run begins with, and which of them.
      data: settings of the data.
      train: of the loop.
      sampling: of the pictures.
      config_json: what the file says: the config, with the digests of what it takes from other runs.
    """

    source: Any
    reopen: Callable[..., Source]
    recipe: Recipe
    setting: Setting
    objective: Callable[[Setting], Objective]
    program: Program
    plain: Callable[[], Program]
    learning_rate: Callable[[Any], Any]
    seed: int
    init: tuple[str, str]
    data: Data
    train: Train
    sampling: Sampling
    config_json: dict[str, Any]


def assemble(
    config: Config,
    source: Any = None,
    devices: Sequence[Any] | None = None,
    numbering: Numbering = "natural",
) -> Assembly:
    """The parts of a training run; nothing is computed yet.

    Args:
      config: valid.
      source: the data, or what has the shape and num_classes of it; opened as the config says unless given.
      devices: all of `jax.devices()` unless given.
      numbering: of class folders, see `Numbering`.

    Raises:
      UserError: the config does not fit the data or the devices.
    """
    reopen = functools.partial(open_data, config, numbering)
    source = reopen() if source is None else source
    devices = jax.devices() if devices is None else devices
    recipe = make_recipe(config, source.shape, {"captions": getattr(source, "captions", ())})
    setting = make_setting(config, recipe)
    optimizer, learning_rate = make_update(config.optimizer, config.train.steps, config.model)
    check_fit(config, recipe, source.num_classes, len(devices))
    mesh = parallel.make_mesh(config.parallel.fsdp, devices, config.parallel.tensor)
    loaded = {name: _average(flat(config), Path(run)) for name, run in config.objective.runs().items()}
    config = dataclasses.replace(config, objective=_noted(config.objective, loaded))
    start = loaded.pop("start", None)

    def make_params(key: jax.Array) -> Any:
        params = None if start is None else jax.tree.map(jnp.asarray, start)
        if start is None or recipe.extra_cond:
            fresh = recipe.network.init(key, *example(recipe))["params"]
            params = fresh if start is None else _with(fresh, params)
        return params

    def plain() -> Program:
        network = dataclasses.replace(config.model, remat=False)
        return assemble(dataclasses.replace(config, model=network), source, devices).program

    size = config.train.batch_size
    rows = jax.ShapeDtypeStruct((size,), jnp.int32)
    batch = {"image": jax.ShapeDtypeStruct((size, *source.shape), jnp.uint8), "label": rows, "row": rows}
    if recipe.conditioner.tokenize is not None:
        tokens = {name: table for name, table in recipe.conditioner.tokenize([""]).items() if name != "cut"}
        batch |= {name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for name, x in tokens.items()}
    with user_errors():
        objective = config.objective.make(setting)
    how = {"seed": config.seed, "frozen": {**recipe.frozen, **loaded}, "mesh": mesh}
    parts = make_params, objective, optimizer, batch
    program = Program(*parts, config.train, config.parallel, **how)
    return Assembly(
        source,
        reopen,
        recipe,
        setting,
        config.objective.make,
        program,
        plain if config.model.remat else lambda: program,
        learning_rate,
        config.seed,
        (config.init, config.init_weights),
        config.data,
        config.train,
        config.sampling,
        encode(config),
    )


def check_fit(config: Config, recipe: Recipe, num_classes: int, num_devices: int) -> None:
    """Refuses a config that does not fit the data's classes or the devices.

    Raises:
      UserError: what is wrong and what would be right.
    """
    if wrong := recipe.conditioner.misfit(num_classes):
        raise UserError(wrong)
    if num_devices % config.parallel.fsdp:
        raise UserError(f"parallel.fsdp={config.parallel.fsdp} must divide the {num_devices} devices")
    tensor, heads = config.parallel.tensor, getattr(config.model, "num_heads", None)
    if tensor > 1 and (not isinstance(config.model, DiT) or config.model.num_heads % tensor):
        raise UserError(
            f"parallel.tensor={tensor} must divide the heads of a model dit; this one has {heads or 'none'}"
        )
    num_devices //= tensor
    unit = num_devices * config.train.accumulate
    if config.train.batch_size % unit:
        raise UserError(
            f"train.batch_size={config.train.batch_size} must be a multiple of {unit} "
            f"({num_devices} devices times accumulate {config.train.accumulate})"
        )


def _with(fresh: Any, start: Any) -> Any:
    """New parameters, and in place of each that the other tree has, that one."""
    if not isinstance(fresh, dict):
        return start
    return {name: _with(new, start[name]) if name in start else new for name, new in fresh.items()}


def _noted(objective: ObjectiveOptions, loaded: dict[str, Any]) -> ObjectiveOptions:
    """The options with the digest of the parameters that training begins with.

    Raises:
      UserError: they are not what they were when the run began.
    """
    if "start" not in loaded:
        return objective
    leaves = jax.tree_util.tree_leaves_with_path(loaded["start"])
    current = digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})
    known = getattr(objective, "digest", "")
    if known not in ("", current):
        raise UserError(f"objective.start: its average is not the one that the run began with ({current}, not {known})")
    return dataclasses.replace(objective, **{"digest": current})


_SAME = (
    "model.",
    "diffusion.conditioner",
    "diffusion.schedule",
    "diffusion.num_steps",
    "diffusion.zero_snr",
    "diffusion.prediction",
)


def _average(own: Mapping[str, Any], workdir: Path) -> Any:
    """The average of another run of the same network and process as the fields say, in host memory.

    Raises:
      UserError: there is no such run, or it is of another network or process.
    """
    other = flat(read_run(workdir))
    wrong = [key for key in {**own, **other} if key.startswith(_SAME) and own.get(key) != other.get(key)]
    if wrong:
        listed = ", ".join(f"{key} {other.get(key)!r}, not {own.get(key)!r}" for key in wrong)
        raise UserError(f"objective: the run in {workdir} has {listed}; they must be equal")
    return jax.device_get(restore(workdir).ema_params)
