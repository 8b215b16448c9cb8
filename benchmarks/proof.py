"""Every sampler, schedule and grid against closed forms: writes docs/proof.json and from it docs/proof.md.

    JAX_PLATFORMS=cpu uv run python -m benchmarks.proof [PART ...]

Parts that were measured by this very code (its fingerprint stands beside them) are kept, so that a run that was cut off
goes on where it was. With PARTs (a sampler, grids, ...; an unknown one lists them) these are measured anew; "page"
measures nothing. What is measured, and against what, stands on the page. Each sampler is compiled once for all
continuous schedules and twice for all discrete ones: a program takes the number of the schedule and the times as
values, and does all in a batch.
"""

import datetime
import functools
import hashlib
import itertools
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from benchmarks import proof_page as page
from benchmarks import step_time
from benchmarks.proof_cases import CONTINUOUS, DISCRETE, FAMILIES, GRIDS, SAME, fine, fit, order_grid, walk
from benchmarks.proof_few import few_rows, spread_rows
from benchmarks.proof_laws import ON_THE_MIXTURE, consistency_rows, law_rows, mixture_rows
from jaxdiff.process import PREDICTIONS
from tests.losses.gaussian_bound import bound_bits, closed_form
from tests.oracles import MIXTURE
from tests.samplers import convergence as c

FEW = (5, 10, 20, 50)
ORDER_STEPS = np.array([400, 560, 800, 1120, 1600, 2240, 3200])
ENTRIES, TABLE_STEPS = 100_000, ORDER_STEPS // 4  # of the tables that orders are measured on
NOT_ON_TABLES = "dpm_solver_3"  # order 3 needs times at thirds of a step, which no entry hits: see the page
ODE = c.METHODS | {"euler": c.Method(jd.samplers.euler, 1), "dpm_solver_1": c.Method(jd.samplers.dpm_solver_1, 1)}


order_grid = functools.cache(order_grid)
few_grid = functools.cache(lambda schedule, steps, grid: jd.time_grid(schedule, steps, GRIDS[grid]))


def batched(make: Callable[[], jd.Sampler], schedules: Sequence[jd.Schedule]) -> Callable:
    """(index [rows], times [rows, steps + 1], x_T [rows, points, 2]) -> x at the end: one compilation for all."""

    @jax.jit
    def run(index, times, x_T):
        def one(index, times, x_T):
            schedule = c.one_of(index, schedules)
            keys = jd.sample_keys(jax.random.key(0), len(x_T))
            return jd.sample(keys, c.joint(schedule), make(), times=times, schedule=schedule, x_T=x_T)

        return jax.vmap(one)(index, times, x_T)

    return run


def errors_of(
    make: Callable[[], jd.Sampler], schedules: dict[str, jd.Schedule], cases: list[tuple[str, np.ndarray]]
) -> np.ndarray:
    """Root mean square errors [cases, 3] on the Gaussian, the mixture and the point, of (schedule, times) each."""
    names = list(schedules)
    longest = max(len(times) for _, times in cases) - 1
    walks = [walk(schedules[name], float(times[0]), float(times[-1])) for name, times in cases]
    index = np.array([names.index(name) for name, _ in cases])
    grids = np.stack([c.padded(np.asarray(times, np.float64), longest) for _, times in cases])
    run = batched(make, list(schedules.values()))
    found = np.asarray(run(index, grids, np.stack([x for x, _ in walks])))
    return np.array([c.rms(x - exact) for x, (_, exact) in zip(found, walks, strict=True)])


def fitted_orders(
    make: Callable[[], jd.Sampler], schedules: dict[str, jd.Schedule], steps: np.ndarray
) -> dict[tuple[str, str], list[tuple[float, list]]]:
    """(schedule, grid) -> the order and the plain slopes on the Gaussian, and those on the mixture."""
    combos = list(itertools.product(schedules, (g for g in GRIDS if g not in SAME)))
    cases = [(s, order_grid(schedules[s], g, int(n))) for s, g in combos for n in steps]
    errors = errors_of(make, schedules, cases).reshape(len(combos), len(steps), 3)
    return {combo: [fit(steps, e[:, data]) for data in (0, 1)] for combo, e in zip(combos, errors, strict=True)}


