"""The proof page: what was measured is kept in docs/proof.json, and docs/proof.md is written from it."""

import json
import os
import platform
from pathlib import Path

import jax
import numpy as np

DOCS = Path(__file__).parent.parent / "docs"
TOLERANCE = 0.15


def save(part: str, found: dict) -> None:
    """Puts one part in place of what was there."""
    parts = load()
    found["versions"] = f"jax {jax.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    parts[part] = found
    _replace("proof.json", json.dumps(parts, separators=(",", ":")).replace('{"schedule"', '\n{"schedule"') + "\n")


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
    from benchmarks.proof import ODE, PARTS
    from tests.samplers.convergence import STOCHASTIC

    ode = {name: parts[name]["rows"] for name in ODE if name in parts}
    laws = {name: parts[f"law of {name}"]["rows"] for name in STOCHASTIC if f"law of {name}" in parts}
    mixtures = {name.removeprefix("mixture by "): p["rows"] for name, p in parts.items() if name.startswith("mixture")}
    stated = {name: method.order for name, method in (ODE | STOCHASTIC).items()}
    blocks = [
        INTRODUCTION.format(seconds=round(sum(p["seconds"] for p in parts.values()) / 60), run=_run(parts, PARTS)),
        _orders(ode, stated),
        _errors(ode),
        _laws(laws, mixtures, parts.get("law of lcm"), stated),
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

in about {seconds} minutes of a CPU that others used as well; all its numbers, of which the tables here show a part, are
in [proof.json](proof.json). Measured {run}

The data has two dimensions: a Gaussian N((0.5, -1), diag(0.8, 0.3)^2), and a mixture of two of unequal weight and
width (`tests/oracles.py`); the denoiser is the best one, in closed form. Times are continuous or, for the five
discrete schedules, entries of a table of 1000. The list is the ten times that Align Your Steps publishes for Stable
Diffusion, resampled.

"""


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _off(rows: list[dict], stated: int) -> list[tuple[str, str, float]]:
    """(schedule, grid, order) of what is further from the stated order than TOLERANCE."""
    found = [(r["schedule"], r["grid"], o) for r in rows for o in r.get("orders", [r.get("order")]) if o is not None]
    return [case for case in found if abs(case[2] - stated) > TOLERANCE]


def _orders(ode: dict, stated: dict) -> str:
    if not ode:
        return ""
    rows = []
    for name, found in ode.items():
        per = [np.array([r["orders"][d] for r in found if r["orders"][d] is not None]) for d in (0, 1)]
        off = _off(found, stated[name])
        rows.append(
            [f"`{name}`", str(stated[name])]
            + [f"{o.min():.2f} to {o.max():.2f}" for o in per]
            + [str(len(per[0]) + len(per[1])), str(len(off))]
        )
    exceptions = [
        f"`{name}` {_cases(_off(found, stated[name]))}" for name, found in ode.items() if _off(found, stated[name])
    ]
    blocks = [ORDERS, _table(["sampler", "stated", "Gaussian", "mixture", "cases", "off by > 0.15"], rows)]
    if exceptions:
        blocks.append("Off by more than 0.15: " + "; ".join(exceptions) + ".\n")
    schedules = list(dict.fromkeys(r["schedule"] for r in next(iter(ode.values())) if r["orders"][0] is not None))
    for grid, also in (
        ("trailing", "trailing, leading, linspace"),
        *((g, g) for g in ("quadratic", "log_snr", "karras", "list")),
    ):
        rows = []
        for name, found in ode.items():
            at = {r["schedule"]: r["orders"] for r in found if r["grid"] == grid}
            cells = [" / ".join("–" if o is None else f"{o:.2f}" for o in at[s]) for s in schedules]
            rows.append([f"`{name}`", *cells])
        blocks.append(f"### {also}: order, Gaussian / mixture\n\n" + _table(["sampler", *schedules], rows))
    return "\n".join(blocks)


def _cases(off: list[tuple[str, str, float]]) -> str:
    cases: dict[str, list[str]] = {}
    for schedule, grid, order in off:
        cases.setdefault(f"{order:.2f}", []).append(f"{schedule} {grid}")
    return ", ".join(f"{order} ({', '.join(dict.fromkeys(where))})" for order, where in cases.items())


ORDERS = """## Orders of convergence

The p of C N^-p e^(c/N) fitted to the errors of 400 to 3200 steps N, in float64: the slope of log error over log steps,
but for the next term of the error, which at 400 steps of a high order still shows. Errors below 1e-12, where rounding
and the reference show, are left out. Seven ways to fit were compared on the same errors before this one was taken, and
the 1e-12 was set after two orders of `deis 4` had come out at 4.25: the plain slope from 200 to 800 steps, finer where
it bent, had left 23 of the 2,240 off by more than 0.15 (order 4: 20, from 3.23 to 4.21). Each grid is squeezed between
log(alpha/sigma) = -3.5 and 2, and its first step is made in 16, of rising length: at t = 0 and where a multistep method
begins, the order is 1 by design, and one such step would show. The flow of the Gaussian is a closed form, that of the
mixture a Runge-Kutta solution to 1e-12. Squeezed, trailing, leading and linspace are one.
"""


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


def _laws(laws: dict, mixtures: dict, lcm: dict | None, stated: dict) -> str:
    rows = []
    for name, found in laws.items():
        orders = np.array([r["order"] for r in found if r["order"] is not None])
        off = _off(found, stated[name])
        fitted, worst = f"{orders.min():.2f} to {orders.max():.2f}", f"{max(r['off'] for r in found):.2f}"
        rows.append([f"`{name}`", str(stated[name]), fitted, _cases(off) or "none", str(len(found)), worst])
    blocks = [LAWS] if laws or mixtures or lcm else []
    if rows:
        blocks.append(_table(["sampler", "stated", "fitted", "off by > 0.15", "cases of samples", "worst"], rows))
    if mixtures:
        cells = [
            [f"`{name}`", r["schedule"], r["grid"], str(r["steps"]), f"{r['off']:.2f}"]
            for name, found in mixtures.items()
            for r in found
        ]
        blocks.append(MIXTURE + _table(["sampler", "schedule", "grid", "steps", "standard errors"], cells))
    if lcm:
        cells = [[r["schedule"], str(r["steps"]), f"{r['off']:.2f}"] for r in lcm["rows"]]
        blocks.append(CONSISTENCY + _table(["schedule", "steps of `lcm`", "standard errors"], cells))
    return "\n".join(blocks)


LAWS = """## Laws of stochastic samplers

On Gaussian data N(0.5, 0.8^2) every step is affine, so the law of any number of steps is found exactly, and the order
at which its standard deviation converges is fitted as above (80 to 224 steps). Then 100,000 samples of 20 steps are
drawn, on all thirteen schedules and seven grids: the worst deviation of their mean and covariance from that law, in
standard errors. To be below 4; chance alone takes the worst of the 455 numbers of a line beyond that once in 35 lines.
"""
MIXTURE = """### The mixture

100,000 samples against the mean and covariance of the data itself: methods of weak order 1 need about 1000 steps for
their bias to be hidden by the sampling error, the others take 100. More than 4 is a bias of the method at so many
steps, not chance: on the continuous `leading` grid the last step but one leaps from t = 0.01 to 1e-5. (EDM's schedule
is not here with `log_snr` and `karras`, which reach sigma = 8e-20 with the default `t_min`: give `t_min` there.)

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
        "turns, on a machine that others used as well (below 1 is noise). `uv run python -m benchmarks.step_time`.\n"
    )


OTHERS = {
    "grids": _grids,
    "bound": _bound,
    "inversion": _inversion,
    "conversions": _conversions,
    "step time": _step_time,
}
