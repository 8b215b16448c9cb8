"""Options of objectives that begin with a run's average, and of those that may have it as a teacher, too."""

import dataclasses
from typing import Annotated, Any

from jaxdiff.denoisers import Denoiser
from jaxdiff.diffusion import Guidance, Recipe, denoiser
from jaxdiff.objectives.base import ObjectiveOptions, Seen
from jaxdiff.schema import Between


@dataclasses.dataclass(frozen=True)
class Tuned(ObjectiveOptions):
    """Where it begins."""

    start: str = ""
    """Workdir of the run to begin with, of the same network and process."""
    digest: str = ""
    """Of that run's average, noted when this one begins; another average is refused after that."""

    def runs(self) -> dict[str, str]:
        """Where training starts."""
        return {"start": self.start}

    def check(self) -> None:
        """Refuses to begin with nothing.

        Raises:
          ValueError: start is empty.
        """
        if not self.start:
            raise ValueError("objective.start is empty; name the workdir of the run to begin with")


@dataclasses.dataclass(frozen=True)
class Distilled(Tuned):
    """Whether that run is the teacher."""

    teacher: bool = True
    """Distil that run; false: learn from the images alone."""
    guidance: Annotated[float, Between(0, 1000)] = 1.0
    """Classifier-free guidance scale of the teacher; 1 is none."""

    def runs(self) -> dict[str, str]:
        """Where training starts, and the teacher."""
        return super().runs() | ({"teacher": self.start} if self.teacher else {})

    def teacher_of(self, recipe: Recipe, frozen: Any, seen: Seen) -> Denoiser | None:
        """The teacher of a batch, guided; None where there is none."""
        if not self.teacher:
            return None
        guidance = None if self.guidance == 1 else Guidance(self.guidance)
        away = recipe.null(frozen, len(seen.keys)) if guidance else None
        return denoiser(recipe, frozen["teacher"], seen.cond, guidance=guidance, away=away)
