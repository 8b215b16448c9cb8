"""Dataclasses as the schema of JSON: data from outside becomes a value of the declared type, or one clear line."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

from jaxdiff.errors import UserError
from jaxdiff.family import Family

Options = dict[str, Any]
"""Options of a member of a family, by name; what they may be is the member's to say."""


class Between(NamedTuple):
    """The range of a number, its ends included; written Annotated[int, Between(1, 9)]."""

    low: float
    high: float


def decode(kind: Any, value: Any, name: str = "") -> Any:
    """A value as JSON gave it -> a value of type kind, nothing converted but whole numbers to floats.

    Args:
      kind: a dataclass, whose fields may leave out what has a default; a class with a `family`, whose JSON has the
        member's name as "kind" (the first member's where it has none); bool, int, float, str; a Literal; a tuple, or
        a dict by strings, of one of these; Any, for what JSON can hold; a union of these or None.
      value: what `json.loads` returned, or `encode` (tuples are lists).
      name: how errors call it.

    Raises:
      UserError: an unknown field (the nearest is offered), or a value of another type.

    >>> decode(tuple[int, ...], [1, 2])
    (1, 2)
    >>> decode(Literal["mesh", "pmap"], "xmap", "parallel.mode")
    Traceback (most recent call last):
    ...
    jaxdiff.errors.UserError: parallel.mode is 'xmap'; it must be one of mesh, pmap
    """
    family = getattr(kind, "family", None)
    if family is not None or dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{name or 'the file'} must be an object")
        if family is not None:
            value = dict(value)
            member = value.pop("kind", next(iter(family.members)))
            if member not in family.members:
                choices = ", ".join(family.members)
                raise UserError(f"{name}kind: unknown {family.title} {member!r}; choose one of {choices}")
            kind = family.members[member]
        kinds, make = typing.get_type_hints(kind, include_extras=True), typing.cast(type, kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        for key in value.keys() - set(fields):
            raise UserError(f"unknown field {name + key!r}{suggestion(key, fields, lambda near: repr(name + near))}")
        return make(**{key: decode(kinds[key], item, f"{name}{key}.") for key, item in value.items()})
    name, origin, options = name.rstrip("."), typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return decode(options[0], value, name)
    if origin is types.UnionType or origin is typing.Union:
        return _decode_union(options, value, name)
    if origin is Literal and value in options:
        return value
    if origin is tuple and isinstance(value, list | tuple) and (options[-1] is ... or len(options) == len(value)):
        return tuple(decode(options[0], item, name) for item in value)
    if origin is dict and isinstance(value, dict):
        return {str(key): decode(options[1], item, f"{name}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is kind:
        return value
    if kind is Any and isinstance(value, bool | int | float | str | list | tuple | None):
        return tuple(value) if isinstance(value, list) else value
    wanted = f"one of {', '.join(map(str, options))}" if origin is Literal else getattr(kind, "__name__", str(kind))
    raise UserError(f"{name} is {value!r}; it must be {wanted}")


def _decode_union(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """The first of the kinds that the value is of; None where that is one of them."""
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds[1:]:
        try:
            return decode(kind, value, name)
        except UserError:
            continue
    return decode(kinds[0], value, name)


def decoded(family: Family, name: str, options: Options) -> Options:
    """The options of a member, of the types that it declares.

    Raises:
      ValueError: an option of another type, or of another member.
    """
    family.check(name, options)
    kinds = family.options(name)
    return {key: decode(kinds.get(key, Any), value, key) for key, value in options.items()}


def encode(value: Any) -> Any:
    """A value as `decode` reads it: dataclasses as dicts, members of a family with their name as "kind".

    >>> @dataclasses.dataclass
    ... class Point:
    ...     x: int = 1
    >>> encode(Point())
    {'x': 1}
    """
    if not dataclasses.is_dataclass(value):
        return value
    family = getattr(value, "family", None)
    kind = {} if family is None else {"kind": family.name_of(type(value))}
    return kind | {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}


def out_of_range(value: Any, name: str = "") -> Iterator[str]:
    """A line for each number of a dataclass, and of those in it, that its `Between` does not allow."""
    kinds = typing.get_type_hints(type(value), include_extras=True)
    for field in dataclasses.fields(value):
        item, at = getattr(value, field.name), f"{name}{field.name}"
        if dataclasses.is_dataclass(item):
            yield from out_of_range(item, f"{at}.")
        for limit in _ranges(kinds[field.name]):
            for number in item if isinstance(item, tuple) else (item,):
                if isinstance(number, int | float) and not limit.low <= number <= limit.high:
                    yield f"{at}={item} must lie in {limit.low}..{limit.high}"
                    break


def _ranges(kind: Any) -> list[Between]:
    if typing.get_origin(kind) is Annotated:
        return [item for item in typing.get_args(kind)[1:] if isinstance(item, Between)]
    return [limit for part in typing.get_args(kind) if part is not ... for limit in _ranges(part)]


def suggestion(word: str, choices: Iterable[str], show: Callable[[str], str] = repr) -> str:
    """What to add to a message about an unknown word: the choice that is spelled like it, "" where none is.

    >>> suggestion("train.stepz", ["train.steps", "seed"]), suggestion("horse", ["train.steps", "seed"])
    ("; did you mean 'train.steps'?", '')
    """
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {show(near[0])}?" if near else ""
