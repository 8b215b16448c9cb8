"""Few steps on hard data, beside DDIM at as many: the part of the proof that people's settings are in."""

import itertools
from collections.abc import Sequence

import numpy as np

from benchmarks.proof_cases import FAMILIES, GRIDS
from tests.oracles import HARD
from tests.samplers import convergence as c
from tests.samplers import few_steps as f

STEPS = (5, 8, 10, 20, 50)
AGAIN = 256  # points of a set on which the cases that eight find worse are measured again
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
    return _again(rows)


def _again(rows: list[dict]) -> list[dict]:
    """The rows, where those more than 10 % worse than DDIM have the ratio on AGAIN points, too."""
    bad = [row for row in rows if row.get("ratio", 0.0) > 1.1]
    for family, name in itertools.product(FAMILIES, dict.fromkeys(row["sampler"] for row in bad)):
        mine = [row for row in bad if row["sampler"] == name and row["case"][0] in family]
        cases = list(dict.fromkeys(tuple(row["case"][:3]) for row in mine))
        if not cases:
            continue
        index, times, x_T, exact = f.setting(family, GRIDS, cases, AGAIN)
        own, ddim = (
            f.rms(np.asarray(f.program(c.METHODS[n].make, family)(index, times, x_T)) - exact) for n in (name, "ddim")
        )
        for row in mine:
            where = cases.index(tuple(row["case"][:3])), list(HARD).index(row["case"][3])
            row["again"] = _short(own[where] / ddim[where])
    return rows


def spread_rows() -> list[dict]:
    """Of each stochastic sampler and case, how far the samples' spread is from the data's, and that of DDIM's."""
    rows = []
    for family in FAMILIES:
        cases = f.cases_of(family, GRIDS, (5, 10, 20))
        index, times, x_T, _ = f.setting(family, GRIDS, cases, f.SDE_POINTS)
        off = {name: f.spread(np.asarray(f.program(make, family)(index, times, x_T))) for name, make in f.SDE.items()}
        ddim = off.pop("ddim eta=1")
        for name, found in off.items():
            for i, j in np.ndindex(found.shape):
                where = [*cases[i], list(HARD)[j]]
                rows.append({"sampler": name, "case": where, "off": _round(found[i, j]), "ddim": _round(ddim[i, j])})
    return rows


def _round(value: float) -> float:
    return round(float(value), 3)


def _short(value: float) -> float:
    return float(f"{value:.3g}")
