"""Members of families on the command line: `--model dit`, `--diffusion.schedule_options.shift 3`.

tyro parses the fields of the dataclasses that it is given. Which dataclass a network or an objective is, and which
options a member has, depends on names in the same command line: so these arguments are taken out first.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from jaxdiff.errors import UserError


def take_members[T](default: T, argv: Sequence[str]) -> tuple[T, list[str]]:
    """Takes the members of families, and the options of members, out of the arguments.

    Another member than the default's starts without options; in whatever order they stand.

    Args:
      default: a dataclass of groups, or one group itself.
      argv: arguments, `--name value` or `--name=value`; dashes and underscores are alike.

    Returns:
      The dataclass with them, and the other arguments.

    Raises:
      UserError: an unknown member, or an argument without its value.

    >>> from jaxdiff.config import Config
    >>> config, rest = take_members(Config(), ["--diffusion.weighting-options.gamma=3", "--seed", "1"])
    >>> config.diffusion.weighting_options, rest
    ({'gamma': 3}, ['--seed', '1'])
    """
    members, options, rest, words = [], [], [], list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        path = name.removeprefix("--").replace("-", "_").split(".")
        kind = _kind(default, path) if name.startswith("--") else None
        if kind is None:
            rest.append(word)
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"{name} needs a value")
            value = words.pop(0)
        (options if kind == "option" else members).append((path, value))
    for path, value in [*members, *options]:
        default = _replaced(default, path, value)
    return default, rest


def options_field(field: str) -> str:
    """The field that holds the options of the member named in `field`.

    >>> options_field("guidance_rule"), options_field("sampler")
    ('guidance_options', 'sampler_options')
    """
    return f"{field.removesuffix('_rule')}_options"


def _kind(value: Any, path: Sequence[str]) -> str | None:
    """What the path names: a "member" (a dataclass, or a name that has options beside it), an "option", or neither."""
    field = getattr(value, path[0], None)
    if len(path) == 1:
        own = isinstance(getattr(value, options_field(path[0]), None), dict)
        named = own and not hasattr(value, f"{path[0]}_rule")  # guidance is a scale, guidance_rule a member
        return "member" if named or hasattr(field, "family") else None
    if isinstance(field, dict):
        return "option" if len(path) == 2 else None
    return _kind(field, path[1:]) if dataclasses.is_dataclass(field) else None


def _replaced(value: Any, path: Sequence[str], text: str) -> Any:
    name, field = path[0], getattr(value, path[0])
    if len(path) > 1:
        within = {**field, path[1]: _literal(text)} if isinstance(field, dict) else _replaced(field, path[1:], text)
        return dataclasses.replace(value, **{name: within})
    family = getattr(field, "family", None)
    if family is None:
        return value if field == text else dataclasses.replace(value, **{name: text, options_field(name): {}})
    if text not in family.members:
        raise UserError(f"unknown {family.title} {text!r}; choose one of {', '.join(family.members)}")
    kind = family.members[text]
    return value if type(field) is kind else dataclasses.replace(value, **{name: kind()})


def _literal(text: str) -> Any:
    """A number, true, false, null or a list as JSON has it; any other text as it is.

    >>> _literal("3"), _literal("true"), _literal("bh2"), _literal("[1, 2]")
    (3, True, 'bh2', (1, 2))
    """
    try:
        value = json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text
    return tuple(value) if isinstance(value, list) else value
