"""What a run is between two steps: its fields hold arrays only, so that any of it can be saved, sharded or donated."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:  # sample.py need not wait for it
    import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The whole state of training, a pytree of arrays.

    Keys, data order and learning rate are pure functions of (seed, step), so nothing else needs saving.

    Attributes:
      step: int32 scalar, the number of batches seen; a batch skipped by the NaN guard counts. (As the other
        fields, a ShapeDtypeStruct or a sharding in a description of the state.)
      params: the network's parameters, float32.
      ema_params: their moving average, the same tree; samples are drawn with these.
      opt_state: the optax state.
      posthoc: one more average a tracked width (`training.posthoc`), each the tree of params; none unless asked for.
      objective: the objective's own state, such as the loss history of loss-aware times; () where it has none.
    """

    step: Any
    params: Any
    ema_params: Any
    opt_state: Any
    posthoc: Any = ()
    objective: Any = ()


def init_state(
    params: Any, optimizer: "optax.GradientTransformation", tracked: int = 0, objective: Any = ()
) -> TrainState:
    """The state before the first step: the average starts at the parameters, in buffers of its own.

    A donated buffer may appear only once in a state, hence the copy.

    >>> import jax.numpy as jnp, optax
    >>> state = init_state({"w": jnp.ones(2)}, optax.sgd(0.1))
    >>> int(state.step), state.ema_params["w"] is state.params["w"]
    (0, False)
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        posthoc=tuple(jax.tree.map(jnp.copy, params) for _ in range(tracked)),
        objective=objective,
    )


def leaf_name(path: tuple) -> str:
    """The name of a leaf in rules, checkpoints and messages: its path joined by slashes.

    >>> import jax
    >>> leaves = jax.tree_util.tree_leaves_with_path({"params": [1, {"kernel": 2}]})
    >>> [leaf_name(path) for path, _ in leaves]
    ['params/0', 'params/1/kernel']
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")
