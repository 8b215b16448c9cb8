"""Consistency: a network for 1 to 4 steps, distilled from a run or tuned by the images alone."""

import dataclasses
from typing import Annotated, Any

import jax

from jaxdiff.losses import consistency_loss, narrowing
from jaxdiff.objectives.base import Batch, Objective, Setting, objective_of, seen, time_sampling
from jaxdiff.objectives.tuned import Distilled
from jaxdiff.schema import Between


@dataclasses.dataclass(frozen=True)
class Consistency(Distilled):
    """A run tuned for sampling in 1 to 4 steps with lcm, see jaxdiff.losses.consistency_loss."""

    halve_every: Annotated[int, Between(1, 10**9)] = 400
    """Steps after which the gap between the two times is halved, from half of the way to the image on."""

    def make(self, setting: Setting) -> Objective:
        """The objective."""
        recipe, times = setting.recipe, time_sampling(setting)
        self.check()
        if recipe.prediction == "x_0":
            raise ValueError(
                "objective consistency needs diffusion.prediction v, flow, edm or noise: "
                "with 'x_0' a clean image does not stay as it is"
            )
        if setting.weighting is not None:
            raise ValueError("objective consistency has its own weights; leave diffusion.weighting at simple")

        def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> jax.Array:
            s = seen(setting, params, frozen, batch, keys)
            earlier = narrowing(1 + batch["step"] // self.halve_every)
            how = {"schedule": recipe.schedule, "prediction": recipe.prediction, "earlier": earlier}
            how |= {
                "teacher": self.teacher_of(recipe, frozen, s),
                "time_sampling": times,
                "t": batch.get("t"),
                "cond": s.cond,
            }
            return consistency_loss(s.keys, s.predict, s.x_0, **how)

        return objective_of(setting, loss)
