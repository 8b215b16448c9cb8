"""`jaxdiff convert SOURCE TARGET`: weights of other projects as runs of ours, and back.

    jaxdiff convert FOLDER WORKDIR                     a diffusers folder -> a workdir
    jaxdiff convert FILE.pt WORKDIR --project guided-diffusion --flags "--image_size 64 ..."
    jaxdiff convert WORKDIR FOLDER --to diffusers      a run's EMA -> what DDPMPipeline.from_pretrained loads
    jaxdiff convert WORKDIR FOLDER --to safetensors    a run's EMA -> model.safetensors and config.json

The workdir is an ordinary one, at step 0: sample draws from it, and `train WORKDIR/config.py --data.path PHOTOS`
trains on. Nothing is written unless everything fits.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from jaxdiff.commands.parser import FileName, parse
from jaxdiff.config.files import load_plugins
from jaxdiff.errors import UserError, program
from jaxdiff.interop.openai import FLAGS
from jaxdiff.storage import check_writable, in_bucket


@dataclasses.dataclass(frozen=True)
class ConvertArguments:
    """What to convert, and into what."""

    source: tyro.conf.Positional[FileName]
    """A diffusers folder, a .pt or .safetensors file, or a workdir."""
    target: tyro.conf.Positional[FileName]
    """What to make: a workdir, or a folder."""
    to: Literal["workdir", "diffusers", "safetensors"] = "workdir"
    """The form to make."""
    null_class: tyro.conf.FlagCreatePairsOff[bool] = False
    """The last of the model's classes means "no class"."""
    project: Literal[tuple(FLAGS)] | None = None  # type: ignore[valid-type]
    """What wrote the .pt file."""
    flags: str = ""
    """Its MODEL_FLAGS and DIFFUSION_FLAGS, in one string."""


def run(argv: list[str]) -> tuple[int, str]:
    """Converts; the exit code, and notes and what was made."""
    arguments = parse(ConvertArguments, load_plugins(argv)[1], program("convert"), __doc__)
    if in_bucket(arguments.source) or in_bucket(arguments.target):
        raise UserError("convert reads and writes folders of this machine; copy from or to the bucket")
    source, target = Path(arguments.source), Path(arguments.target)
    check_writable(target / "config.json", "the target")
    from jaxdiff.job.convert import export_run, import_run

    if arguments.to == "workdir":
        lines = import_run(source, target, arguments.null_class, arguments.project, arguments.flags)
    else:
        lines = export_run(source, target, arguments.to)
    return 0, "\n".join(lines)