def ode_rows(name: str) -> list[dict]:
    """One sampler on every schedule and grid: fitted orders, and the errors of few steps."""
    make, rows = ODE[name].make, []
    for schedules, where, steps in ((CONTINUOUS, CONTINUOUS, ORDER_STEPS), (DISCRETE, fine(ENTRIES), TABLE_STEPS)):
        combos = list(itertools.product(schedules, GRIDS))
        none = schedules is DISCRETE and name == NOT_ON_TABLES
        orders = {c: [(None, None)] * 2 for c in combos} if none else fitted_orders(make, where, steps)
        few = [(s, few_grid(schedules[s], n, g)) for s, g in combos for n in FEW]
        errors = errors_of(make, schedules, few).reshape(len(combos), len(FEW), 3)
        for (s, g), error in zip(combos, errors, strict=True):
            found = orders[s, SAME.get(g, g)]
            rows.append(
                {
                    "schedule": s,
                    "grid": g,
                    "orders": [order for order, _ in found],
                    "slopes": [slopes for _, slopes in found],
                    "gaussian": [float(f"{e:.3g}") for e in error[:, 0]],
                    "mixture": [float(f"{e:.3g}") for e in error[:, 1]],
                }
            )
    return rows


def grid_rows() -> list[dict]:
    """Every N in 1..1000: how many grids have exactly N strictly descending times in (0, 1], then 0."""
    rows = []
    for schedules in FAMILIES:
        for (name, schedule), (grid, spacing) in itertools.product(schedules.items(), GRIDS.items()):
            good = 0
            for n in range(1, 1001):
                times = jd.time_grid(schedule, n, spacing)
                falling = np.all(np.diff(times) < 0) and times[0] <= 1
                good += int(len(times) == n + 1 and times[-1] == 0 and falling)
            rows.append({"schedule": name, "grid": grid, "good": good})
    return rows


def bound_rows() -> list[dict]:
    """The variational bound of two Gaussians, and its closed form, in bits per dimension."""
    rows = []
    for (name, schedule), (mean, scale) in itertools.product(list(DISCRETE.items())[:4], ((0.0, 1.0), (0.5, 0.3))):
        found, exact = bound_bits(schedule, mean, scale), closed_form(schedule, mean, scale)
        rows.append({"schedule": name, "mean": mean, "scale": scale, "found": found, "exact": exact})
    return rows


def inversion_rows() -> list[dict]:
    """DDIM from data up to t = 0.9 and back on the mixture: the largest distance to the start."""
    rows, times = [], np.linspace(0.0, 0.9, 51)
    x_0 = MIXTURE.draw(jax.random.key(0), 64).astype(jnp.float64)
    keys = jd.sample_keys(jax.random.key(0), 64)
    for name, schedule in CONTINUOUS.items():
        denoise, errors = MIXTURE.denoiser(schedule), []
        for iterations in (1, 3, 60):
            up, run = jd.samplers.ddim_inversion(iterations), functools.partial(jd.sample, keys, denoise)
            x_t = jax.jit(functools.partial(run, up, times=times, schedule=schedule))(x_T=x_0)
            back = functools.partial(run, jd.samplers.ddim(), times=times[::-1], schedule=schedule)
            errors.append(float(f"{jnp.abs(jax.jit(back)(x_T=x_t) - x_0).max():.2g}"))
        rows.append({"schedule": name, "errors": errors})
    return rows


