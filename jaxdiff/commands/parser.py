"""The one parser of all commands: dataclasses to options by tyro, wrong arguments to one line."""

import ast
import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro import _errors  # no public name gives a wrong argument without a box around it

from jaxdiff.config import flat, validate
from jaxdiff.config.arguments import take_members
from jaxdiff.config.files import expand_paths, load, load_plugins
from jaxdiff.errors import UserError, program
from jaxdiff.parallel import processes
from jaxdiff.schema import suggestion
from jaxdiff.storage import expanded

_PACKAGE = Path(__file__).parents[1]
CONFIGS = next(path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir())
"""In the package where it was installed from a wheel, beside it in a clone."""

FileName = Annotated[
    str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: expanded(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
"""A path or an address in a bucket, ~ expanded; "" where none is given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """The options of a command that several processes may run together."""

    coordinator: str | None = None
    """HOST:PORT of process 0, for several processes where JAX does not detect them."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    """Say nothing but errors and the closing line."""
    log_level: Literal["info", "warning", "error"] = "info"
    """warning leaves out progress, error notes and warnings too."""

    def place(self) -> processes.Place:
        """Where this process finds the others."""
        return processes.Place(self.coordinator, self.num_processes, self.process_id)


def parse[T](kind: type[T], argv: list[str], program: str, description: str | None = None, **keywords: Any) -> T:
    """The arguments of a command as a `kind`; `--help` is printed, and leaves.

    Args:
      kind: a dataclass. Booleans of a config take a value.
      argv: what was typed. A word with a space in it is a value, also where it starts with "--".
      program: how the command is typed.
      description: above the options in `--help`; the docstring of kind unless given.
      **keywords: `default`, a `kind` to begin with.

    Raises:
      UserError: what is wrong with them.
    """
    names = flat(keywords["default"]) if keywords else [field.name for field in dataclasses.fields(kind)]  # type: ignore
    words: list[str] = []
    for word in argv:
        if word.startswith("-") and " " in word and words and words[-1].startswith("--") and "=" not in words[-1]:
            words[-1] += f"={word}"
        else:
            words.append(word)

    def refuse(event: _errors.ParseErrorEvent) -> None:
        raise UserError(_line(event, [name.removeprefix("config.") for name in names]))

    with _errors.on_parse_error(refuse):
        arguments = tyro.cli(kind, args=words, prog=program, description=description, **keywords)
    level = "error" if getattr(arguments, "quiet", False) else getattr(arguments, "log_level", "info")
    logging.getLogger("jaxdiff").setLevel(level.upper())
    return arguments


def parse_config[T: Any](kind: type[T], argv: list[str], name: str) -> T:
    """The arguments of a command that takes a config: `[CONFIG] [--option value ...]`."""
    file = config_file(argv)
    plugins, typed = load_plugins(argv[1:] if argv[:1] == [file] else argv)
    config, stem = load(file, CONFIGS), Path(file.removesuffix("/config.json")).stem
    plugins = tuple(dict.fromkeys((*config.plugins, *plugins)))
    config = dataclasses.replace(config, workdir=config.workdir or f"runs/{stem}", plugins=plugins)
    config, typed = take_members(config, typed)
    description = f"{kind.__doc__}\n\n{config_lines()}"
    arguments = parse(kind, typed, program(name), description, default=kind(config))
    return dataclasses.replace(arguments, config=validate(expand_paths(arguments.config)))


def config_file(argv: list[str]) -> str:
    """The CONFIG of a command's arguments."""
    return argv[0] if argv and not argv[0].startswith("-") else "digits"


def config_lines() -> str:
    """The configs, a line each."""
    lines = (f"  {path.stem:<28}{_first_line(path)}" for path in sorted(CONFIGS.glob("*.py")))
    return "\n".join(["configs:", *lines])


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]


def _line(event: _errors.ParseErrorEvent, names: list[str]) -> str:
    """A wrong argument in words."""
    if isinstance(event, _errors.UnrecognizedArgs):
        word = next((token for token in event.tokens if token.startswith("--")), event.tokens[0])
        option = word.partition("=")[0]
        if not option.startswith("--"):
            return f"unexpected argument {word!r}; see --help"
        show = lambda near: f"--{near if '.' in near else near.replace('_', '-')}"  # noqa: E731
        return f"unknown option {option}{suggestion(option.removeprefix('--'), names, show) or '; see --help'}"
    if isinstance(event, _errors.MissingArgs):
        return f"{', '.join(each.arg.display_name() for each in event.missing_arguments)} is missing; see --help"
    argument = getattr(event, "argument", None)
    name = argument.display_name() if argument else "arguments"
    if isinstance(event, _errors.InvalidChoice):
        return (
            f"{name} {event.value!r} must be one of {', '.join(choice for choice in event.choices if choice != 'None')}"
        )
    if isinstance(event, _errors.InstantiationFailure):
        return f"{name}: {event.message.partition(chr(10))[0].replace('{None}|', '')}"
    return f"{name} needs a value; see --help"
