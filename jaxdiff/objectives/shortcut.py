"""Shortcut: a network of two times that samples in any power of two of steps, trained from scratch."""

import dataclasses
from typing import Annotated, ClassVar

from jaxdiff.losses import shortcut_loss
from jaxdiff.objectives.base import Objective, ObjectiveOptions, Setting
from jaxdiff.objectives.mean_flow import two_times
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
        if self.finest & (self.finest - 1):
            raise ValueError(f"objective.finest={self.finest}; it must be a power of two, such as 128")
        return two_times("shortcut", setting, shortcut_loss, self.guidance, share=self.share, finest=self.finest)
