"""The errors that are one line for the user, and the line and exit code of any other that ends a command."""

import os
import sys
import tempfile
import traceback
from pathlib import Path

# What reads and writes buckets; its errors are seldom OSErrors with a number.
_CLIENTS = {"botocore", "aiobotocore", "s3fs", "gcsfs", "google", "aiohttp", "fsspec"}


class UserError(ValueError):
    """Wrong input from outside (a config, a file, an argument): one line, what is wrong and what would be right.

    The entry points print it on stderr and exit with code 2; nothing has been written by then.
    """


class RunError(RuntimeError):
    """A run that began well cannot go on: one line, what happened and what to do.

    The entry points print it on stderr and exit with code 1; what was saved stays as it is.
    """


def chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it, outermost first."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def of_a_bucket(error: BaseException) -> bool:
    """Whether it came from a library that reads and writes buckets: no answer, no credentials, no such place."""
    return any(type(link).__module__.partition(".")[0] in _CLIENTS for link in chain(error))


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the line for an error that ends a command.

    The traceback of what nobody expected goes to a file that the line names; JAXDIFF_DEBUG=1 raises the error itself.

    >>> explain(FileNotFoundError(2, "No such file or directory", "cats/3.png"))
    (1, 'cats/3.png: no such file or directory')
    """
    text = " ".join(str(error).split())
    if isinstance(error, UserError | RunError):
        return 2 if isinstance(error, UserError) else 1, text
    if isinstance(error, KeyboardInterrupt):
        return 75, "stopped; run the same command again"
    if isinstance(error, OSError) and error.strerror:
        return 1, f"{f'{error.filename}: ' if error.filename else ''}{error.strerror.lower()}"
    if of_a_bucket(error):
        return 1, f"{text[:300] or type(error).__name__}; see docs/launch for what a bucket needs"
    if isinstance(error, MemoryError):
        return 1, f"out of memory; work on fewer images at a time ({text})"
    if "RESOURCE_EXHAUSTED" in text:
        return 1, f"out of device memory; work on fewer images at a time ({text[:200]})"
    frames = traceback.extract_tb(error.__traceback__)[-1:]  # JAX has a bare assertion for it, too
    if "initialize backend" in text or "nknown backend" in text or any("xla_bridge" in f.filename for f in frames):
        line = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} is not to be had here"
        return 2, f"{line}{text and f' ({text[:200]})'}; unset it, or install its extra (cuda, tpu)"
    if os.environ.get("JAXDIFF_DEBUG"):
        raise error
    line = f"internal error: {type(error).__name__}{text and f': {text[:200]}'}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="jaxdiff-", suffix=".txt", delete=False) as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return 1, f"{line} (JAXDIFF_DEBUG=1 shows where)"
    return 1, f"{line} (where: {file.name}, or JAXDIFF_DEBUG=1); please report it"


def program(name: str) -> str:
    """How messages call a command: as it was typed, a script of a clone, a module, or the installed command.

    >>> program("evaluate").endswith("jaxdiff evaluate")
    True
    """
    typed = Path(sys.argv[0])
    if typed.name in ("train.py", "sample.py") and name in ("train", "sample"):
        return f"{name}.py"
    return f"{'python -m ' * (typed.parts[-2:] == ('jaxdiff', '__main__.py'))}jaxdiff {name}"


def command(name: str) -> str:
    """How to type a command, where this one was typed."""
    return f"{'uv run ' * program(name).endswith('.py')}{program(name)}"
