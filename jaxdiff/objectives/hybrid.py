"""The hybrid loss of ADM: denoising, and the variational bound of a variance that the network learns."""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax

from jaxdiff.losses import hybrid_loss
from jaxdiff.objectives.base import Batch, Objective, ObjectiveOptions, Setting, objective_of, seen, time_sampling
from jaxdiff.schema import Between


@dataclasses.dataclass(frozen=True)
class Hybrid(ObjectiveOptions):
    """Denoising with a learned variance (Nichol and Dhariwal 2021), see jaxdiff.losses.hybrid_loss."""

    learned_variance: ClassVar[bool] = True

    bound_weight: Annotated[float, Between(0, 1000)] = 0.001
    """Weight of the bound, in nats an image, beside the denoising loss."""

    def make(self, setting: Setting) -> Objective:
        """The objective."""
        recipe, times = setting.recipe, time_sampling(setting)
        if recipe.schedule.num_steps is None:
            raise ValueError("objective hybrid is of a discrete schedule's steps; choose linear, cosine, ...")
        if setting.weighting is not None:
            raise ValueError("objective hybrid has its own weights; leave diffusion.weighting at simple")

        def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> jax.Array:
            s = seen(setting, params, frozen, batch, keys)
            how = {"schedule": recipe.schedule, "prediction": recipe.prediction, "bound_weight": self.bound_weight}
            return hybrid_loss(s.keys, s.predict, s.x_0, **how, time_sampling=times, t=batch.get("t"), cond=s.cond)

        return objective_of(setting, loss)
