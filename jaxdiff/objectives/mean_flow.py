"""MeanFlow: a network of two times that samples in one step or a few, trained from scratch."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import jax

from jaxdiff.losses import mean_flow_loss
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
class MeanFlow(ObjectiveOptions):
    """The mean velocity between two times (Geng et al. 2025), see jaxdiff.losses.mean_flow_loss. Sampler: mean_flow."""

    extra_cond: ClassVar[tuple[str, ...]] = ("r",)

    equal: Annotated[float, Between(0, 1)] = 0.75
    """Share of examples whose two times are one, where it is flow matching."""
    power: Annotated[float, Between(0, 2)] = 1.0
    """Of the adaptive weight 1/(error + 0.001)^power; 0 is none."""
    guidance: Annotated[float, Between(0, 1000)] = 1.0
    """Classifier-free guidance scale that one evaluation a step then has; 1 is none."""

    def make(self, setting: Setting) -> Objective:
        """The objective."""
        return two_times("mean_flow", setting, mean_flow_loss, self.guidance, equal=self.equal, power=self.power)


def two_times(
    name: str, setting: Setting, of: Callable[..., jax.Array], guidance: float, **options: float
) -> Objective:
    """The objective of a loss of two times with its options, such as mean_flow_loss."""
    recipe, times = setting.recipe, time_sampling(setting)
    straight(name, setting)
    check_guidance(guidance, setting)

    def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> jax.Array:
        s = seen(setting, params, frozen, batch, keys)
        how = {**options, "time_sampling": times, "t": batch.get("t"), "cond": s.cond}
        how |= {"guidance": guidance, "away": recipe.null(frozen, len(keys))}
        return of(s.keys, s.predict, s.x_0, **how)

    return objective_of(setting, loss)
