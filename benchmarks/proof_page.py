"""The proof page: what was measured is kept in docs/proof.json, and docs/proof.md is written from it."""

import fcntl
import itertools
import json
import os
import platform
from pathlib import Path

import jax
import numpy as np

from benchmarks.proof_few import AGAIN
from tests.samplers.few_steps import SDE_POINTS

DOCS = Path(__file__).parent.parent / "docs"
TOLERANCE = 0.15


def save(part: str, found: dict) -> None:
    """Puts one part in place of what was there."""
    folder = os.open(DOCS, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # two runs may measure different parts at the same time
    parts = load()
    found["versions"] = f"jax {jax.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    parts[part] = found
    _replace("proof.json", json.dumps(parts, separators=(",", ":")).replace('{"schedule"', '\n{"schedule"') + "\n")
    os.close(folder)


def load() -> dict[str, dict]:
    """part -> {"date", "seconds", "versions", "machine", "rows"}."""
    file = DOCS / "proof.json"
    return json.loads(file.read_text()) if file.exists() else {}


def write() -> None:
    _replace("proof.md", text(load()))


def _replace(name: str, content: str) -> None:
    temporary = DOCS / f".{name}.{os.getpid()}"
    temporary.write_text(content)
    temporary.replace(DOCS / name)


def text(parts: dict[str, dict]) -> str:
    """The whole page."""
    from benchmarks.proof import ODE, ORDER_STEPS, PARTS, TABLE_STEPS
    from benchmarks.proof_laws import LAW_STEPS, ON_THE_MIXTURE
    from tests.samplers.convergence import STOCHASTIC

    parts = {name: part for name, part in parts.items() if name in PARTS}  # not those of another name, before
    ode = {name: parts[name]["rows"] for name in ODE if name in parts}
    laws = {name: parts[f"law of {name}"]["rows"] for name in STOCHASTIC if f"law of {name}" in parts}
    mixtures = {name.removeprefix("mixture by "): p["rows"] for name, p in parts.items() if name.startswith("mixture")}
    stated = {name: method.order for name, method in (ODE | ON_THE_MIXTURE).items()}
    blocks = [
        INTRODUCTION.format(seconds=round(sum(p["seconds"] for p in parts.values()) / 60), run=_run(parts, PARTS)),
        *([_few(parts["few steps"]["rows"])] if "few steps" in parts else []),
        *([_spread(parts[name]["rows"])] if (name := "few steps, stochastic") in parts else []),
        _orders(ode, stated, {"continuous schedules": ORDER_STEPS, "tables": TABLE_STEPS}),
        _errors(ode),
        _laws(laws, mixtures, parts.get("law of lcm"), stated, LAW_STEPS),
    ]
    blocks += [render(parts[name]["rows"]) for name, render in OTHERS.items() if name in parts]
    return "\n".join(blocks)


def _run(parts: dict, known: dict) -> str:
    dates = sorted({p["date"] for p in parts.values()})
    versions = sorted({f"{p['versions']} ({p['machine']})" for p in parts.values()})
    missing = [name for name in known if name not in parts and name != "page"]
    return (
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}; {'; '.join(versions)}."
        + (f" Not measured: {', '.join(missing)}." if missing else "")
        if parts
        else "nothing yet."
    )


INTRODUCTION = """# Proof

What every sampler, schedule and grid does on data whose answer is known in closed form. This page is written by

    JAX_PLATFORMS=cpu uv run python -m benchmarks.proof

or as far as it gets: run again, it goes on with the parts that this very code has not measured yet. All of them took
{seconds} minutes of a CPU that others used as well; all numbers, of which the tables here show a part, are in
[proof.json](proof.json). Measured {run}

The data has two dimensions: a Gaussian N((0.5, -1), diag(0.8, 0.3)^2), and a mixture of two of unequal weight and
width (`tests/oracles.py`); the denoiser is the best one, in closed form. Times are continuous or, for the five
discrete schedules, entries of a table of 1000. The list is the ten times that Align Your Steps publishes for Stable
Diffusion, resampled.

"""


