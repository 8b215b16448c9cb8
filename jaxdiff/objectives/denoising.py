"""Denoising: predict the noise, the image or a mixture of them. What diffusion and flow matching train."""

import dataclasses
from typing import Any

import jax

from jaxdiff.losses import denoising_loss
from jaxdiff.objectives.base import Batch, Objective, ObjectiveOptions, Setting, objective_of, seen, time_sampling


@dataclasses.dataclass(frozen=True)
class Denoising(ObjectiveOptions):
    """The mean square of what the network gets wrong, see jaxdiff.losses.denoising_loss."""

    def make(self, setting: Setting) -> Objective:
        """The objective."""
        recipe, times = setting.recipe, time_sampling(setting)

        def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> jax.Array:
            s = seen(setting, params, frozen, batch, keys)
            how = {"schedule": recipe.schedule, "prediction": recipe.prediction, "weighting": setting.weighting}
            return denoising_loss(s.keys, s.predict, s.x_0, **how, time_sampling=times, t=batch.get("t"), cond=s.cond)

        return objective_of(setting, loss)
