"""Denoising: predict the noise, the image or a mixture of them. What diffusion and flow matching train."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.losses import denoising_loss
from jaxdiff.losses.denoising import draw
from jaxdiff.losses.weightings import uncertainty
from jaxdiff.objectives.base import Batch, Objective, ObjectiveOptions, Setting, objective_of, seen, time_sampling


@dataclasses.dataclass(frozen=True)
class Denoising(ObjectiveOptions):
    """The mean square of what the network gets wrong, see jaxdiff.losses.denoising_loss."""

    uncertainty: bool = False
    """Learn how large the loss is at each noise level, and divide by it (EDM2), see jaxdiff.losses.weightings."""

    def make(self, setting: Setting) -> Objective:
        """The objective."""
        recipe, times, learned = setting.recipe, time_sampling(setting), uncertainty()

        def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> jax.Array:
            s = seen(setting, params, frozen, batch, keys)
            how = {"schedule": recipe.schedule, "prediction": recipe.prediction, "weighting": setting.weighting}
            t = batch.get("t")
            losses = denoising_loss(s.keys, s.predict, s.x_0, **how, time_sampling=times, t=t, cond=s.cond)
            if not self.uncertainty:
                return losses
            u = learned.log_loss(params["objective"], draw(s.keys, s.x_0, recipe.schedule, times, t).m.log_snr)
            return losses / jnp.exp(u) + u

        made = objective_of(setting, loss)
        return made._replace(params=learned.init) if self.uncertainty else made
