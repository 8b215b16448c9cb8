"""A family: members of one kind by name, each with its options; the one registry.

A member is a function or a dataclass, and its keyword parameters are its options: what cannot be is said by the member,
and the choices are read from its signature. To add one is to write it and to name it in the family's table.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Family(NamedTuple):
    """Members of one kind.

    Attributes:
      title: what a member is called in messages.
      members: {name: factory}; a plug-in adds to it.
      given: parameters that the caller of `build` supplies, and no user.

    >>> def flow(shift: float = 1.0): return shift
    >>> family = Family("schedule", {"flow": flow})
    >>> family.build("flow", {"shift": 3.0})
    3.0
    >>> family.build("flow", {"shfit": 3.0})
    Traceback (most recent call last):
    ...
    ValueError: flow has no option 'shfit'; it takes shift
    """

    title: str
    members: dict[str, Callable[..., Any]]
    given: tuple[str, ...] = ()

    def build(self, name: str, options: Mapping[str, Any] | None = None, /, *args: Any, **given: Any) -> Any:
        """The member of that name: its factory called with args, its options, and those of `given` that it takes.

        Raises:
          ValueError: unknown name or option (the choices are listed), or what the member itself refuses.
        """
        options = options or {}
        self.check(name, options)
        taken = inspect.signature(self.members[name]).parameters
        return self.members[name](*args, **{key: given[key] for key in given if key in taken}, **options)

    def made[T](self, value: T | str, **given: Any) -> T:
        """The member of a name, made with its defaults; any value but the factory of one as it is.

        Raises:
          ValueError: an unknown name, or a factory, which is to be called.
        """
        if isinstance(value, str):
            return self.build(value, None, **given)
        for name, member in self.members.items():
            if value is member:
                raise ValueError(f"{name} makes a {self.title}: call it, {name}()")
        return value

    def check(self, name: str, options: Mapping[str, Any]) -> None:
        """Raises ValueError, with the choices, for an unknown name or option."""
        if name not in self.members:
            raise ValueError(f"unknown {self.title} {name!r}; choose one of {', '.join(self.members)}")
        legal = self.options(name)
        kinds = [p.kind for p in inspect.signature(self.members[name]).parameters.values()]
        unknown = [option for option in options if option not in legal]
        if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:  # else it passes them on
            raise ValueError(f"{name} has no option {unknown[0]!r}; it takes {', '.join(legal) or 'none'}")

    def options(self, name: str) -> dict[str, Any]:
        """{option: its type} of a member, from its signature."""
        member = self.members[name]
        hints = typing.get_type_hints(member.__init__ if inspect.isclass(member) else member)
        parameters = inspect.signature(member).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {p.name: hints.get(p.name, Any) for p in parameters if p.kind in named and p.name not in self.given}

    def summary(self, name: str) -> str:
        """The first line of a member's docstring."""
        return (inspect.getdoc(self.members[name]) or "").partition("\n")[0]

    def name_of(self, member: Any) -> str:
        """The name under which a class of the family stands.

        Raises:
          KeyError: it is in no such table.
        """
        return next(name for name, kind in self.members.items() if kind is member)
