"""`jaxdiff prepare emoji OUT`: data sets with captions, made of what package managers bring.

    jaxdiff prepare emoji data/emoji32 --size 32       fetches seven npm packages, draws 16,000 pictures

Afterwards: train --data.name webdataset --data.path OUT; `data.split` is train, heldout_style, heldout_colour,
heldout_tone, or tones (the skin tones that are not in train).
"""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from jaxdiff.commands.parser import FileName, parse
from jaxdiff.errors import UserError, program
from jaxdiff.storage import in_bucket


@dataclasses.dataclass(frozen=True)
class PrepareArguments:
    """What to make, and where."""

    data: tyro.conf.Positional[Literal["emoji"]]
    """The data set."""
    out: tyro.conf.Positional[FileName]
    """The folder to make."""
    size: Literal[32, 64, 128, 256] = 32
    """Pixels a side."""
    packages: FileName = ""
    """The folder of the packages' tarballs, where npm is not to fetch them."""


def run(argv: list[str]) -> tuple[int, str]:
    """Makes the data set; the exit code, and what was made."""
    arguments = parse(PrepareArguments, argv, program("prepare"), __doc__)
    if in_bucket(arguments.out):
        raise UserError("prepare writes to a folder of this machine; copy it to the bucket")
    from jaxdiff.job.prepare_emoji import prepare_emoji

    packages = Path(arguments.packages) if arguments.packages else None
    return 0, prepare_emoji(Path(arguments.out), arguments.size, packages)