def conversion_rows() -> list[dict]:
    """float32 round trips of every parameterisation over log-SNR -24..24: the worst error in units of the roundoff."""
    rows, ratio = [], np.exp(-0.5 * np.linspace(-24, 24, 97))
    with jax.enable_x64(False):
        x_0, noise = (jax.random.normal(jax.random.key(i), (97, 2000)) for i in (0, 1))
        for family, alpha in {"vp": 1 / np.hypot(1, ratio), "ve": np.ones(97), "flow": 1 / (1 + ratio)}.items():
            m = jd.Marginal(jnp.asarray(alpha, jnp.float32), jnp.asarray(alpha * ratio, jnp.float32))
            x_t, (a, s) = jd.add_noise(x_0, noise, m), (np.float64(part)[:, None] for part in m)
            for kind in PREDICTIONS:
                back = jd.to_x0_noise(kind, jd.from_x0_noise(kind, x_0, noise, m), x_t, m)
                errors = [np.abs(np.float64(b) - np.float64(w)) for b, w in zip(back, (x_0, noise), strict=True)]
                sizes = np.abs(np.float64(x_0)), np.abs(np.float64(noise))
                by_share = (a * errors[0] + s * errors[1]) / (a * sizes[0] + s * sizes[1])
                each = np.maximum(*errors) / (sizes[0] + sizes[1])
                worst = [float(f"{2.0**24 * e.max():.3g}") for e in (by_share, each)]
                rows.append({"family": family, "kind": kind, "share": worst[0], "each": worst[1]})
    return rows


PARTS: dict[str, Callable[[], list[dict]]] = {
    **{name: functools.partial(ode_rows, name) for name in ODE},
    **{f"law of {name}": functools.partial(law_rows, name) for name in c.STOCHASTIC},
    **{f"mixture by {name}": functools.partial(mixture_rows, name) for name in ON_THE_MIXTURE},
    "law of lcm": consistency_rows,
    "few steps": few_rows,
    "few steps, stochastic": spread_rows,
    "grids": grid_rows,
    "bound": bound_rows,
    "inversion": inversion_rows,
    "conversions": conversion_rows,
    "step time": step_time.rows,
    "page": list,
}


def fingerprint(part: str) -> str:
    """Of the code that a part's numbers come from: schedules, grids, its samplers, closed forms, this benchmark."""
    root = Path(__file__).parent.parent
    name = part.removeprefix("law of ").removeprefix("mixture by ").split(" ")[0]
    sampled = [name] if name in jd.samplers.METHODS else [n.split(" ")[0] for n in (*c.METHODS, *c.STOCHASTIC)]
    core = sorted((root / "jaxdiff" / "schedules").glob("*.py")) + _samplers(sampled)
    core += [root / "jaxdiff" / f"{module}.py" for module in ("process", "times")]
    own = "_laws" if part.startswith(("law of", "mixture by")) else "_few" if part.startswith("few steps") else ""
    proof = [root / "benchmarks" / f"proof{file}.py" for file in ("_cases", own)]
    forms = [root / "tests" / "oracles.py", root / "tests" / "samplers" / "convergence.py"]
    forms += [root / "tests" / "samplers" / "few_steps.py"] if part.startswith("few steps") else []
    return hashlib.sha256(b"".join(file.read_bytes() for file in core + proof + forms)).hexdigest()[:12]


def _samplers(names: list[str]) -> list[Path]:
    """The files of these samplers and of those that they import, with what all of them share."""
    folder = Path(jd.samplers.__file__).parent
    files, left = set(), {jd.samplers.METHODS[name].__module__.rpartition(".")[2] for name in names} | {"base"}
    while left:
        file = folder / f"{left.pop()}.py"
        files.add(file)
        imported = re.findall(r"^from jaxdiff\.samplers\.(\w+) import", file.read_text(), re.MULTILINE)
        left |= {module for module in imported if folder / f"{module}.py" not in files}
    return sorted(files)


def main() -> int:
    found = page.load()
    wanted = sys.argv[1:] or [name for name in PARTS if found.get(name, {}).get("code") != fingerprint(name)]
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        print(f"proof: unknown part {unknown[0]!r}; choose of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    jax.config.update("jax_enable_x64", True)
    for name in (name for name in wanted if name != "page"):
        began, code = time.perf_counter(), fingerprint(name)
        rows = PARTS[name]()
        seconds = time.perf_counter() - began
        page.save(name, {"date": f"{datetime.date.today()}", "seconds": round(seconds, 1), "code": code, "rows": rows})
        print(f"{name}: {seconds:.1f} s", flush=True)
    page.write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
