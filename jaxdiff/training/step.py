"""One training step, a pure function: loss, gradient, guard, optimizer, average.

It knows nothing of devices. Under `jax.jit` with a sharded batch the means below are global; under `jax.pmap` the
axis name makes them so. Either way example i of the batch draws its noise from its own key.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, Num

from jaxdiff.keys import example_keys
from jaxdiff.training.state import TrainState

if TYPE_CHECKING:
    from jaxdiff.objectives import Objective

Batch = dict[str, Num[Array, "batch ..."]]
Metrics = dict[str, Float[Array, ""]]
LossFn = Callable[[Any, Any, Batch, Key[Array, " batch"]], Float[Array, " batch"]]


def _split(batch: Any, pieces: int) -> Any:
    """[batch, ...] -> [pieces, batch/pieces, ...]: piece j is rows j, j + pieces, ..., a part of every device."""

    def split(x: jax.Array) -> jax.Array:
        if x.shape[0] % pieces:
            raise ValueError(f"a batch of {x.shape[0]} a device does not split into accumulate={pieces} equal parts")
        return jnp.swapaxes(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)


def _loss_and_grads(
    loss_fn: LossFn,
    gather: Callable[[Any], Any],
    params: Any,
    frozen: Any,
    batch: Batch,
    keys: Key[Array, " batch"],
    accumulate: int,
) -> tuple[Float[Array, ""], Any, Float[Array, " batch"]]:
    """The mean loss over the batch, its gradient, and each loss, in `accumulate` micro-batches of equal size."""

    def mean_loss(params: Any, batch: Batch, keys: Key[Array, " batch"]) -> tuple[jax.Array, jax.Array]:
        losses = loss_fn(gather(params), gather(frozen), batch, keys).astype(jnp.float32)
        return jnp.mean(losses * batch["weight"] if "weight" in batch else losses), losses

    def differentiate(batch: Batch, keys: Key[Array, " batch"]) -> tuple[Any, jax.Array]:
        (loss, losses), grads = jax.value_and_grad(mean_loss, has_aux=True)(params, batch, keys)
        return (loss, grads), losses

    if accumulate == 1:
        (loss, grads), losses = differentiate(batch, keys)
        return loss, grads, losses

    def add(total: Any, piece: tuple[Batch, Key[Array, " batch"]]) -> tuple[Any, jax.Array]:
        gradients, losses = differentiate(*piece)
        return jax.tree.map(jnp.add, total, gradients), losses

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, losses = jax.lax.scan(add, zeros, _split((batch, keys), accumulate))
    loss, grads = jax.tree.map(lambda x: x / accumulate, total)
    return loss, grads, losses.T.reshape(-1)


def make_train_step(
    objective: "Objective",
    optimizer: optax.GradientTransformation,
    ema: Callable[[Any, Any, Int[Array, ""]], Any],
    accumulate: int = 1,
    posthoc: Callable[[Any, Any, Int[Array, ""]], Any] = lambda averages, params, step: averages,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Make step(state, batch, key, frozen) -> (state, metrics), to be compiled by `parallel.compile_step`.

    The loss is averaged over the global batch once. A step whose loss or gradient norm is not finite leaves
    parameters, average and optimizer bit for bit as they were; only `step` moves on, so the next batch is another.
    With accumulation the result equals the unaccumulated one within float32 summation error: about
    accumulate * 6e-8 of the sum of the absolute terms.

    Args:
      objective: its loss gets one key an example, and the batch with "step" beside what came in, int32 [batch], and
        what its `draw` adds; the mean is that of batch["weight"] * loss where there are weights. Its state is
        `TrainState.objective`, updated with the losses of the whole global batch, in the order of its rows.
      optimizer: an optax transformation.
      ema: (ema_params, params, step) -> ema_params, where step counts the steps before this one.
      accumulate: micro-batches a step, >= 1, each an equal part of the batch.
      posthoc: as `ema`, for the averages in `TrainState.posthoc`.

    Returns:
      The step. `batch` needs "row", each example's index in the global batch; metrics are float32 scalars: loss,
      grad_norm (before clipping) and skipped (1 where the guard held the state). Two keyword arguments are for the
      compiler's use: axis_name (pmap's axis to average over) and gather (params -> whole params, where split).

    Raises:
      ValueError: accumulate < 1, or, when traced, a batch that does not split.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxdiff.training.state import init_state
    >>> sgd = optax.sgd(0.5)
    >>> from jaxdiff.objectives import Objective
    >>> square = Objective(lambda w, frozen, batch, keys: (w - batch["x"]) ** 2)
    >>> step = make_train_step(square, sgd, lambda ema, w, step: w)
    >>> batch = {"x": jnp.ones(4), "row": jnp.arange(4)}
    >>> state, metrics = step(init_state(jnp.zeros(()), sgd), batch, jax.random.key(0))
    >>> float(state.params), float(metrics["loss"]), float(metrics["skipped"])
    (1.0, 1.0, 0.0)
    """
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate} is out of range; it must be >= 1")

    def step(
        state: TrainState,
        batch: Batch,
        key: Key[Array, ""],
        frozen: Any = None,
        axis_name: str | None = None,
        gather: Callable[[Any], Any] = lambda params: params,
    ) -> tuple[TrainState, Metrics]:
        frozen = {} if frozen is None else frozen
        step_key = jax.random.fold_in(key, state.step)
        keys = example_keys(step_key, batch["row"])
        batch = {**batch, "step": jnp.full_like(batch["row"], state.step)}
        if objective.draw is not None:
            keys, drawn = objective.draw(state.objective, step_key, keys, batch)
            batch |= drawn
        own = state.objective
        if objective.hold is not None:
            own = objective.hold(own, state.params, state.step)
            frozen = {**frozen, "own": own}
        loss, grads, losses = _loss_and_grads(objective.loss, gather, state.params, frozen, batch, keys, accumulate)
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
        grad_norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = ema(state.ema_params, params, state.step)
        averages = posthoc(state.posthoc, params, state.step)
        if objective.update is not None:
            seen = (batch, losses)
            everyone = gather(seen) if axis_name is None else jax.lax.all_gather(seen, axis_name, tiled=True)
            own = objective.update(own, *everyone)
        after = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, ema_params, opt_state, averages, own),
            (state.params, state.ema_params, state.opt_state, state.posthoc, state.objective),
        )
        metrics = {"loss": loss, "grad_norm": grad_norm, "skipped": 1.0 - good.astype(jnp.float32)}
        return TrainState(state.step + 1, *after), metrics

    return step
