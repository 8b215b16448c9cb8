"""Shortcut: a network of two times that samples in any power of two of steps, trained from scratch."""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax

from jaxdiff.losses import shortcut_loss
from jaxdiff.objectives.base import (
    Batch,
    Objective,
    ObjectiveOptions,
    Setting,
    check_guidance,
    objective_of,
    seen,
    straight,
    time_sampling,
)
from jaxdiff.schema import Between


@dataclasses.dataclass(frozen=True)
class Shortcut(ObjectiveOptions):
    """Steps learned from half steps (Frans et al. 2025), see jaxdiff.losses.shortcut_loss. Sampler: mean_flow."""

    extra_cond: ClassVar[tuple[str, ...]] = ("r",)

    share: Annotated[float, Between(0, 1)] = 0.25
    """Of examples that learn steps; the others learn the velocity."""
    finest: Annotated[int, Between(2, 1 << 20)] = 128
    """Steps of 1/finest, a power of two, are those of the velocity."""
    guidance: Annotated[float, Between(0, 1000)] = 1.0
    """Classifier-free guidance scale that the steps have; 1 is none."""

    def make(self, setting: Setting) -> Objective:
        """The objective."""
        recipe, times = setting.recipe, time_sampling(setting)
        straight("shortcut", setting)
        check_guidance(self.guidance, setting)
        if self.finest & (self.finest - 1):
            raise ValueError(f"objective.finest={self.finest}; it must be a power of two, such as 128")

        def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> jax.Array:
            s = seen(setting, params, frozen, batch, keys)
            how = {"share": self.share, "finest": self.finest, "time_sampling": times, "t": batch.get("t")}
            how |= {"guidance": self.guidance, "away": recipe.null(frozen, len(keys)), "cond": s.cond}
            return shortcut_loss(s.keys, s.predict, s.x_0, **how)

        return objective_of(setting, loss)
