"""The training program of a config: recipe, objective, and the compiled step; nothing is computed yet."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import parallel
from jaxdiff.assembly.recipe import check_data, make_objective, make_recipe, optimizer_of
from jaxdiff.config import Config, flat
from jaxdiff.config.files import read_run
from jaxdiff.errors import UserError
from jaxdiff.evaluation.extractors import digest
from jaxdiff.keys import purpose_key
from jaxdiff.training import ema, posthoc
from jaxdiff.training.checkpoints import restore
from jaxdiff.training.state import TrainState, init_state
from jaxdiff.training.step import make_train_step


@runtime_checkable
class Images(Protocol):
    """What a program needs to know of its data."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of every image."""
        ...

    @property
    def num_classes(self) -> int:
        """0 for none."""
        ...


class Program:
    """The training program of a config: the very step that train.py runs and that the plan compiles.

    Attributes:
      source: the data, or what is known of it.
      config: the config, with the digests of what it takes from other runs.
      recipe: the model.
      mesh: all devices.
      keys: typed keys, one for each purpose: init, train, pictures.
      init: key -> TrainState.
      abstract: the state's shapes, dtypes and shardings.
      frozen: parameters that the step takes and does not train (teachers, codecs), in host memory.
      plain_step: the step before it is compiled for the mesh.
      step: the compiled step, or call of several.
      batch: shapes and dtypes of a batch of plain_step.
    """

    def __init__(self, config: Config, source: Images, devices: Sequence[Any] | None = None):
        """Raises UserError if the config does not fit the images or the devices (all of `jax.devices()`)."""
        train = config.train
        devices = jax.devices() if devices is None else devices
        self.source: Any = source
        self.recipe = recipe = make_recipe(config, source.shape)
        check_data(config, source.num_classes, len(devices))
        self.mesh = parallel.make_mesh(config.parallel.fsdp, devices)
        self.keys = {name: purpose_key(config.seed, name) for name in ("init", "train", "pictures")}
        optimizer = optimizer_of(config)
        objective = make_objective(config, recipe)
        loaded = {name: _average(config, workdir) for name, workdir in config.objective.runs().items()}
        self.config = _noted(config, loaded)
        begun = loaded.pop("start", None)
        self.frozen: Any = {**recipe.frozen, **loaded}

        def init(key: jax.Array) -> TrainState:
            if begun is not None:
                params = jax.tree.map(jnp.asarray, begun)
            if begun is None or recipe.extra_cond:
                fresh = recipe.network.init(key, *example(recipe))["params"]
                params = fresh if begun is None else _with(fresh, params)
            return init_state(params, optimizer, len(train.posthoc_ema), objective.init())

        def average(ema_params: Any, params: Any, step: Any) -> Any:
            return ema.update(ema_params, params, step, train.ema_decay)

        def track(averages: Any, params: Any, step: Any) -> Any:
            return posthoc.update(averages, params, step, train.posthoc_ema)

        self.init = init
        self.abstract = parallel.abstract_state(init, self.mesh, self.keys["init"])
        self.abstract_frozen = parallel.abstract_frozen(self.frozen, self.mesh)
        self.plain_step = make_train_step(objective, optimizer, average, train.accumulate, track)
        self._mode, self._steps = config.parallel.mode, train.steps_per_call
        self._step: Any = parallel.compile_step(
            self.plain_step, self.abstract, self.mesh, self._mode, self._steps, self.abstract_frozen
        )
        rows = jax.ShapeDtypeStruct((train.batch_size,), jnp.int32)
        image = jax.ShapeDtypeStruct((train.batch_size, *source.shape), jnp.uint8)
        self.batch = {"image": image, "label": rows, "row": rows}
        if recipe.conditioner.tokenize is not None:
            tokens = {name: table for name, table in recipe.conditioner.tokenize([""]).items() if name != "cut"}
            self.batch |= {
                name: jax.ShapeDtypeStruct((train.batch_size, *table.shape[1:]), table.dtype)
                for name, table in tokens.items()
            }

    @functools.cached_property
    def placed(self) -> Any:
        """The frozen trees on the devices, sharded as the state is."""
        return jax.tree.map(lambda x, like: parallel.put(x, like.sharding), self.frozen, self.abstract_frozen)

    @property
    def _given(self) -> tuple[Any, ...]:
        return (self.placed,) if self.frozen else ()

    def step(self, state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, Any]:
        """The compiled step, or call of several."""
        return self._step(state, batch, key, *self._given)

    def compiled(self) -> Callable[..., tuple[TrainState, Any]]:
        """`step`, compiled now rather than when it is first called; it takes the same arguments.

        Under pmap of several processes it is compiled at its first call all the same: JAX cannot do it before.
        """
        if self._mode == "pmap" and jax.process_count() > 1:
            return self.step
        program = self.lower().compile()
        step = functools.partial(self._step, pmapped=program) if self._mode == "pmap" else program
        return lambda state, batch, key: step(state, batch, key, *self._given)

    def lower(self) -> Any:
        """The step as it is before a compiler for its devices has seen it (`jax.stages.Lowered`)."""
        split = self.mesh.size if self._mode == "pmap" else 1
        devices = [split // jax.process_count()] if self._mode == "pmap" else []  # this process's, in its own arrays
        steps = [self._steps] if self._steps > 1 else []

        def shape(x: Any) -> Any:
            return jax.ShapeDtypeStruct((*devices, *steps, x.shape[0] // split, *x.shape[1:]), x.dtype)

        batch = jax.tree.map(shape, self.batch)
        batch = (np.int32(0), batch) if steps else batch
        frozen = (self.abstract_frozen,) if self.frozen else ()
        return self._step.lower(self.abstract, batch, self.keys["train"], *frozen)

    def place(self, batches: Sequence[Any]) -> Any:
        """What `step` takes: the NumPy batches of a call, on the devices."""
        if self._steps == 1:
            return parallel.shard_batch(batches[0], self.mesh, self._mode)
        return parallel.shard_batches(batches, self._steps, self.mesh, self._mode)


def example(recipe: Any) -> tuple[Any, ...]:
    """(x, t, cond) of one example, zeros: what a network is initialised with."""
    cond = {name: jnp.zeros((1, *kind.shape), kind.dtype) for name, kind in recipe.conditioner.spec.items()}
    cond |= {name: jnp.zeros(1) for name in recipe.extra_cond}
    return jnp.zeros((1, *recipe.shape)), jnp.zeros(1), cond


def _with(fresh: Any, begun: Any) -> Any:
    """New parameters, and in place of each that the other tree has, that one."""
    if not isinstance(fresh, dict):
        return begun
    return {name: _with(new, begun[name]) if name in begun else new for name, new in fresh.items()}


def _noted(config: Config, loaded: dict[str, Any]) -> Config:
    """The config with the digest of the parameters that it begins with.

    Raises:
      UserError: they are not what they were when the run began.
    """
    if "start" not in loaded:
        return config
    leaves = jax.tree_util.tree_leaves_with_path(loaded["start"])
    found = digest({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})
    known = getattr(config.objective, "digest", "")
    if known not in ("", found):
        raise UserError(f"objective.start: its average is not the one that the run began with ({found}, not {known})")
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, digest=found))


_SAME = ("model.", "diffusion.schedule", "diffusion.num_steps", "diffusion.zero_snr", "diffusion.prediction")


def _average(config: Config, name: str) -> Any:
    """The average of another run of the same network and process, in host memory.

    Raises:
      UserError: there is no such run, or it is of another network or process.
    """
    workdir = Path(name)
    own, other = flat(config), flat(read_run(workdir))
    wrong = [key for key in {**own, **other} if key.startswith(_SAME) and own.get(key) != other.get(key)]
    if wrong:
        listed = ", ".join(f"{key} {other.get(key)!r}, not {own.get(key)!r}" for key in wrong)
        raise UserError(f"objective: the run in {workdir} has {listed}; they must be equal")
    return jax.device_get(restore(workdir).ema_params)