FEW = """## Few steps, on hard data

Orders say nothing of 5 to 50 steps. So every deterministic sampler runs on all thirteen schedules and seven grids at
5, 8, 10, 20 and 50 steps beside DDIM at as many steps, on five sets that are hard (`HARD` in `tests/oracles.py`): a
ring of eight Gaussians of widths 0.02 to 0.4, three far apart and wide, a point, a Gaussian of 64 dimensions of widths
0.01 to 2, and a mixture in 16 dimensions. The reference is a Runge-Kutta solution of 3000 steps; errors are root mean
squares over eight points of a set, in float64. That float32 gives the same within 1 % of the data, with the noise
computed from x_0, is tested on four schedules (`tests/samplers/test_few_steps.py`).

No method is to be worse than DDIM by more than 10 %. {bad} of {cases} cases are, the worst first:

{worst}
It is eight points that say so: one point between two Gaussians falls to another one and makes the whole difference. The
last column has the same ratio on {again} points. {still}
The cases of each sampler that are worse than DDIM by 0 to 10 %, by more, and the typical (geometric mean) error over
DDIM's:

{table}"""


STILL = """Above 1.10 there:

    {named}

From the exact flow three steps before its end both leave 0.0204: beside the leap of 1.55 in log(alpha/sigma) to the
last entry these are of order 1. With all its steps DDIM leaves 0.0190: its earlier errors happen to offset a part.
"""
SPREAD = """### Stochastic methods

At eta = 1 the samples' root mean square distance from the data's mean, less the data's own, in units of the data's
root mean square norm; {points} samples, whose luck is about 0.05. Extrapolation over a last leap of log-SNR shows as a
spread far above 0 (+1.2, were the order not lowered there: `dpmpp_2m_sde(full_order=True)`). Of {cases} cases at 5, 10
and 20 steps, {worse} are off by more than 1.1 times what DDIM with eta = 1 is off by, 0.05 added to both, and these
themselves by {most:.3f} at most. By sampler, the largest spread, that of DDIM there, and the mean of the distances
from 0:

{table}"""


def _spread(rows: list[dict]) -> str:
    worse = [abs(r["off"]) for r in rows if abs(r["off"]) + 0.05 > 1.1 * (abs(r["ddim"]) + 0.05)]
    cells = []
    for name in dict.fromkeys(r["sampler"] for r in rows):
        mine = [r for r in rows if r["sampler"] == name]
        top = max(mine, key=lambda r: r["off"])
        means = [f"{np.mean([abs(r[key]) for r in mine]):.3f}" for key in ("off", "ddim")]
        where = ", ".join(map(str, top["case"]))
        cells.append([f"`{name}`", where, f"{top['off']:+.3f}", f"{top['ddim']:+.3f}", *means])
    head = ["sampler", "case", "spread", "DDIM's", "mean distance", "DDIM's"]
    return SPREAD.format(
        points=SDE_POINTS, cases=len(rows), worse=len(worse), most=max(worse, default=0.0), table=_table(head, cells)
    )


