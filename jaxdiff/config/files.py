"""Configs in files: configs/*.py is code, config.json is data.

A file in configs/ is Python that defines `config = Config(...)`; it is executed only because its name or path
was typed. The config.json of a run is decoded against the dataclasses: names, types and ranges are checked,
and nothing in it is ever executed.
"""

import dataclasses
import json
import re
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxdiff.config import Config, validate
from jaxdiff.errors import UserError, command
from jaxdiff.schema import decode, encode, suggestion
from jaxdiff.storage import Place, expanded, in_bucket, place

EXPORTED = "model.safetensors"  # what a folder has in place of checkpoints that `jaxdiff export` wrote
_MAX_BYTES = 1 << 16  # of config.json

# What a run may change when it goes on: nothing here alters the numbers of a training step. Another number of
# devices changes the order of floating-point sums only. train.steps may not fall below what is already done.
MAY_CHANGE = (
    "workdir",
    "data.path",  # the data's own fingerprint is compared instead
    "data.on_error",
    "data.allow_empty",
    "train.steps",
    "train.steps_per_call",
    "train.checkpoint_every",
    "train.keep",  # and keep_every
    "train.log_every",
    "train.loggers",
    "train.sample_every",
    "train.evaluate_",
    "train.best",
    "train.patience",
    "sampling.",
    "parallel.",
)


def load(name_or_path: str, folder: Path) -> Config:
    """The `config` of a Python file, given by its path or by its name in folder; of a run, of a JSON or YAML file.

    A run's has the workdir that it was read from; of any other, only what the file says.

    Raises:
      UserError: no such file (the nearest name is offered), or none that defines a Config.
    """
    path = Path(expanded(name_or_path))
    if in_bucket(expanded(name_or_path)) or path.name == "config.json" or (path / "config.json").is_file():
        run = place(expanded(name_or_path).removesuffix("config.json").rstrip("/") or ".")
        exported = (run / EXPORTED).exists()
        if exported and path.name != "config.json":
            raise UserError(f"{run} is exported and has no checkpoints: begin from it by --init {run} --workdir ...")
        return dataclasses.replace(read_run(run), workdir="" if exported else str(run))
    if path.suffix in (".json", ".yaml", ".yml") and path.is_file():
        return from_json(path.read_text(), str(path))
    if path.suffix != ".py":
        path = folder / f"{name_or_path}.py"
    names = sorted(p.stem for p in folder.glob("*.py"))
    beside = Path(f"{name_or_path}.py")
    if not path.is_file() and name_or_path.endswith(".py"):
        raise UserError(f"no file {name_or_path}")
    if not path.is_file() and beside.is_file():
        raise UserError(f"no config {name_or_path!r}; did you mean the file {beside}?")
    if not path.is_file():
        raise UserError(f"no config {name_or_path!r}{suggestion(name_or_path, names)} (there are {', '.join(names)})")
    scope: dict[str, Any] = {"__file__": str(path), "__name__": path.stem}
    _execute(path, scope)
    if not isinstance(scope.get("config"), Config):
        raise UserError(f"{path} must define config = Config(...)")
    return scope["config"]


def _execute(path: Path, scope: dict[str, Any]) -> None:
    """Runs a file that was named on the command line. Raises UserError, with file and line, for what it raises."""
    content = path.read_bytes()  # not text: the file may say how it is encoded
    if b"\0" in content:
        raise UserError(f"{path} has zero bytes, as UTF-16 has; save it as UTF-8")
    sys.path.insert(0, str(path.parent.resolve()))  # where Python, too, looks first for what a script imports
    try:
        exec(compile(content, str(path), "exec"), scope)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        beside = [frame for frame in frames if Path(frame.filename).resolve().parent == path.parent.resolve()]
        where = f" ({Path(beside[-1].filename).name}, line {beside[-1].lineno})" if beside else ""
        raise UserError(f"{path} does not run{where}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))


def expand_paths(config: Config) -> Config:
    """The config with ~ expanded wherever it names a folder."""
    data, objective = config.data, config.objective
    paths = {name: expanded(getattr(objective, name)) for name in ("start",) if hasattr(objective, name)}
    return dataclasses.replace(
        config,
        workdir=expanded(config.workdir),
        init=expanded(config.init),
        data=dataclasses.replace(data, path=expanded(data.path)),
        objective=dataclasses.replace(objective, **paths),
    )


UNTRAINED = ("seed", "data.", "optimizer.", "train.", *MAY_CHANGE)
"""What may change in a run that was imported and has not been trained yet: all but what its weights are of."""

BY_WORD = (
    "data",
    "diffusion.class_dropout",
    "diffusion.weighting",
    "diffusion.time_sampling",
    "model.dropout",
    "model.remat",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "optimizer.schedule",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.name_options",
    "train.batch_size",
    "train.accumulate",
    "train.ema_decay",
)
"""What may change in a run that goes on, if --allow-change names it: the steps from there on are other ones."""


def changed_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], workdir: str, allowed: Sequence[str] = (), may: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """{field: (before, now)} of what changes by word in a run that goes on.

    Args:
      old: the fields of the run, by dotted name.
      new: those asked for.
      workdir: of the run, for messages.
      allowed: fields of BY_WORD, or groups of them, that were named.
      may: beginnings of the names of fields that may change without a word; MAY_CHANGE unless given.

    Raises:
      UserError: a field differs that may not, or that nobody named.
    """
    for word in allowed:
        if not any(_covers(word, name) or _covers(name, word) for name in BY_WORD):
            raise UserError(f"--allow-change {word}: a run keeps that for good; these may change: {', '.join(BY_WORD)}")
    names = [name for name in {**old, **new} if not name.startswith(tuple(may or MAY_CHANGE))]
    differing = {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}
    legal = [name for name in differing if any(_covers(word, name) for word in BY_WORD)]
    refused = [name for name in differing if name not in legal or not any(_covers(word, name) for word in allowed)]
    if refused:
        listed = ", ".join(f"{name} {before!r} -> {now!r}" for name, (before, now) in differing.items())
        flag = f", or go on with --allow-change {' '.join(legal)}" if len(legal) == len(differing) else ""
        raise UserError(f"{workdir} holds a run of another config: {listed}; choose another --workdir{flag}")
    return differing


