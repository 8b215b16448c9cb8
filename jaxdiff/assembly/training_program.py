"""The training program: the step of an objective over all devices, compiled; nothing is computed yet."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdiff import parallel
from jaxdiff.config import Parallel, Train
from jaxdiff.keys import purpose_key
from jaxdiff.objectives import Objective
from jaxdiff.training import ema, posthoc
from jaxdiff.training.state import TrainState, init_state, leaf_name
from jaxdiff.training.step import make_train_step


class Program:
    """A training step over all devices, and the state that it takes; whatever it trains.

    Attributes:
      mesh: all devices.
      keys: typed keys, one for each purpose: init, train, pictures.
      init: (key, leaves to take in place of new ones, by name) -> TrainState.
      abstract: the state's shapes, dtypes and shardings.
      frozen: parameters that the step takes and does not train (teachers, codecs), in host memory.
      plain_step: the step before it is compiled for the mesh.
      batch: shapes and dtypes of a batch of plain_step, which has "row" [batch].
    """

    def __init__(
        self,
        make_params: Callable[[jax.Array], Any],
        objective: Objective,
        optimizer: Any,
        batch: dict[str, Any],
        train: Train,
        layout: Parallel,
        *,
        seed: int = 0,
        frozen: Any = None,
        mesh: Mesh | None = None,
    ):
        """Args: key -> parameters; what is minimised, and how; shapes of a batch; the settings; and where."""
        self.mesh = mesh or parallel.make_mesh(layout.fsdp, tensor=layout.tensor)
        self.keys = {name: purpose_key(seed, name) for name in ("init", "train", "pictures")}
        self.frozen: Any = frozen or {}
        self.batch = batch

        def init(key: jax.Array, given: dict[str, Any] | None = None) -> TrainState:
            given = given or {}
            params = make_params(key)
            if objective.params is not None:
                params = {"objective": objective.params(), **params}
            params = jax.tree_util.tree_map_with_path(lambda path, new: given.get(leaf_name(path), new), params)
            return init_state(params, optimizer, len(train.posthoc_ema), objective.init(params))

        def average(ema_params: Any, params: Any, step: Any) -> Any:
            return ema.update(ema_params, params, step, train.ema_decay)

        def track(averages: Any, params: Any, step: Any) -> Any:
            return posthoc.update(averages, params, step, train.posthoc_ema)

        self.init = init
        self.abstract = parallel.abstract_state(init, self.mesh, self.keys["init"])
        self.abstract_frozen = parallel.abstract_frozen(self.frozen, self.mesh)
        self.plain_step = make_train_step(objective, optimizer, average, train.accumulate, track)
        self._mode, self._steps = layout.mode, train.steps_per_call
        self._step: Any = parallel.compile_step(
            self.plain_step, self.abstract, self.mesh, self._mode, self._steps, self.abstract_frozen
        )

    def new_state(self, given: Mapping[str, Any] | None = None) -> TrainState:
        """The state to begin with; leaves of the parameters to take in place of new ones, by name."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        # It runs once: on CPU, optimising it takes five times as long as all else.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        init = jax.jit(self.init, out_shardings=shardings, compiler_options=options)
        return init(self.keys["init"], dict(given or {}))

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

    def compiled(self, program: Any = None) -> Callable[..., tuple[TrainState, Any]]:
        """`step`, compiled now (or before: `lower().compile()`), not when it is first called; same arguments.

        Under pmap of several processes it is compiled at its first call all the same: JAX cannot do it before.
        """
        if self._mode == "pmap" and jax.process_count() > 1:
            return self.step
        program = program or self.lower().compile()
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
