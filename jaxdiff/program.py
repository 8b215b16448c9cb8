"""What a config and its data make: network, step and the state they need; nothing is computed yet."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.builders import build_loss, build_model, check_run
from jaxdiff.config import Config
from jaxdiff.config_files import read_run
from jaxdiff.errors import UserError
from jaxdiff.losses import loss_aware
from jaxdiff.training import ema, parallel, posthoc
from jaxdiff.training.checkpoints import restore
from jaxdiff.training.optimizer import make_optimizer
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
      model: the network.
      mesh: all devices.
      keys: typed keys, one for each purpose: init, train, pictures.
      init: key -> TrainState.
      abstract: the state's shapes, dtypes and shardings.
      plain_step: the step before it is compiled for the mesh.
      step: the compiled step, or call of several.
      batch: shapes and dtypes of a batch of plain_step.
    """

    def __init__(self, config: Config, source: Images, devices: Sequence[Any] | None = None):
        """Raises UserError if the config does not fit the images or the devices (all of `jax.devices()`)."""
        train = config.train
        devices = jax.devices() if devices is None else devices
        check_run(config, source.shape, source.num_classes, len(devices))
        self.source: Any = source
        self.model = build_model(config, source.shape[-1])
        self.mesh = parallel.make_mesh(config.parallel.fsdp, devices)
        key = jax.random.key(config.seed, impl="threefry2x32")  # another impl makes noise depend on the batch
        self.keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(("init", "train", "pictures"))}
        optimizer = make_optimizer(**vars(config.optimizer))

        aware = config.diffusion.time_sampling == "loss_aware"
        times = loss_aware(config.diffusion.num_steps) if aware else None
        begun = _start(config) if config.consistency.start else None

        def init(key: jax.Array) -> TrainState:
            if begun is not None:
                return init_state(jax.tree.map(jnp.asarray, begun), optimizer, len(train.posthoc_ema))
            inputs = jnp.zeros((1, *source.shape)), jnp.zeros(1)
            cond = jnp.zeros(1, jnp.int32) if config.model.num_classes else None
            params = self.model.init(key, *inputs, cond)["params"]
            return init_state(params, optimizer, len(train.posthoc_ema), times.init() if times else ())

        def average(ema_params: Any, params: Any, step: Any) -> Any:
            return ema.update(ema_params, params, step, train.ema_decay)

        def track(averages: Any, params: Any, step: Any) -> Any:
            return posthoc.update(averages, params, step, train.posthoc_ema)

        self.init = init
        self.abstract = parallel.abstract_state(init, self.mesh, self.keys["init"])
        loss = build_loss(config, self.model, begun if config.consistency.teacher else None)
        self.plain_step = make_train_step(loss, optimizer, average, train.accumulate, track, times)
        self._mode, self._steps = config.parallel.mode, train.steps_per_call
        self.step: Any = parallel.compile_step(self.plain_step, self.abstract, self.mesh, self._mode, self._steps)
        rows = jax.ShapeDtypeStruct((train.batch_size,), jnp.int32)
        image = jax.ShapeDtypeStruct((train.batch_size, *source.shape), jnp.uint8)
        self.batch = {"image": image, "label": rows, "row": rows}

    def compiled(self) -> Callable[..., tuple[TrainState, Any]]:
        """`step`, compiled now rather than when it is first called; it takes the same arguments.

        Under pmap of several processes it is compiled at its first call all the same: JAX cannot do it before.
        """
        if self._mode == "pmap" and jax.process_count() > 1:
            return self.step
        program = self.lower().compile()
        return functools.partial(self.step, pmapped=program) if self._mode == "pmap" else program

    def lower(self) -> Any:
        """The step as it is before a compiler for its devices has seen it (`jax.stages.Lowered`)."""
        split = self.mesh.size if self._mode == "pmap" else 1
        devices = [split // jax.process_count()] if self._mode == "pmap" else []  # this process's, in its own arrays
        steps = [self._steps] if self._steps > 1 else []

        def shape(x: Any) -> Any:
            return jax.ShapeDtypeStruct((*devices, *steps, x.shape[0] // split, *x.shape[1:]), x.dtype)

        batch = jax.tree.map(shape, self.batch)
        return self.step.lower(self.abstract, (np.int32(0), batch) if steps else batch, self.keys["train"])

    def place(self, batches: Sequence[Any]) -> Any:
        """What `step` takes: the NumPy batches of a call, on the devices."""
        if self._steps == 1:
            return parallel.shard_batch(batches[0], self.mesh, self._mode)
        return parallel.shard_batches(batches, self._steps, self.mesh, self._mode)


def _start(config: Config) -> Any:
    """The average of the run that consistency.start names, in host memory.

    Raises:
      UserError: there is no such run, or it is of another network or process.
    """
    workdir = Path(config.consistency.start)
    other = read_run(workdir)
    for name in ("model", "diffusion"):
        fields, theirs = vars(getattr(config, name)), vars(getattr(other, name))
        wrong = [key for key in fields if fields[key] != theirs[key] and key != "time_sampling"]
        if wrong:
            listed = ", ".join(f"{name}.{key} {theirs[key]!r}, not {fields[key]!r}" for key in wrong)
            raise UserError(f"consistency.start: the run in {workdir} has {listed}; they must be equal")
    return jax.device_get(restore(workdir).ema_params)
