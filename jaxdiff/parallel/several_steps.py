"""Several steps as one program, so that the device asks the host once for all of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.training.state import TrainState

METRICS = ("loss", "grad_norm", "skipped")  # of a step
Step = Callable[..., tuple[TrainState, dict[str, Float[Array, ""]]]]
History = dict[str, Float[Array, " steps"]]


def make_call(step: Step) -> Callable[..., tuple[TrainState, History]]:
    """Make call(state, (count, batches), key, frozen) -> (state, metrics): the first `count` of the batches.

    A loop whose length is a value: any number of steps up to that of the batches is the same program, and gives the
    same bits in whatever portions. Outside a loop XLA compiles a step otherwise: the order of its float32 sums may
    differ, as between layouts (`parallel`).

    Args:
      step: from `step.make_train_step`.

    Returns:
      The call. Arrays of the batches are [most, batch, ...]; metrics are [most], 0 from count on. Keyword arguments
      are passed on to `step`.
    """

    def call(
        state: TrainState, batches: tuple[Any, Any], key: Any, frozen: Any = None, **options: Any
    ) -> tuple[TrainState, History]:
        count, stacked = batches

        def body(i: Any, carry: tuple[TrainState, History]) -> tuple[TrainState, History]:
            state, history = carry
            batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), stacked)
            state, metrics = step(state, batch, key, frozen, **options)
            return state, {name: history[name].at[i].set(metrics[name]) for name in METRICS}

        most = jax.tree.leaves(stacked)[0].shape[0]
        return jax.lax.fori_loop(0, count, body, (state, {name: jnp.zeros(most) for name in METRICS}))

    return call
