"""A Griffe extension: shows the doctests of a docstring as code, wherever in the docstring they stand."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n?)(?:^(?!\s*$).*\n?)*", re.MULTILINE)  # from a prompt to the next empty line


class DoctestsAsCode(griffe.Extension):
    """Puts a code fence around each doctest."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by Griffe for each module, class, function and attribute."""
        del kwargs
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(r"```pycon\n\g<0>\n```\n", obj.docstring.value)
