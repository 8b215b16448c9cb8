"""A config.json against what is known of its class: defaults filled in, and a line for each option we have not."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxdiff.errors import UserError


def fill(
    config: Mapping[str, Any], kinds: Collection[str], defaults: Mapping[str, Any], only: Mapping[str, tuple]
) -> tuple[dict[str, Any], list[str]]:
    """The config with its defaults, and its options that cannot be had.

    Args:
      config: of config.json.
      kinds: the class that it must be of, under all its names.
      defaults: every option of that class.
      only: of some options, the values that can be had.

    Raises:
      UserError: it is of another class.

    >>> fill({"_class_name": "A", "x": 2}, ["A"], {"x": 1, "y": 3}, {"x": (1,)})
    ({'x': 2, 'y': 3}, ['x=2 (only 1)'])
    """
    kind = config.get("_class_name", next(iter(kinds)))
    if kind not in kinds:
        raise UserError(f"config.json is of a {kind}; jaxdiff imports {' and '.join(kinds)}")
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(given.keys() - defaults.keys())
    problems = [f"unknown options {', '.join(unknown)}"] if unknown else []
    full = {**defaults, **given}
    for option, choices in only.items():
        if full[option] not in choices:
            problems.append(f"{option}={full[option]!r} (only {' or '.join(map(repr, choices))})")
    return full, problems
