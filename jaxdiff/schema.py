"""Dataclasses as the schema of JSON: data from outside becomes a value of the declared type, or one clear line."""

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from jaxdiff.errors import UserError


def decode(kind: Any, value: Any, name: str = "") -> Any:
    """A value as JSON gave it -> a value of type kind, nothing converted but whole numbers to floats.

    Args:
      kind: a dataclass, whose fields may leave out what has a default; bool, int, float, str; a Literal; a tuple
        of any length, or a dict by strings, of one of these; several of these, or None.
      value: what `json.loads` returned, or `dataclasses.asdict` (tuples are lists).
      name: how errors call it.

    Raises:
      UserError: an unknown field (the nearest is offered), or a value of another type.

    >>> decode(tuple[int, ...], [1, 2])
    (1, 2)
    >>> decode(int | tuple[int, ...] | None, [4, 8]), decode(int | tuple[int, ...] | None, 4)
    ((4, 8), 4)
    >>> decode(Literal["mesh", "pmap"], "xmap", "parallel.mode")
    Traceback (most recent call last):
    ...
    jaxdiff.errors.UserError: parallel.mode is 'xmap'; it must be one of mesh, pmap
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{name or 'the file'} must be an object")
        kinds, make = typing.get_type_hints(kind), typing.cast(type, kind)
        for key in value.keys() - kinds.keys():
            raise UserError(f"unknown field {name + key!r}; did you mean {name + nearest(key, kinds)!r}?")
        return make(**{key: decode(kinds[key], item, f"{name}{key}.") for key, item in value.items()})
    name, origin, options = name.rstrip("."), typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None and types.NoneType in options:
            return None
        for option in options[1:]:
            with contextlib.suppress(UserError):
                return decode(option, value, name)
        return decode(options[0], value, name)
    if origin is Literal and value in options:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(decode(options[0], item, name) for item in value)
    if origin is dict and isinstance(value, dict):
        return {str(key): decode(options[1], item, f"{name}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is kind:
        return value
    wanted = f"one of {', '.join(map(str, options))}" if origin is Literal else getattr(kind, "__name__", kind)
    raise UserError(f"{name} is {value!r}; it must be {wanted}")


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice that is spelled most like word.

    >>> nearest("train.stepz", ["train.steps", "seed"])
    'train.steps'
    """
    return difflib.get_close_matches(word, list(choices), n=1, cutoff=0.0)[0]
