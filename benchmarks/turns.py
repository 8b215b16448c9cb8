"""Things timed in turns, so that a machine that drifts, or that others use as well, slows all of them."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import jax
import numpy as np

from jaxdiff.assembly.training_program import Program
from jaxdiff.config import Config
from jaxdiff.job import training as training_job
from jaxdiff.training.state import TrainState


def start(program: Program) -> TrainState:
    """A new state where the step wants it: elsewhere its first call would be another program than the rest."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(program.init, out_shardings=shardings, compiler_options=options)(program.keys["init"])


def take_turns(actions: Mapping[str, Callable[[], object]], turns: int, warm: bool = True) -> dict[str, list[float]]:
    """The seconds of each action in each turn; who comes first alternates. Each runs once before, if `warm`."""
    names = list(actions)
    if warm:
        for name in names:
            actions[name]()
    took: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        for name in names if turn % 2 else reversed(names):
            began = time.perf_counter()
            actions[name]()
            took[name].append(time.perf_counter() - began)
    return took


def ratio(above: list[float], below: list[float]) -> float:
    """The median of the ratios of neighbours."""
    return median(a / b for a, b in zip(above, below, strict=True))


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """p of seconds = a size^p, by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def line(cells: list[object]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(head: list[str], rows: list[list[object]]) -> str:
    """Rows under their head, in Markdown."""
    return "\n".join(line(cells) for cells in (head, ["---"] * len(head), *rows))


class Job:
    """`train.py` in turns: each call trains a quarter more than `steps` steps in one workdir, with a checkpoint.

    What it spent on the last `steps` is its own account of wall time in metrics.jsonl, which adds up to the wall time
    (tested): start-up, compilation and the start of workers are not of the loop.

    Attributes:
      spent: of each call, seconds by what they went to.
    """

    def __init__(self, config: Config, workdir: Path, steps: int):
        self._config, self._workdir, self._steps = config, workdir, steps
        self._done = 0
        self.spent: list[dict[str, float]] = []

    def __call__(self) -> None:
        first, every = self._done + self._steps // 4, self._steps // 4
        self._done = first + self._steps
        changes = {"steps": self._done, "log_every": every, "checkpoint_every": self._steps, "sample_every": 0}
        train = dataclasses.replace(self._config.train, **changes)
        training_job.train(dataclasses.replace(self._config, workdir=str(self._workdir), train=train), time.time())
        lines = [json.loads(line) for line in (self._workdir / "metrics.jsonl").read_text().splitlines()]
        start, end = (next(line["seconds"] for line in lines if line["step"] == step) for step in (first, self._done))
        self.spent.append({name: end[name] - start[name] for name in end})
