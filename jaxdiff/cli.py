"""The command line: what train.py and sample.py call. Parses, calls the job, turns wrong input into one line."""

import contextlib
import dataclasses
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxdiff.arguments import take_members
from jaxdiff.config import Config, flat, validate
from jaxdiff.config_files import load
from jaxdiff.errors import RunError, UserError
from jaxdiff.places import place
from jaxdiff.schema import Options, nearest

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments:
    coordinator: str | None = None
    """HOST:PORT of process 0, for several processes where JAX does not detect them."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""


@dataclasses.dataclass(frozen=True)
class TrainArguments(_Arguments):
    """Train a diffusion model. CONFIG comes first: a name in configs/ or the path of a .py file; default digits."""

    config: Annotated[tyro.conf.FlagConversionOff[Config], tyro.conf.arg(name="")]
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the resolved config and what a step will cost, and write nothing."""
    topology: str = ""
    """With --dry-run: TPU slices to compile the step for, such as v5e:16x16,v6e:8x8@2 (two slices); none is needed."""
    batch_per_chip: int | None = None
    """With --topology: so many images a chip, in place of train.batch_size."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --topology: compile this step only, not for the largest batch and other settings."""
    plan_out: Path | None = None
    """With --topology: write the plans as JSON to this file."""
    profile: int | None = None
    """Trace so many steps, after a warm-up, into WORKDIR/profile for XProf."""
    verify_resume: int | None = None
    """Train so many steps at once, and again with a restart half-way, in folders of its own, and compare all bits."""


@dataclasses.dataclass(frozen=True)
class SampleArguments(_Arguments):
    """Draw samples from a run with its EMA parameters, or images of a text from a Stable Diffusion folder."""

    workdir: tyro.conf.Positional[str]
    """The run; or, with --prompt, a diffusers folder (model_index.json, unet, vae, text_encoder, ...)."""
    sampler: str | None = None
    """Sampling method; default: the run's own, and so for the next three."""
    sampler_options: Options = dataclasses.field(default_factory=dict)
    """Its options, such as --sampler-options.order 3."""
    steps: int | None = None
    """Sampling steps."""
    spacing: str | None = None
    """How the steps are spread over time."""
    spacing_options: Options = dataclasses.field(default_factory=dict)
    """Its options: t_min, rho."""
    threshold: str | None = None
    """How x_0 estimates are kept in range: none, static or dynamic."""
    threshold_options: Options = dataclasses.field(default_factory=dict)
    """Its options: limit, percentile."""
    guidance_rule: str | None = None
    """How the condition is exaggerated: cfg, interval, rescaled, apg, cfg_pp, cfg_zero_star, autoguidance."""
    guidance_options: Options = dataclasses.field(default_factory=dict)
    """Its options, such as --guidance-options.low 0.2."""
    eta: float | None = None
    """Randomness, 0 to 1, of a method that has it."""
    guidance: float | None = None
    """Classifier-free guidance scale; default with --prompt 7.5."""
    seed: int = 0
    """Sample i depends on the seed and i alone."""
    num: int | None = None
    """How many; default 64, or 4 with --trajectory, 1 with --prompt."""
    classes: tuple[str, ...] = ()
    """Classes to go through in turn, by number or name; default all."""
    batch_size: int | None = None
    """How many to draw at once; default 64, or 4 with --prompt."""
    trajectory: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw the walk from noise to image instead: x_t and the x_0 estimate."""
    out: str | None = None
    """FILE.png (a grid), FILE.npz (arrays), a folder (single PNGs); with --trajectory FILE.png or FILE.gif."""
    prompt: str | None = None
    """A text to make images of."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    init_image: str | None = None
    """A picture to start from."""
    strength: float = 0.75
    """With --init-image: how much of the walk is made, above 0 to 1; little stays near the picture."""
    mask: str | None = None
    """With --init-image: a picture of the same size; white is drawn anew, black stays."""
    height: int | None = None
    """Pixels, with --prompt; default the model's own."""
    width: int | None = None
    """Likewise."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What to compute in, with --prompt; default float32 (norms, softmax and the last layer always are)."""
    ema: float | None = None
    """Relative width of the average to draw with, e.g. 0.10, of a run with train.posthoc_ema; default: its own EMA."""


def train_main(argv: Sequence[str] | None = None, began: float | None = None) -> int:
    """`train.py [CONFIG] [--option value ...]`; returns the exit code: 0 done, 1 failed, 2 wrong input, 75 stopped.

    76 says that another process of the job is lost.

    Args:
      argv: the arguments; those of the process unless given.
      began: when the process did, in `time.time` seconds, for its account of wall time; now unless given.
    """
    began = time.time() if began is None else began
    return exit_code("train.py", lambda: _train(list(sys.argv[1:] if argv is None else argv), began))


def sample_main(argv: Sequence[str] | None = None) -> int:
    """`sample.py WORKDIR [--option value ...]`; returns the exit code: 0 done, 1 corrupt, 2 wrong input."""
    return exit_code("sample.py", lambda: _sample(list(sys.argv[1:] if argv is None else argv)))


