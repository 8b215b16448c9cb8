"""`train.py CONFIG --verify-resume N`: whether a run in two pieces ends in the bits of one in one piece."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxdiff.errors import RunError, UserError
from jaxdiff.training import integrity
from jaxdiff.training.checkpoints import restore


def verify_resume(arguments: Sequence[str], steps: int) -> tuple[int, str]:
    """Trains `steps` steps at once, and as many with a new process in between, in folders of its own.

    Args:
      arguments: of train.py, without --verify-resume.
      steps: >= 2.

    Returns:
      0 and what was compared, or 1 and what differs first.

    Raises:
      UserError: steps < 2.
      RunError: a process failed; its own line says why.
    """
    if steps < 2:
        raise UserError(f"--verify-resume {steps} cannot be cut in two; use 2 or more")
    with tempfile.TemporaryDirectory(prefix="verify-resume-") as folder:
        straight, pieces = Path(folder, "straight"), Path(folder, "pieces")
        for workdir, until in ((straight, steps), (pieces, steps // 2), (pieces, steps)):
            _train(arguments, workdir, until)
        a, b = integrity.flatten(restore(straight)), integrity.flatten(restore(pieces))
        wrong = [name for name in a if np.asarray(a[name]).tobytes() != np.asarray(b[name]).tobytes()]
        first = next((step for step, x, y in _losses(straight, pieces) if x != y), None)
    how = f"{steps} steps at once and {steps // 2} + {steps - steps // 2}"
    if wrong or first:
        since = f"the loss differs from step {first} on, " if first else ""
        return 1, f"resuming changes bits: {how} differ; {since}{len(wrong)} of {len(a)} leaves differ: {_some(wrong)}"
    return 0, f"resuming changes no bit: {how} give equal bits in all {len(a)} leaves and every step's loss"


def _train(arguments: Sequence[str], workdir: Path, steps: int) -> None:
    options = {"workdir": workdir, "train.steps": steps, "train.log-every": 1, "train.sample-every": 0}
    own = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "jaxdiff", "train", *arguments, *own]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        said = (ended.stderr.splitlines() or ["nothing"])[-1].partition(": ")[2]
        raise (UserError if ended.returncode == 2 else RunError)(said)


def _losses(one: Path, other: Path) -> list[tuple[int, str, str]]:
    """(step, loss of one, loss of other) of every step."""
    a, b = (
        [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()] for workdir in (one, other)
    )
    return [(x["step"], repr((x["step"], x["loss"])), repr((y["step"], y["loss"]))) for x, y in zip(a, b, strict=True)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