def _covers(word: str, name: str) -> bool:
    """Whether a word names a field: itself, its group, or the member whose options it is.

    >>> _covers("optimizer", "optimizer.clip_norm"), _covers("optimizer.schedule", "optimizer.schedule_options.end")
    (True, True)
    >>> _covers("optimizer.clip", "optimizer.clip_norm")
    False
    """
    return name == word or name.startswith((f"{word}.", f"{word}_options."))


def to_json(config: Any) -> str:
    """The text of config.json, of a config or of its encoded tree."""
    return json.dumps(encode(config), indent=2) + "\n"


def from_json(text: str, where: str = "config.json") -> Config:
    """Reads what `to_json` wrote: names, types and ranges are checked, missing fields have their defaults.

    Raises:
      UserError: not JSON, an unknown name, a value of another type, or a config that `validate` refuses.

    >>> from_json(to_json(Config(seed=3))).seed
    3
    >>> from_json('{"seeds": 3}')
    Traceback (most recent call last):
    ...
    jaxdiff.errors.UserError: config.json: unknown field 'seeds'; did you mean 'seed'?
    """
    try:
        is_yaml = where.endswith((".yaml", ".yml"))
        content = _migrated(yaml.load(text, _Yaml) if is_yaml else json.loads(text))
        _check_plugins(content)
        return validate(decode(Config, content))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:  # not JSON, or JSON too deep to read
        what = "a config in YAML" if is_yaml else "JSON that jaxdiff wrote"
        raise UserError(f"{where} is not {what}: {' '.join(str(error).split())}") from None


class _Yaml(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, too; 1.1 has it as a text."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


_plugins: set[str] = set()  # by file name, that were loaded in this process


def load_plugins(argv: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Runs the file of each `--plugin FILE`, which adds members to families; (the files, the other arguments).

    Raises:
      UserError: a file that is not there, or does not run.
    """
    files, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name != "--plugin":
            rest.append(word)
            continue
        if not equals and not words:
            raise UserError("--plugin needs a value: the path of a .py file")
        path = Path(expanded(value if equals else words.pop(0)))
        if not path.is_file():
            raise UserError(f"--plugin {path}: no such file")
        if path.name not in _plugins:
            module = types.ModuleType(path.stem)  # dataclasses and tyro look classes up in their modules
            sys.modules.setdefault(path.stem, module)
            module.__file__ = str(path)
            _execute(path, vars(module))
            _plugins.add(path.name)
        files.append(path.name)
    return tuple(files), rest


def _check_plugins(content: Any) -> None:
    """Raises UserError if a run needs a file that this command was not given; nothing of config.json is run."""
    named = content.get("plugins", []) if isinstance(content, dict) else []
    missing = [name for name in named if name not in _plugins] if isinstance(named, list) else []
    if missing:
        raise UserError(f"the run has members of {missing[0]}; name that file, if you trust it, by --plugin")


def _migrated(content: Any) -> Any:
    """What jaxdiff 0.1 wrote, in the fields of today; and what `convert --to safetensors` wrote of a run."""
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if name != "image_shape"}
    if isinstance(content, dict) and isinstance(model := content.get("model"), dict):
        content = {**content, "model": {key: value for key, value in model.items() if key != "winograd"}}
    if isinstance(content, dict) and isinstance(old := content.get("consistency"), dict):
        content = {key: value for key, value in content.items() if key != "consistency"}
        if old.get("start"):
            content["objective"] = {"kind": "consistency", **old}
    return content


def read_run(workdir: Place) -> Config:
    """The config of the run that workdir holds.

    Raises:
      UserError: there is no config.json, or it is not one that `from_json` accepts.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(
            f"{workdir} holds no run (no config.json); train one with {command('train')} --workdir {workdir}"
        )
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path} is larger than {_MAX_BYTES} bytes; it is not one that jaxdiff wrote")
    return from_json(content.decode(errors="replace"), str(path))