def _train(argv: list[str], began: float) -> tuple[int, str]:
    name = argv.pop(0) if argv and not argv[0].startswith("-") else "digits"
    config = load(name, CONFIGS)
    if not config.workdir:
        config = dataclasses.replace(config, workdir=f"runs/{Path(name).stem}")
    config, argv = take_members(config, argv)
    names = [*flat(config), *(_option_names(TrainArguments) - {"config"})]
    arguments = _parse(TrainArguments, argv, names, "train.py", default=TrainArguments(config))
    validate(arguments.config)
    _check_plan(arguments)
    use_compilation_cache()
    if arguments.topology:
        return 0, _plan(arguments)
    if arguments.verify_resume is not None:
        from jaxdiff.verify_resume import verify_resume

        return verify_resume([name, *_without(argv, "verify-resume")], arguments.verify_resume)
    if arguments.dry_run:
        from jaxdiff import plan  # imports everything: not before the arguments are known to be right

        return 0, plan.describe(arguments.config)
    from jaxdiff.training import processes

    def train() -> tuple[int, str]:
        from jaxdiff import training_job

        return training_job.train(arguments.config, began, arguments.profile or 0)

    return processes.run(_place(arguments), "train.py", train)


def _check_plan(arguments: TrainArguments) -> None:
    """Refuses options of the plan without one."""
    for name in ("topology", "batch_per_chip", "quick", "plan_out"):
        if getattr(arguments, name) and not (arguments.dry_run and arguments.topology):
            needed = "topology" if arguments.dry_run else "dry-run"
            raise UserError(f"--{name.replace('_', '-')} needs --{needed}")
    if arguments.profile is not None and (arguments.profile < 1 or arguments.dry_run or arguments.verify_resume):
        raise UserError(f"--profile {arguments.profile} must be 1 or more steps of a run that trains")


def _plan(arguments: TrainArguments) -> str:
    """The plans, topology by topology; written to --plan-out as they come, since one can take many minutes."""
    from jaxdiff import pictures, plan

    config, texts, done = arguments.config, [], []
    topologies = arguments.topology.split(",")
    for name in topologies:
        plan.parse_topology(name)
    for name in topologies:
        done.append(plan.plan(config, name, batch_per_chip=arguments.batch_per_chip, quick=arguments.quick))
        texts.append(plan.plan_text(done[-1]))
        if arguments.plan_out:
            pictures.write_whole(arguments.plan_out, plan.plans_json(config, done).encode())
    return "\n\n".join(texts)


def _sample(argv: list[str]) -> tuple[int, str]:
    names = [*(_option_names(SampleArguments) - {"workdir"})]
    default, argv = take_members(SampleArguments(""), argv)
    arguments = _parse(SampleArguments, argv, names, "sample.py", default=default)
    use_compilation_cache()
    from jaxdiff.training import processes

    def draw() -> tuple[int, str]:
        from jaxdiff import sampling_job

        asked = {name: value for name, value in vars(arguments).items() if name not in vars(_Arguments())}
        asked["workdir"] = place(arguments.workdir)
        for name in ("out", "init_image", "mask"):
            asked[name] = asked[name] and place(asked[name])
        return sampling_job.draw(sampling_job.Request(**asked))

    return processes.run(_place(arguments), "sample.py", draw)


def _without(argv: list[str], option: str) -> list[str]:
    """The arguments but one option and its value."""
    kept, skip = [], False
    for argument in argv:
        name = argument.removeprefix("--").replace("_", "-")
        if not skip and name.partition("=")[0] != option:
            kept.append(argument)
        skip = not skip and name == option
    return kept


def _option_names(kind: type) -> set[str]:
    return {field.name.replace("_", "-") for field in dataclasses.fields(kind)}


def _place(arguments: _Arguments) -> Any:
    from jaxdiff.training.processes import Place

    return Place(arguments.coordinator, arguments.num_processes, arguments.process_id)


def _parse[T](kind: type[T], argv: list[str], names: list[str], program: str, **keywords: Any) -> T:
    """tyro's parsing, its errors as one line; flags but --trajectory, --dry-run and --quick take a value."""
    known = {name.replace("_", "-") for name in names} | {"help"}
    for argument in argv:
        option = argument.removeprefix("--").split("=")[0]
        if argument.startswith("--") and option.replace("_", "-") not in known:
            raise UserError(f"unknown option --{option}; did you mean --{nearest(option, names)}?")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=argv, prog=program, **keywords)
    except SystemExit as stopped:
        if not stopped.code:
            raise  # --help
        raise UserError(_first_words(errors.getvalue())) from None


def _first_words(box: str) -> str:
    """The message in tyro's box of several lines, up to the rule that starts its hints."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()[1:]]
    message = " ".join(lines[: lines.index("")] if "" in lines else lines)
    return message.strip() or "wrong arguments; see --help"


def exit_code(program: str, body: Callable[[], tuple[int, str]]) -> int:
    """Runs body and prints its last line, or one line that says what went wrong."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs, with a traceback, what it then raises
    try:
        code, line = body()
    except UserError as error:
        code, line = 2, " ".join(str(error).split())
    except RunError as error:
        code, line = 1, " ".join(str(error).split())
    if code and line:
        print(f"{program}: {line}", file=sys.stderr)
    elif line:  # none in processes but the first
        print(line, flush=True)
    return code


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next start need not compile them again.

    JAX's own variables come first: JAX_COMPILATION_CACHE_DIR (another folder), JAX_ENABLE_COMPILATION_CACHE=false.
    """
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "jaxdiff" / "xla"
    for option, value in (
        ("jax_compilation_cache_dir", str(cache)),
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
    ):
        if option.upper() not in os.environ:
            jax.config.update(option, value)
