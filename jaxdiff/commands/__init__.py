"""The command line: `jaxdiff COMMAND ...`, one module a command, and the boundary where errors become one line."""

import importlib
import importlib.metadata
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from jaxdiff.errors import UserError, explain, program
from jaxdiff.schema import suggestion
from jaxdiff.storage import cache_folder
from jaxdiff.streams import lasting

COMMANDS = {
    "train": "train a diffusion model",
    "check-data": "look at a data set without training: bad files, what is passed over, a contact sheet",
    "sample": "draw samples from a run, or images of a text from a Stable Diffusion folder",
    "evaluate": "measure how good a run's samples are",
    "export": "make a small folder of a run, to share: weights, config, class names, a picture, a model card",
    "convert": "make a run of another project's weights, or the other way round",
    "prepare": "make a data set with captions of what package managers bring",
    "plan": "what a step of a config needs, on this machine or on TPU slices that need not be there",
}
"""Each is the module of that name here (with _ for -), whose `run(argv)` gives the exit code and the closing line."""


def main(argv: Sequence[str] | None = None, began: float | None = None) -> int:
    """`jaxdiff COMMAND [--option value ...]`; returns the exit code.

    0 is done, 1 failed, 2 wrong input, 75 stopped and to be started again, 76 another process of the job is lost.

    Args:
      argv: the arguments, the command first; those of the process unless given.
      began: when the process did, in `time.time` seconds, for a run's account of wall time; now unless given.
    """
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name not in COMMANDS or rest == ["--list"]:
        return exit_code("jaxdiff", lambda: (0, _about(name if name not in COMMANDS else "--list")))
    module = importlib.import_module(f"jaxdiff.commands.{name.replace('-', '_')}")
    about = (began,) if name == "train" else ()
    return exit_code(program(name), lambda: module.run(rest, *about))


def _about(option: str) -> str:
    if option in ("-h", "--help"):
        listed = "\n".join(f"  {name:<12}{about}" for name, about in COMMANDS.items())
        usage = "usage: jaxdiff COMMAND ...; jaxdiff COMMAND --help lists its options"
        return f"{usage}\n\n{listed}\n\n  --version\n  --list      configs, and all that is chosen by name"
    if option == "--list":
        from jaxdiff.commands.listing import listing

        return listing()
    if option != "--version":
        raise UserError(f"unknown command {option}{suggestion(option, COMMANDS, str)}; see jaxdiff --help")
    import jax

    version, devices = importlib.metadata.version("jaxdiff"), jax.devices()
    return (
        f"jaxdiff {version}, jax {jax.__version__}, {devices[0].platform} ({len(devices)} of {devices[0].device_kind})"
    )


def exit_code(program: str, body: Callable[[], tuple[int, str]]) -> int:
    """Runs body and prints its last line, or one line that says what went wrong."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs, with a traceback, what it then raises
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # likewise the loop in which a save failed
    sys.unraisablehook = _unraisable
    with lasting(program) as out:
        try:
            code, line = body()
        except (Exception, KeyboardInterrupt) as error:
            code, line = explain(error)
        lost = out.lost  # a run goes on without its progress, but a result that nobody gets is none
        if code and line:
            print(f"{program}: {line}", file=sys.stderr)
        elif line:  # none in processes but the first
            print(line, flush=True)
        return code or int(out.lost and not lost)


def _unraisable(unraisable: Any) -> None:
    """Drops what TensorStore's threads raise when the loop of a failed save is closed before they end."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next start need not compile them again.

    JAX's own variables come first: JAX_COMPILATION_CACHE_DIR (another folder), JAX_ENABLE_COMPILATION_CACHE=false.
    XDG_CACHE_HOME counts where it is an absolute path. Without a home, or one to write to, nothing is kept.
    """
    import jax

    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    folder = cache_folder()
    for option, value in (
        ("jax_compilation_cache_dir", folder and str(folder / "xla")),
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
    ):
        if option.upper() not in os.environ:
            jax.config.update(option, value)
