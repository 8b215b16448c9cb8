"""`jaxdiff check-data [CONFIG] [--option value ...]`: the images before training: which are bad, what will be seen."""

import dataclasses
from typing import Annotated

import tyro

from jaxdiff.commands.parser import FileName, parse_config
from jaxdiff.config import Config
from jaxdiff.storage import check_writable, place


@dataclasses.dataclass(frozen=True)
class CheckDataArguments:
    """Read all images of a config, list those that are bad, and draw a contact sheet of what the network will see."""

    config: Annotated[tyro.conf.FlagConversionOff[Config], tyro.conf.arg(name="")]
    out: FileName = "data.png"
    """The contact sheet."""


def run(argv: list[str]) -> tuple[int, str]:
    """Checks; the exit code and what was found."""
    arguments = parse_config(CheckDataArguments, argv, "check-data")
    out = place(arguments.out)
    check_writable(out, "--out")
    from jaxdiff.job.check_data import check_data

    return check_data(arguments.config, out)
