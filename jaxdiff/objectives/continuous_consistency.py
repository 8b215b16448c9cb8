"""Continuous-time consistency (sCM): a run made a network for 1 to 4 steps, without a grid of times."""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxdiff.losses import continuous_consistency_loss
from jaxdiff.objectives.base import (
    Batch,
    Objective,
    Setting,
    check_guidance,
    objective_of,
    seen,
    time_sampling,
    variance_preserving,
)
from jaxdiff.objectives.tuned import Distilled
from jaxdiff.schema import Between


@dataclasses.dataclass(frozen=True)
class ContinuousConsistency(Distilled):
    """A run tuned for 1 to 4 steps of lcm (Lu & Song 2024), see jaxdiff.losses.continuous_consistency_loss."""

    warmup: Annotated[int, Between(1, 10**9)] = 1000
    """Steps over which the derivative of the network comes in."""

    def make(self, setting: Setting) -> Objective:
        """The objective."""
        recipe, times = setting.recipe, time_sampling(setting)
        self.check()
        variance_preserving("continuous_consistency", setting)
        check_guidance(self.guidance, setting)

        def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> jax.Array:
            s = seen(setting, params, frozen, batch, keys)
            how = {"schedule": recipe.schedule, "teacher": self.teacher_of(recipe, frozen, s), "cond": s.cond}
            how |= {
                "warm": jnp.minimum(batch["step"][0] / self.warmup, 1.0),
                "time_sampling": times,
                "t": batch.get("t"),
            }
            return continuous_consistency_loss(s.keys, s.predict, s.x_0, **how)

        return objective_of(setting, loss)
