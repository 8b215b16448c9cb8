"""`jaxdiff export RUN FOLDER`: a run as a small folder to share: weights, config, class names, picture, model card.

    jaxdiff export runs/cats cats                      the average of the newest checkpoint
    jaxdiff export runs/cats cats --step 20000

`jaxdiff sample cats`, `jaxdiff train CONFIG --init cats` and `jaxdiff.load("cats")` read it.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from jaxdiff.commands import use_compilation_cache
from jaxdiff.commands.parser import FileName, parse
from jaxdiff.config.files import load_plugins
from jaxdiff.errors import UserError, program
from jaxdiff.storage import in_bucket


@dataclasses.dataclass(frozen=True)
class ExportArguments:
    """What to export, and where to."""

    run: tyro.conf.Positional[FileName]
    """The run."""
    folder: tyro.conf.Positional[FileName]
    """A new folder."""
    step: int | None = None
    """The checkpoint; default the newest."""
    weights: Literal["ema", "raw"] = "ema"
    """The average, or what was trained."""
    ema: float | None = None
    """Relative width of another average, of a run with train.posthoc_ema."""
    best: tyro.conf.FlagCreatePairsOff[bool] = False
    """The best checkpoint, of a run with train.best."""
    picture: bool = True
    """Draw samples.png, as the run's config says."""


def run(argv: list[str]) -> tuple[int, str]:
    """Exports; the exit code and the line that says what."""
    arguments = parse(ExportArguments, load_plugins(argv)[1], program("export"), __doc__)
    if in_bucket(arguments.folder):
        raise UserError("export writes a folder of this machine; copy it to the bucket")
    folder = Path(arguments.folder)
    use_compilation_cache()
    from jaxdiff.job.export import check_free, export_model
    from jaxdiff.job.trained import load

    check_free(folder)
    how = {name: getattr(arguments, name) for name in ("step", "weights", "ema", "best")}
    return 0, export_model(load(arguments.run, **how), folder, arguments.picture)
