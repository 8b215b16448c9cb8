"""Progressive distillation: a run's steps halved, stage after stage, each student the teacher of the next."""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxdiff.diffusion import Guidance, denoiser
from jaxdiff.losses import progressive_loss
from jaxdiff.objectives.base import Batch, Objective, Setting, check_guidance, seen
from jaxdiff.objectives.tuned import Tuned
from jaxdiff.schema import Between


@dataclasses.dataclass(frozen=True)
class Progressive(Tuned):
    """A run that samples in ever fewer steps of ddim (Salimans & Ho 2022), see jaxdiff.losses.progressive_loss."""

    first: Annotated[int, Between(1, 4096)] = 16
    """Steps of the first student, in which it walks as the run does in twice as many."""
    halve_every: Annotated[int, Between(1, 10**9)] = 1000
    """Steps of training after which the student becomes the teacher of one with half its steps, down to 1."""
    guidance: Annotated[float, Between(0, 1000)] = 1.0
    """Classifier-free guidance scale of the first teacher; 1 is none."""

    def make(self, setting: Setting) -> Objective:
        """The objective; its state is the teacher."""
        recipe = setting.recipe
        self.check()
        check_guidance(self.guidance, setting)

        def hold(own: Any, params: Any, step: jax.Array) -> Any:
            new = step % self.halve_every == 0
            return {"teacher": jax.tree.map(lambda a, b: jnp.where(new, a, b), params, own["teacher"])}

        def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> jax.Array:
            s, stage = seen(setting, params, frozen, batch, keys), batch["step"] // self.halve_every
            guidance = None
            if self.guidance != 1:
                guidance = Guidance(jnp.where(stage == 0, self.guidance, 1.0))
            away = recipe.null(frozen, len(keys)) if guidance else None
            teacher = denoiser(recipe, frozen["own"]["teacher"], s.cond, guidance=guidance, away=away)
            how = {"schedule": recipe.schedule, "prediction": recipe.prediction, "weighting": setting.weighting}
            steps = jnp.maximum(self.first // 2**stage, 1)
            return progressive_loss(s.keys, s.predict, s.x_0, **how, teacher=teacher, steps=steps, cond=s.cond)

        return Objective(loss, lambda params: {"teacher": jax.tree.map(jnp.copy, params)}, hold=hold)
