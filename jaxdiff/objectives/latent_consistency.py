"""Latent consistency (LCM): a guided run made a network for 1 to 4 steps that is told the guidance scale."""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax

from jaxdiff.diffusion import Guidance, denoiser
from jaxdiff.losses import latent_consistency_loss
from jaxdiff.objectives.base import Batch, Objective, Setting, check_guidance, seen
from jaxdiff.objectives.tuned import Tuned
from jaxdiff.schema import Between


@dataclasses.dataclass(frozen=True)
class LatentConsistency(Tuned):
    """A guided run distilled for lcm (Luo et al. 2023), see jaxdiff.losses.latent_consistency_loss."""

    extra_cond: ClassVar[tuple[str, ...]] = ("guidance",)

    low: Annotated[float, Between(0, 1000)] = 1.0
    """Least guidance scale that the network is told; sampling.guidance says one."""
    high: Annotated[float, Between(0, 1000)] = 8.0
    """Largest guidance scale."""
    steps: Annotated[int, Between(2, 10_000)] = 50
    """Of the teacher's grid; 50 skips 20 of 1000."""
    huber: Annotated[float, Between(0, 1000)] = 0.001
    """Where the square of the error becomes a line."""

    def runs(self) -> dict[str, str]:
        """Where training starts, and the teacher."""
        return super().runs() | {"teacher": self.start}

    def make(self, setting: Setting) -> Objective:
        """The objective."""
        recipe = setting.recipe
        self.check()
        check_guidance(self.high, setting)
        if recipe.prediction == "x_0" or setting.weighting is not None:
            raise ValueError("objective latent_consistency needs a prediction other than 'x_0' and weighting simple")
        if not self.low <= self.high:
            raise ValueError(f"objective.low={self.low} is above objective.high={self.high}")

        def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> jax.Array:
            s, plain = seen(setting, params, frozen, batch, keys), recipe._replace(extra_cond=())

            def teacher(scale: jax.Array) -> Any:
                away = recipe.null(frozen, len(keys))
                return denoiser(plain, frozen["teacher"], s.cond, guidance=Guidance(scale), away=away)

            how = {"schedule": recipe.schedule, "prediction": recipe.prediction, "teacher": teacher, "cond": s.cond}
            how |= {"low": self.low, "high": self.high, "steps": self.steps, "huber": self.huber}
            return latent_consistency_loss(s.keys, s.predict, s.x_0, **how)

        return Objective(loss)
