"""`jaxdiff plan [CONFIG] [--topology ...]`: what a step needs; `train --dry-run` is the same."""

import dataclasses
import json
from typing import Annotated

import tyro

from jaxdiff.commands import use_compilation_cache
from jaxdiff.commands.parser import FileName, parse_config
from jaxdiff.config import Config
from jaxdiff.errors import UserError
from jaxdiff.schema import encode


@dataclasses.dataclass(frozen=True)
class PlanArguments:
    """Print what a run of a config will take, time and memory, and write nothing. CONFIG as for train."""

    config: Annotated[tyro.conf.FlagConversionOff[Config], tyro.conf.arg(name="")]
    topology: str = ""
    """Of a plan: TPU slices to compile the step for, such as v5e:16x16,v6e:8x8@2 (two slices); none is needed."""
    batch_per_chip: int | None = None
    """With --topology: so many images a chip, in place of train.batch_size."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --topology: compile this step only, not for the largest batch and other settings."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead, and nothing else: the resolved config with what was found."""
    plan_out: FileName = ""
    """With --topology: write the plans as JSON to this file."""


def run(argv: list[str]) -> tuple[int, str]:
    """The exit code and the plan, of arguments as they were typed."""
    return plan(parse_config(PlanArguments, argv, "plan"))


def plan(arguments: PlanArguments) -> tuple[int, str]:
    """The cost of a step; or plans, topology by topology, written as they come, since one can take many minutes.

    Raises:
      UserError: an option is missing its --topology, or the config does not fit.
    """
    check(arguments)
    use_compilation_cache()
    from jaxdiff import plan as planning  # imports everything: not before the arguments are known to be right
    from jaxdiff import storage

    config, texts, done = arguments.config, [], []
    if not arguments.topology:
        facts = planning.describe(config)
        text = json.dumps({"config": encode(config), **facts}, indent=2)
        return 0, text if arguments.json else planning.description(config, facts)
    topologies = arguments.topology.split(",")
    for name in topologies:
        planning.parse_topology(name)
    if arguments.plan_out:
        storage.check_writable(storage.place(arguments.plan_out), "--plan-out")
    for name in topologies:
        done.append(planning.plan(config, name, batch_per_chip=arguments.batch_per_chip, quick=arguments.quick))
        texts.append(planning.plan_text(done[-1]))
        if arguments.plan_out:
            storage.write_whole(storage.place(arguments.plan_out), planning.plans_json(config, done).encode())
    return 0, planning.plans_json(config, done).rstrip() if arguments.json else "\n\n".join(texts)


def check(arguments: PlanArguments, dry_run: bool = True) -> None:
    """Raises UserError if an option of the plan stands without one."""
    if arguments.json and not dry_run:
        raise UserError("--json needs --dry-run")
    for name in ("topology", "batch_per_chip", "quick", "plan_out"):
        if getattr(arguments, name) and not (dry_run and arguments.topology):
            raise UserError(f"--{name.replace('_', '-')} needs --{'topology' if dry_run else 'dry-run'}")
