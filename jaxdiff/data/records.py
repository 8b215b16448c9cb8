"""Records: the contract of where images come from, a random-access list, and how their classes are numbered.

A file each: a folder, idx files, a prepared TFDS data set, shards of tar files.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from jaxdiff.data.decoding import WHITE, Colour, Size
from jaxdiff.errors import UserError

Numbering = Literal["natural", "text"] | tuple[str, ...]
"""How class folders get their numbers: in natural order (9 before 10), as text (10 before 9), or as in these names."""

Shape = tuple[int | None, int | None, int | None]
"""(h, w, c) of all records; None where one has to look."""


@runtime_checkable
class Records(Protocol):
    """Images and labels by index, decoded when asked for; picklable, so that worker processes can hold them.

    Those with captions have one attribute more, `captions`: a tuple of texts a record, () for one without.
    """

    shape: Shape
    num_classes: int
    class_names: tuple[str, ...]
    """By number; () where they have none."""

    @property
    def identity(self) -> str:
        """What the records are, without their pixels: a fingerprint's cheap half."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What whoever reads them should know."""
        ...

    def leave_out(self, corrupt: Collection[int]) -> None:
        """Drops records for good; those behind them move up."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """How errors call a record."""
        ...

    def measure(self, index: int) -> tuple[int, int, int]:
        """The (h, w, c) of a record from its header alone. Raises CorruptImageError."""
        ...

    def read(
        self, index: int, channels: int, resize: Size | None, background: Colour = WHITE
    ) -> tuple[UInt8[np.ndarray, "h w channels"], int]:
        """A record's pixels and label. Raises CorruptImageError."""
        ...


def check_class_names(where: str, strange: Sequence[str], missing: Sequence[str]) -> None:
    """Raises UserError if a data set has classes that the run has not, or lacks some of the run's."""
    if strange or missing:
        parts = [f"{few(names)} {what}" for names, what in ((strange, "not of the run"), (missing, "missing")) if names]
        raise UserError(f"the classes of {where} are not those of the run: {', '.join(parts)}")


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A key that sorts names with numbers in them as people count.

    >>> sorted(["b", "10", "9", "a2", "a10"], key=natural_order)
    ['9', '10', 'a2', 'a10', 'b']
    """
    parts: list[str | int] = [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
    return parts, name


def few(names: Sequence[Any], number: int = 10) -> str:
    """So many of them by name, and how many more there are."""
    return ", ".join(map(str, names[:number])) + (f" and {len(names) - number} more" if len(names) > number else "")
