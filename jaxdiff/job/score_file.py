"""scores.json: everything that was measured of a run, so that nothing is measured twice."""

import dataclasses
import hashlib
import json
from typing import Any

import jax

from jaxdiff.errors import UserError
from jaxdiff.evaluation.scores import DEFINITIONS, Bits, Score, identity
from jaxdiff.pictures import write_whole
from jaxdiff.schema import decode
from jaxdiff.storage import Place

_KINDS: dict[str, type] = {"scores": Score, "bits": Bits}


class ScoreFile:
    """The measurements in a file; process 0 alone writes it.

    Raises:
      UserError: the file holds something else.
    """

    def __init__(self, path: Place):
        self._path, self._rows = path, []
        if not path.exists():
            return
        try:
            content = json.loads(path.read_text())
            for kind, rows in content.items():
                self._rows += [decode(_KINDS[kind], row, f"{kind}.") for row in rows]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is not what evaluate wrote ({error}); move it away") from None

    def find(self, like: Any) -> Any:
        """The measurement of the same thing in the same way, or None."""
        return next((row for row in self._rows if type(row) is type(like) and identity(row) == identity(like)), None)

    def samples(self, n: int, step: int | None = None) -> list[Score]:
        """The scores of n samples of a step, the newest unless given, by today's definitions."""
        rows = [row for row in self._rows if type(row) is Score and row.sampler and row.n == n]
        step = max((row.step for row in rows), default=0) if step is None else step
        return [row for row in rows if row.step == step and row.definitions == DEFINITIONS]

    def put(self, row: Any) -> None:
        """Keeps a measurement in place of an older one of the same thing, on disk before this returns."""
        old = self.find(row)
        self._rows = [row if kept is old else kept for kept in self._rows] if old else [*self._rows, row]
        content = {
            name: [dataclasses.asdict(row) for row in self._rows if type(row) is kind] for name, kind in _KINDS.items()
        }
        if jax.process_index() == 0:
            write_whole(self._path, (json.dumps(content, indent=2) + "\n").encode())

    def digest(self) -> str:
        """Of all measurements: processes that see others would measure other cells."""
        return hashlib.sha256(repr(self._rows).encode()).hexdigest()[:16]
