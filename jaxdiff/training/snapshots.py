"""Snapshots of the tracked averages, kept in workdir/ema/STEP like checkpoints, and any other average made of them."""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from jaxdiff.errors import UserError
from jaxdiff.training import posthoc
from jaxdiff.training.checkpoints import CheckpointError, Checkpoints, report, restore
from jaxdiff.training.reading import directory_of, steps_in
from jaxdiff.training.state import TrainState

FOLDER = "ema"


class Snapshots(Checkpoints):
    """All snapshots of a run; each has a manifest and checksums, and is on disk when `take` returns."""

    def __init__(self, workdir: os.PathLike | str):
        super().__init__(workdir, keep=10**9, folder=FOLDER)

    def take(self, state: TrainState) -> None:
        """Keep the averages of this step. To be called before its checkpoint is saved, or a crash may lose them."""
        self.save(TrainState(state.step, {}, {}, {}, state.posthoc), wait=True)


def reconstruct(
    workdir: os.PathLike | str,
    state: TrainState,
    tracked: tuple[float, ...],
    width: float,
    sharding: Sharding | None = None,
) -> Any:
    """The average of relative width `width` at state.step, from the snapshots up to it and the state's own averages.

    Snapshots are read one after another. One that is corrupt is passed over, with a line on stderr: the nearest
    combination of the others is taken.

    Args:
      workdir: of the run.
      state: a checkpoint's.
      tracked: train.posthoc_ema of the run.
      width: sigma_rel wanted.
      sharding: of the result; see `checkpoints.restore`.

    Returns:
      Parameters.

    Raises:
      UserError: the run tracked none, or the width is out of range.
    """
    if not tracked or not state.posthoc:
        raise UserError("--ema needs a run that tracked averages: train it with --train.posthoc_ema 0.05 0.10")
    if not 0 < width <= posthoc.WIDEST:
        raise UserError(f"--ema {width} must be a relative width in 0..{posthoc.WIDEST:.4f}; 0.05 to 0.20 are usual")
    last = int(state.step)
    steps = [step for step in steps_in(directory_of(workdir, FOLDER)) if 0 < step < last]
    while True:
        weights = posthoc.coefficients(
            np.repeat([*steps, last], len(tracked)).tolist(), [*tracked] * (len(steps) + 1), last, width
        ).reshape(-1, len(tracked))
        total = _combine(None, state.posthoc, weights[-1])
        try:
            for step, row in zip(steps, weights[:-1], strict=True):
                total = _combine(total, restore(workdir, step, sharding, FOLDER).posthoc, row)
            return total
        except CheckpointError as error:
            report(f"{error}: going on without that snapshot")
            steps.remove(step)


def _combine(total: Any, averages: Any, weights: np.ndarray) -> Any:
    """total + sum_i weights_i averages_i, in float32."""
    trees = list(averages.values()) if isinstance(averages, dict) else list(averages)
    for tree, weight in zip(trees, weights.astype(np.float32), strict=True):
        scaled = jax.tree.map(lambda x, weight=weight: x * weight, tree)
        total = scaled if total is None else jax.tree.map(lambda a, b: a + b, total, scaled)
    return total