def _few(rows: list[dict]) -> str:
    names = list(dict.fromkeys(r["sampler"] for r in rows))
    above = sorted((r for r in rows if "case" in r), key=lambda r: -r["ratio"])
    bad = [r for r in above if r["ratio"] > 1.1]
    steps = sorted({r["steps"] for r in rows if "steps" in r})
    cells = []
    for name in names:
        ratios = [r["ratio"] for r in above if r["sampler"] == name]
        means = []
        for n in steps:
            found = [r for r in rows if r["sampler"] == name and r.get("steps") == n]
            sizes = [r["cases"] for r in found]
            means.append(f"{np.exp(np.average(np.log([r['typical'] for r in found]), weights=sizes)):.2f}")
        cells.append([f"`{name}`", str(sum(r <= 1.1 for r in ratios)), str(sum(r > 1.1 for r in ratios)), *means])
    worst = [[f"`{r['sampler']}`", *map(str, r["case"]), f"{r['ratio']:.2f}", f"{r['again']:.2f}"] for r in bad]
    still = [r for r in bad if r["again"] > 1.1]
    named = "; ".join(f"{r['sampler']} on {', '.join(map(str, r['case']))}: {r['again']:.2f}" for r in still)
    return FEW.format(
        bad=len(bad),
        again=AGAIN,
        still=STILL.format(named=named) if still else "There none is above 1.10.\n",
        cases=sum(r.get("cases", 0) for r in rows),
        worst=_table(["sampler", "schedule", "grid", "steps", "data", "error over DDIM's", f"on {AGAIN}"], worst),
        table=_table(["sampler", "to 10 %", "more", *(f"{n} steps" for n in steps)], cells),
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _off(rows: list[dict], stated: int) -> list[tuple[str, str, float]]:
    """(schedule, grid, order) of what is further from the stated order than TOLERANCE."""
    found = [(r["schedule"], r["grid"], o) for r in rows for o in r.get("orders", [r.get("order")]) if o is not None]
    return [case for case in found if abs(case[2] - stated) > TOLERANCE]


def _orders(ode: dict, stated: dict, steps: dict) -> str:
    if not ode:
        return ""
    blocks = [ORDERS]
    for family, numbers in steps.items():
        chosen = {name: [r for r in found if _on_a_table(r) == (family == "tables")] for name, found in ode.items()}
        rows = [
            [
                f"`{name}`",
                str(stated[name]),
                *_fitted(found, stated[name]),
                *(_slopes(found, stated[name]) or ["–"] * 6),
            ]
            for name, found in chosen.items()
        ]
        pairs = [f"{a} to {b}" for a, b in itertools.pairwise(numbers)]
        blocks.append(f"### {family}\n")
        blocks.append(_table(["sampler", "stated", "Gaussian", "mixture", "cases", "off by > 0.15", *pairs], rows))
        off = {name: _cases(_off(found, stated[name])) for name, found in chosen.items()}
        missed = "; ".join(f"`{name}` {cases}" for name, cases in off.items() if cases)
        if missed:
            blocks.append(f"{TABLES_OFF}Off by more than 0.15: {missed}.\n")
    schedules = list(dict.fromkeys(r["schedule"] for r in next(iter(ode.values()))))
    for grid, also in (
        ("trailing", "trailing, leading, linspace"),
        *((g, g) for g in ("quadratic", "log_snr", "karras", "list")),
    ):
        rows = []
        for name, found in ode.items():
            at = {r["schedule"]: r["orders"] for r in found if r["grid"] == grid}
            rows.append(
                [f"`{name}`", *(" / ".join("–" if o is None else f"{o:.2f}" for o in at[s]) for s in schedules)]
            )
        blocks.append(f"### {also}: order, Gaussian / mixture\n\n" + _table(["sampler", *schedules], rows))
    return "\n".join(blocks)


def _fitted(rows: list[dict], stated: int) -> list[str]:
    """The range of the orders on the Gaussian and on the mixture, how many, and how many are off."""
    per = [[r["orders"][d] for r in rows if r["orders"][d] is not None] for d in (0, 1)]
    ranges = [f"{min(o):.2f} to {max(o):.2f}" if o else "–" for o in per]
    return [*ranges, str(len(per[0]) + len(per[1])), str(len(_off(rows, stated)))]


def _on_a_table(row: dict) -> bool:
    from benchmarks.proof_cases import DISCRETE

    return row["schedule"] in DISCRETE


def _slopes(rows: list[dict], stated: int) -> list[str]:
    """By pair of step counts: the largest distance of a slope from the stated order, and of how many, if not of all."""
    each = [slopes for r in rows for slopes in (r["slopes"] if "orders" in r else [r["slopes"]]) if slopes]
    cells = []
    for column in zip(*each, strict=True):
        known = [abs(p - stated) for p in column if p is not None]
        number = "" if len(known) == len(column) else f" ({len(known)} of {len(column)})"
        cells.append(f"{max(known):.2f}{number}" if known else "–")
    return cells


def _cases(off: list[tuple[str, str, float]]) -> str:
    cases: dict[str, list[str]] = {}
    for schedule, grid, order in off:
        cases.setdefault(f"{order:.2f}", []).append(f"{schedule} {grid}")
    return ", ".join(f"{order} ({', '.join(dict.fromkeys(where))})" for order, where in cases.items())


ORDERS = """## Orders of convergence

The p of C N^-p e^(c/N) fitted to the errors of seven numbers of steps N, in float64: the slope of log error over log
steps, but for the next term of the error, which at few steps of a high order still shows. Errors below 1e-12, where
rounding and the reference show, are left out. The form of the fit was chosen among seven on the same errors, and the
1e-12 after two orders of `deis 4` had come out at 4.25. So the plain slopes, of which nothing was chosen, stand beside
it: log of the ratio of two neighbouring errors over log of the ratio of N, and of all cases (schedule, grid, Gaussian
or mixture) the largest distance from the stated order. If that order is true they go to 0 as N rises, until rounding
shows; how many have errors above 1e-12 is said where some have not. `plms` has four cases that are not there yet.

N goes from 400 to 3200 on continuous schedules. Each grid is squeezed between log(alpha/sigma) = -3.5 and 2, and its
first step is made in 16, of rising length: at t = 0 and where a multistep method begins, the order is 1 by design, and
one such step would show. The flow of the Gaussian is a closed form, that of the mixture a Runge-Kutta solution to
1e-12. Squeezed, trailing, leading and linspace are one.

An order says what happens as steps become ever shorter, and on a table of 1000 they cannot. So the tables that orders
are measured on are those that `linear(10**5)`, ... make, with grids rounded to their entries, and N from 100 to 800.
`dpm_solver_3` has no order there: its times within a step must be entries too, and lie at exact thirds, or an error of
order 2 comes back, as small as the rounding; at 10^5 entries it shows from about 60 steps on
(`tests/samplers/test_order.py` fits the order up to there).
"""
TABLES_OFF = """Tables fall short of the mark in two ways. On `sigmoid`, grids in t take long steps of log-SNR where the
table is steep: there 100 to 800 steps are few, and the slopes still rise or fall towards the order. And rounding to
entries moves each time by up to half of one, which shows once errors are small: at orders 3 and 4, and where the
leading terms of the error nearly cancel (`plms`). A table of 10^6 took minutes to compile for one sampler. """


def _errors(ode: dict) -> str:
    if not ode:
        return ""
    blocks = [ERRORS]
    for schedule in ("cosine", "flow"):
        for grid in dict.fromkeys(r["grid"] for r in next(iter(ode.values()))):
            rows = []
            for name, found in ode.items():
                row = next(r for r in found if (r["schedule"], r["grid"]) == (schedule, grid))
                rows.append([f"`{name}`", *(f"{e:.1e}" for e in row["gaussian"] + row["mixture"])])
            head = [
                "sampler",
                *(f"Gaussian, {n}" for n in (5, 10, 20, 50)),
                *(f"mixture, {n}" for n in (5, 10, 20, 50)),
            ]
            blocks.append(f"### {schedule}, {grid}\n\n" + _table(head, rows))
    return "\n".join(blocks)


ERRORS = """## Errors of few steps

Root mean square distance to the exact flow after 5, 10, 20 and 50 steps of the whole grid, from its first time to clean
data. Steps are not network evaluations: `heun`, `dpm_solver_2` and `dpmpp_2s` make two in a step, `dpm_solver_3` three.
Two schedules of thirteen; the others are in [proof.json](proof.json).
"""


def _laws(laws: dict, mixtures: dict, lcm: dict | None, stated: dict, steps: np.ndarray) -> str:
    rows = []
    for name, found in laws.items():
        orders = np.array([r["order"] for r in found])
        off = _off(found, stated[name])
        fitted, worst = f"{orders.min():.2f} to {orders.max():.2f}", f"{max(r['off'] for r in found):.2f}"
        slopes = _slopes(found, stated[name])
        rows.append([f"`{name}`", str(stated[name]), fitted, _cases(off) or "none", *slopes, str(len(found)), worst])
    blocks = [LAWS] if laws or mixtures or lcm else []
    if rows:
        pairs = [f"slope {a} to {b}: off by" for a, b in itertools.pairwise(steps)]
        blocks.append(
            _table(["sampler", "stated", "fitted", "off by > 0.15", *pairs, "cases of samples", "worst"], rows)
        )
    if mixtures:
        schedules = list(dict.fromkeys(r["schedule"] for found in mixtures.values() for r in found))
        blocks.append(MIXTURE)
        for key, title in (("off", "standard errors"), ("each", "of the runs themselves")):
            cells = []
            for name, found in mixtures.items():
                worst = {r["schedule"]: 0.0 for r in found}
                for r in found:
                    worst[r["schedule"]] = max(worst[r["schedule"]], r["off"] if key == "off" else r["each"][-1])
                cells.append([f"`{name}`", str(stated[name]), *(f"{worst[s]:.1f}" for s in schedules)])
            blocks.append(f"#### {title}: the worst of the grids\n")
            blocks.append(_table(["sampler", "weak order", *schedules], cells))
    if lcm:
        cells = [[r["schedule"], str(r["steps"]), f"{r['off']:.2f}"] for r in lcm["rows"]]
        blocks.append(CONSISTENCY + _table(["schedule", "steps of `lcm`", "standard errors"], cells))
    return "\n".join(blocks)


LAWS = """## Laws of stochastic samplers

On Gaussian data N(0.5, 0.8^2) every step is affine, so the law of any number of steps is found exactly, and the order
at which its standard deviation converges is fitted as above (160 to 448 steps). On the list, whose density has kinks
that fall between the steps, slopes swing about the order: from 80 steps on, as this was first measured, `dpmpp_2m_sde`
on EDM's schedule had come out at 1.77, its plain slopes being 1.97, 1.60 and 1.97. Then 100,000 samples of 20 steps are
drawn, on all thirteen schedules and seven grids: the worst deviation of their mean and covariance from that law, in
standard errors. To be below 4. The cases of a line share their random numbers, and so their luck.
"""
MIXTURE = """### The mixture

100,000 samples on every schedule and grid against the law of the mixture itself: mean and covariance, six numbers, at
the grid's last time above 0 (the step from there to 0 returns the estimate of x_0, whatever the method, and the list
leaves much for it). To be below 4 standard errors. What a finite number of steps adds must be out of the way first, by
one rule for all:

- weak order 2: 400 steps, where the exact law of a Gaussian is off by about a tenth of a standard error;
- weak order 1: there that is 5, and 4000 steps (ten minutes of two cores and more, a sampler) would be needed. So
  N = 200 and 2N steps are taken, with noise of their own, and their deviations d give that of infinitely many,
  2 d_2N - d_N, which has 2.2 times the standard error; that it vanishes says that the order is 1, too;
- tables: as many steps as they have entries, 1000 (order 1: 500 and 1000), where all seven grids are one.

Grids end where sigma/alpha = 0.002, the default. `heun` stirs by 0.0125 a step, EDM's S_churn of 5.
"""
CONSISTENCY = """### Consistency sampling

With the flow map of the Gaussian as the consistency function, the law is the data's in any number of steps.

"""


def _grids(rows: list[dict]) -> str:
    grids = list(dict.fromkeys(r["grid"] for r in rows))
    good = {(r["schedule"], r["grid"]): r["good"] for r in rows}
    cells = [[s, *(str(good[s, g]) for g in grids)] for s in dict.fromkeys(r["schedule"] for r in rows)]
    head = (
        "## Grids\n\nOf the numbers of steps 1..1000: how many give exactly so many, strictly descending, ending at 0."
    )
    head += "\n\n"
    return head + _table(["schedule", *grids], cells)


def _bound(rows: list[dict]) -> str:
    cells = [
        [
            r["schedule"],
            f"N({r['mean']:g}, {r['scale']:g}^2)",
            f"{r['found']:.10f}",
            f"{abs(r['found'] - r['exact']):.0e}",
        ]
        for r in rows
    ]
    head = "## Variational bound\n\nBits per dimension with the best reverse variance, by quadrature, against "
    head += "H(x_0) + KL(q(x_T), N(0, 1)). To be within 1e-9.\n\n"
    return head + _table(["schedule", "data", "bound", "off by"], cells)


def _inversion(rows: list[dict]) -> str:
    cells = [[r["schedule"], *(f"{e:.0e}" for e in r["errors"])] for r in rows]
    head = "## DDIM inversion\n\nMixture samples up to t = 0.9 and back in 50 steps each, float64: largest distance to "
    head += "the start, by iterations of each step up. One is what other code calls DDIM inversion.\n\n"
    return head + _table(["schedule", "1", "3", "60"], cells)


def _conversions(rows: list[dict]) -> str:
    families = list(dict.fromkeys(r["family"] for r in rows))
    at = {(r["family"], r["kind"]): r for r in rows}
    cells = [
        [kind, *(f"{at[f, kind]['share']:.1f}" for f in families)]
        + [f"{at[f, kind]['each']:.1f}" if kind in ("v", "flow", "edm") else "unbounded" for f in families]
        for kind in dict.fromkeys(r["kind"] for r in rows)
    ]
    head = (
        "## Parameterisations\n\nHub, output and back in float32 for log-SNR from -24 to 24: the worst error in units "
    )
    head += (
        "of the roundoff 2^-24, in the measures (4) and (5) of [the process](api/process.md), whose bounds are 12.\n\n"
    )
    return head + _table(["output", *(f"(4) {f}" for f in families), *(f"(5) {f}" for f in families)], cells)


def _step_time(rows: list[dict]) -> str:
    r = rows[0]
    return (
        "## One program for every number of steps\n\n"
        "That other steps, eta, guidance and seeds compile nothing is tested by counting compilations "
        "(`tests/samplers/test_base.py`). The price of times padded to 1000 for 50 steps of the digits U-Net, against "
        f"a plain scan of 50: time ratio {r['ratio']:.3f}, quartiles {r['low']:.3f} and {r['high']:.3f}, {r['turns']} "
        "turns (below 1 is noise). `uv run python -m benchmarks.step_time`.\n"
    )


OTHERS = {
    "grids": _grids,
    "bound": _bound,
    "inversion": _inversion,
    "conversions": _conversions,
    "step time": _step_time,
}
