"""Options of objectives that begin with a run's average."""

import dataclasses

from jaxdiff.objectives.base import ObjectiveOptions


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
