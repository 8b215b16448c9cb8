"""Few steps on hard data, beside DDIM at as many: the part of the proof that people's settings are in."""

from collections.abc import Sequence

import numpy as np

from benchmarks.proof_cases import FAMILIES, GRIDS
from tests.oracles import HARD
from tests.samplers import convergence as c
from tests.samplers import few_steps as f

STEPS = (5, 8, 10, 20, 50)
NAMES = tuple(name for name in c.METHODS if name != "ddim")


def few_rows(names: Sequence[str] = NAMES) -> list[dict]:
    """A row a case (schedule, grid, steps, data) above DDIM's error, and a row a sampler and number of steps."""
    rows = []
    for family in FAMILIES:
        for steps in (STEPS[:3], STEPS[3:]):  # one length of times each
            cases = f.cases_of(family, GRIDS, steps)
            index, times, x_T, exact = f.setting(family, GRIDS, cases)
            errors = {
                name: f.rms(np.asarray(f.program(c.METHODS[name].make, family)(index, times, x_T)) - exact)
                for name in ("ddim", *names)
            }
            tiny, count = 1e-6 * f.rms(exact), np.array([n for *_, n in cases])
            for name in names:
                ratio = errors[name] / (errors["ddim"] + tiny)
                for i, j in np.argwhere(~(ratio <= 1.0)):
                    where = [*cases[i], list(HARD)[j]]
                    rows.append({"sampler": name, "case": where, "ratio": _short(ratio[i, j])})
                for n in steps:
                    typical = np.exp(np.mean(np.log((errors[name] + tiny) / (errors["ddim"] + tiny))[count == n]))
                    size = int(np.sum(count == n)) * len(HARD)
                    rows.append({"sampler": name, "steps": n, "typical": _short(typical), "cases": size})
    return rows


def _short(value: float) -> float:
    return float(f"{value:.3g}")
