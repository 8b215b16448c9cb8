"""Snapshots of the tracked averages, kept in workdir/ema/STEP like checkpoints, and any other average made of them."""

import os
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from jaxdiff.errors import UserError
from jaxdiff.training import posthoc
from jaxdiff.training.checkpoint_files import directory_of, steps_in
from jaxdiff.training.checkpoints import CheckpointError, Checkpoints, report, restore
from jaxdiff.training.state import TrainState

FOLDER = "ema"
WORST = 0.5
"""Profile error from which on a reconstruction is refused for the nearest tracked average."""


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
    combination of the others is taken. The error of the profile is a line on stderr too; where the snapshots are too
    few for the width (an error above `WORST`), the nearest of the state's own averages is returned, and said.

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
    own = list(state.posthoc.values()) if isinstance(state.posthoc, dict) else list(state.posthoc)
    distances = [posthoc.profile_error([last], [one], last, width, [1.0]) for one in tracked]
    nearest = int(np.argmin(distances))
    while True:
        profiles = np.repeat([*steps, last], len(tracked)).tolist(), [*tracked] * (len(steps) + 1), last, width
        weights = posthoc.coefficients(*profiles)
        error = posthoc.profile_error(*profiles, weights)
        if error > WORST:
            report(
                f"--ema {width}: {len(steps)} snapshots are too few for this width (the best combination is {error:.0%}"
                f" off); the tracked average of {tracked[nearest]} is taken ({distances[nearest]:.0%} off). "
                "A smaller train.checkpoint_every keeps more"
            )
            return own[nearest]
        *earlier, now = weights.reshape(-1, len(tracked)).astype(np.float32)
        total = _add(own[nearest], own[nearest], own, now)
        try:
            for step, row in zip(steps, earlier, strict=True):
                total = _add(total, own[nearest], restore(workdir, step, sharding, FOLDER).posthoc.values(), row)
        except CheckpointError as corrupt:
            report(f"{corrupt}: going on without that snapshot")
            steps.remove(step)
            continue
        report(f"--ema {width}: made of {len(tracked)} averages and {len(steps)} snapshots, {error:.1%} off in profile")
        return total


def _add(total: Any, base: Any, averages: Iterable[Any], weights: np.ndarray) -> Any:
    """total + sum_i weights_i (averages_i - base), in float32: equal averages change no bit."""
    for average, weight in zip(averages, weights, strict=True):
        total = jax.tree.map(lambda x, a, b, weight=weight: x + weight * (a - b), total, average, base)
    return total
