"""`jaxdiff train [CONFIG] [--option value ...]`: a training run from a config; train.py is the same."""

import dataclasses
import time

import tyro

from jaxdiff.commands import use_compilation_cache
from jaxdiff.commands.parser import Processes, config_file, parse_config
from jaxdiff.commands.plan import PlanArguments, check, plan
from jaxdiff.errors import UserError, program
from jaxdiff.parallel import processes


@dataclasses.dataclass(frozen=True)
class TrainArguments(PlanArguments, Processes):
    """Train a diffusion model. CONFIG comes first: a name in configs/, a .py or .json file or a run; digits if none."""

    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print what the run will take, time and memory, and write nothing; --json prints the resolved config too."""
    allow_change: tuple[str, ...] = ()
    """A field, such as optimizer.learning_rate, or data, that may change in the run that goes on; or several."""
    profile: int | None = None
    """Trace so many steps, after a warm-up, into WORKDIR/profile for XProf."""
    verify_resume: int | None = None
    """Train so many steps at once, and again with a restart half-way, in folders of its own, and compare all bits."""


def run(argv: list[str], began: float | None = None) -> tuple[int, str]:
    """Trains; the exit code and the closing line.

    Args:
      argv: as they were typed.
      began: when the process did, in `time.time` seconds, for its account of wall time; now unless given.
    """
    began = time.time() if began is None else began
    arguments = parse_config(TrainArguments, argv, "train")
    check(arguments, arguments.dry_run)
    steps = arguments.profile
    if steps is not None and (steps < 1 or arguments.dry_run or arguments.verify_resume):
        raise UserError(f"--profile {steps} must be 1 or more steps of a run that trains")
    if arguments.dry_run:
        return plan(arguments)
    use_compilation_cache()
    if arguments.verify_resume is not None:
        from jaxdiff.job.verify_resume import verify_resume

        return verify_resume(_without(argv, "verify-resume"), arguments.verify_resume)

    def train() -> tuple[int, str]:
        from jaxdiff.job import training as training_job

        how = {"allowed": arguments.allow_change, "origin": config_file(argv)}
        return training_job.train(arguments.config, began, steps or 0, **how)

    return processes.run(arguments.place(), program("train"), train)


def _without(argv: list[str], option: str) -> list[str]:
    """The arguments but one option and its value."""
    kept, skip = [], False
    for argument in argv:
        name = argument.removeprefix("--").replace("_", "-")
        if not skip and name.partition("=")[0] != option:
            kept.append(argument)
        skip = not skip and name == option
    return kept
