"""Things timed in turns, so that a machine that drifts, or that others use as well, slows all of them."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import jax
import numpy as np

from jaxdiff.program import Program
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
