"""A config.json against what is known of its class: defaults filled in, and a line for each option we have not."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from jaxdiff.errors import UserError

LARGEST = 1_000_000
"""Of the numbers in a config.json."""

AVERAGE = frozenset(  # what diffusers' EMAModel writes into the config of the network it averaged
    "decay min_decay optimization_step update_after_step use_ema_warmup inv_gamma power".split()
)


def fill(
    config: Mapping[str, Any], kinds: Collection[str], defaults: Mapping[str, Any], only: Mapping[str, tuple]
) -> tuple[dict[str, Any], list[str]]:
    """The config with its defaults, and its options that cannot be had.

    Args:
      config: of config.json; what an average's class added to it is left out.
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
    given = {key: value for key, value in config.items() if not key.startswith("_") and key not in AVERAGE}
    unknown = sorted(given.keys() - defaults.keys())
    problems = [f"unknown options {', '.join(unknown)}"] if unknown else []
    full = {**defaults, **given}
    for option, choices in only.items():
        if full[option] not in choices:
            problems.append(f"{option}={full[option]!r} (only {' or '.join(map(repr, choices))})")
    return full, problems


def check_types(full: Mapping[str, Any], defaults: Mapping[str, Any], but: Collection[str]) -> None:
    """Refuses values of another type than the default's.

    Args:
      full: of `fill`.
      defaults: every option.
      but: options whose values are checked in another way.

    Raises:
      UserError: all of them.
    """
    mistyped = [
        f"{option}={str(full[option])[:80]!r} ({_wanted(default)})"
        for option, default in defaults.items()
        if option not in but and full[option] != default and not _fits(full[option], default)
    ]
    if mistyped:
        raise UserError(f"config.json has values of the wrong type: {'; '.join(mistyped)}")


def _fits(value: Any, default: Any) -> bool:
    """Whether a value from a file is of the type of the default; of None: a natural number, or a list of them."""
    if isinstance(default, list):
        return isinstance(value, list) and 0 < len(value) <= 32 and all(_fits(part, default[0]) for part in value)
    if isinstance(default, bool | str):
        return type(value) is type(default)
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value) and value >= 0
    sizes = value if default is None and isinstance(value, list) else [value]
    return value is None or (len(sizes) <= 32 and all(type(n) is int and 0 <= n <= LARGEST for n in sizes))


def _wanted(default: Any) -> str:
    if isinstance(default, list):
        return f"only a list of such as {default[0]!r}"
    if isinstance(default, bool | str | float):
        return f"only such as {default!r}"
    return f"only a whole number in 0..{LARGEST}"
