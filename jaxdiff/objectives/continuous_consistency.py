"""Continuous-time consistency (sCM): a run made a network for 1 to 4 steps, without a grid of times."""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxdiff.diffusion import Guidance, denoiser
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
from jaxdiff.objectives.tuned import Tuned
from jaxdiff.schema import Between


@dataclasses.dataclass(frozen=True)
class ContinuousConsistency(Tuned):
    """A run tuned for 1 to 4 steps of lcm (Lu & Song 2024), see jaxdiff.losses.continuous_consistency_loss."""

    teacher: bool = True
    """Distil that run; false: learn from the images alone."""
    guidance: Annotated[float, Between(0, 1000)] = 1.0
    """Classifier-free guidance scale of the teacher; 1 is none."""
    warmup: Annotated[int, Between(1, 10**9)] = 1000
    """Steps over which the derivative of the network comes in."""

    def runs(self) -> dict[str, str]:
        """Where training starts, and the teacher."""
        return super().runs() | ({"teacher": self.start} if self.teacher else {})

    def make(self, setting: Setting) -> Objective:
        """The objective."""
        recipe, times = setting.recipe, time_sampling(setting)
        self.check()
        variance_preserving("continuous_consistency", setting)
        check_guidance(self.guidance, setting)
        guidance = None if self.guidance == 1 else Guidance(self.guidance)

        def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> jax.Array:
            s, teacher = seen(setting, params, frozen, batch, keys), None
            if self.teacher:
                away = recipe.null(frozen, len(keys)) if guidance else None
                teacher = denoiser(recipe, frozen["teacher"], s.cond, guidance=guidance, away=away)
            how = {"schedule": recipe.schedule, "teacher": teacher, "cond": s.cond, "t": batch.get("t")}
            how |= {"warm": jnp.minimum(batch["step"][0] / self.warmup, 1.0), "time_sampling": times}
            return continuous_consistency_loss(s.keys, s.predict, s.x_0, **how)

        return objective_of(setting, loss)
