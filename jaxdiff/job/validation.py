"""Validation loss: a run's own loss on held-out images, by noise level, under noise that stays the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff.assembly.assemble import Assembly
from jaxdiff.data.batches import Batches
from jaxdiff.data.sources import Source
from jaxdiff.diffusion import whole
from jaxdiff.errors import UserError
from jaxdiff.keys import example_keys, purpose_key
from jaxdiff.objectives.base import time_sampling
from jaxdiff.parallel import put

LEVELS = 8
BATCH = 250


class Validation:
    """The loss of the first `num` held-out images, in a random order that stays the same, at LEVELS noise levels each.

    The levels are the middles of LEVELS parts of the run's time sampling, each drawn as often in training: so their
    mean estimates the training loss without dropout, and without hidden conditions. The noise of image i at level j
    is a function of (seed, i, j).

    Args:
      run: whose loss.
      source: the held-out images.
      num: how many of them, at most.

    Raises:
      UserError: an objective whose loss says nothing of progress.
    """

    def __init__(self, run: Assembly, source: Source, num: int):
        recipe, mesh = run.recipe, run.program.mesh
        self._program, self._num = run.program, min(num, len(source))
        size = min(BATCH, self._num)
        self._batches = Batches(source, 0, size, captions=recipe.conditioner.tokenize)
        self._rows, self._size = NamedSharding(mesh, P(mesh.axis_names)), -(-size // mesh.size) * mesh.size
        self._key, everywhere = purpose_key(run.seed, "validation"), NamedSharding(mesh, P())
        setting = run.setting._replace(hide=0.0, dropout=False, augmentation=None)
        objective = run.objective(setting)
        if objective.hold is not None:
            raise UserError(
                "train.evaluate_metrics=validation_loss: this objective's loss is against a teacher that changes; take "
                "metrics of samples"
            )
        loss = objective.loss
        quantile = getattr(setting.times, "base", None) or time_sampling(setting)

        @jax.jit
        def losses(params, frozen, key, batch, numbers):
            # As in the step: left to itself, the partitioner would send activations around.
            params, frozen = jax.lax.with_sharding_constraint((params, frozen), everywhere)
            keys = example_keys(key, numbers)
            batch = {**batch, "row": numbers, "step": jnp.zeros_like(numbers)}

            def at(level):
                t = quantile(jnp.full(numbers.shape, (level + 0.5) / LEVELS), recipe.schedule)
                return loss(params, frozen, {**batch, "t": t}, jax.vmap(jax.random.fold_in, (0, None))(keys, level))

            return jax.lax.map(at, jnp.arange(LEVELS))

        self._losses = losses

    def __call__(self, params: Any) -> dict[str, float]:
        """validation_loss, and validation_loss_1 (of the least noise) to validation_loss_LEVELS."""
        losses, size = [], len(self._batches[0]["row"])
        for start in range(0, self._num, size):
            batch = self._batches[start // size]
            kept = np.minimum(np.arange(self._size), min(size, self._num - start) - 1)
            placed = {name: put(value[kept], self._rows) for name, value in batch.items() if name != "row"}
            numbers = put((start + kept).astype(np.int32), self._rows)
            values = whole(self._losses(params, self._program.placed, self._key, placed, numbers))
            losses.append(np.asarray(values, np.float64)[:, : kept[-1] + 1])
        means = np.concatenate(losses, axis=1).mean(axis=1)
        by_level = {f"validation_loss_{level}": float(value) for level, value in enumerate(means, 1)}
        return {"validation_loss": float(means.mean()), **by_level}
