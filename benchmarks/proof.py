"""Every sampler, schedule and grid against closed forms: writes docs/proof.json and from it docs/proof.md.

    JAX_PLATFORMS=cpu uv run python -m benchmarks.proof [PART ...]

With PARTs (a sampler, grids, ...; an unknown one lists them) only these are measured anew; "page" measures nothing.
What is measured, and against what, stands on the page. Each sampler is compiled once for all continuous schedules and
once for all discrete ones: a program takes the number of the schedule and the times as values, and does all in a batch.
"""

import datetime
import functools
import itertools
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from benchmarks import proof_page as page
from benchmarks import step_time
from jaxdiff.denoisers import Prediction
from jaxdiff.process import PREDICTIONS
from tests.losses.gaussian_bound import bound_bits, closed_form
from tests.oracles import MIXTURE, gaussian
from tests.samplers import convergence as c

CONTINUOUS = {
    "continuous_vp": jd.schedules.continuous_vp(),
    "continuous_sub_vp": jd.schedules.continuous_sub_vp(),
    "ve": jd.schedules.ve(),
    "edm": jd.schedules.edm(),
    "flow": jd.schedules.flow(),
    "flow(3)": jd.schedules.flow(3.0),
    "shifted_cosine": jd.schedules.shifted_cosine(),
    "interpolated_cosine(0.25)": jd.schedules.interpolated_cosine(0.25),
}
DISCRETE = {
    "linear": jd.schedules.linear(),
    "scaled_linear": jd.schedules.scaled_linear(),
    "cosine": jd.schedules.cosine(),
    "sigmoid": jd.schedules.sigmoid(),
    "linear, zero SNR": jd.schedules.linear().rescale_zero_snr(),
}
AYS = (0.999, 0.845, 0.73, 0.587, 0.443, 0.31, 0.193, 0.116, 0.053, 0.013)
GRIDS = {name: name for name in ("trailing", "leading", "linspace", "quadratic", "log_snr", "karras")} | {"list": AYS}
SAME = {"leading": "trailing", "linspace": "trailing"}  # between the ends these are all even in t
FEW = (5, 10, 20, 50)
ORDER_STEPS = np.array([400, 560, 800, 1120, 1600, 2240, 3200])
FLOOR = 1e-12  # errors below this are also those of rounding and of the reference
LAMBDA = -3.5, 2.0  # log(alpha/sigma) where the orders are measured: all schedules reach it
LAW_STEPS = (80, 112, 160, 224)
RAMP = 14  # more steps of a ramped grid: those of order 1 are short enough not to show at order 4
ODE = c.METHODS | {"euler": c.Method(jd.samplers.euler, 1), "dpm_solver_1": c.Method(jd.samplers.dpm_solver_1, 1)}
MEAN, SCALE = 0.5, 0.8  # of the Gaussian of the stochastic samplers, in each entry
NUM = 100_000
FAMILIES = (CONTINUOUS, DISCRETE)


def density(schedule: jd.Schedule, grid: str, u: np.ndarray) -> np.ndarray:
    """The times at u in [0, 1] of a grid squeezed between the two LAMBDA: its steps, without its two ends."""
    first, last = (float(schedule.time_of_log_snr(2.0 * lam)) for lam in LAMBDA)
    if grid == "quadratic":
        return (first**0.5 + u * (last**0.5 - first**0.5)) ** 2
    if grid == "log_snr":
        return np.asarray(schedule.time_of_log_snr(2.0 * (LAMBDA[0] + u * (LAMBDA[1] - LAMBDA[0]))))
    if grid == "karras":
        ends = np.exp(-np.array(LAMBDA) / 7.0)
        return np.asarray(schedule.time_of_log_snr(-14.0 * np.log(ends[0] + u * (ends[1] - ends[0]))))
    if grid == "list":
        points = [first, *(t for t in AYS if last < t < first), last]
        return np.exp(np.interp(u, np.linspace(0, 1, len(points)), np.log(points)))
    return first + u * (last - first)


def order_grid(schedule: jd.Schedule, grid: str, num_steps: int) -> np.ndarray:
    return density(schedule, grid, c.ramped(np.linspace(0.0, 1.0, num_steps + 1), RAMP))


def limits(schedule: jd.Schedule, t: float) -> jd.Marginal:
    """The marginal at t; a flow from no signal is that from just below it."""
    m = c.at(schedule, t)
    return jd.Marginal(1e-9, m.sigma) if m.alpha == 0 else m


@functools.cache
def walk(family: int, name: str, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
    """Start points at the first time, and where the flow has them at the last."""
    schedule = FAMILIES[family][name]
    x = c.start_points(c.at(schedule, first))
    return x, c.exact_flow(x, limits(schedule, first), c.at(schedule, last))


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


def errors_of(make: Callable[[], jd.Sampler], family: int, cases: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Root mean square errors [cases, 3] on the Gaussian, the mixture and the point, of (schedule, times) each."""
    names = list(FAMILIES[family])
    longest = max(len(times) for _, times in cases) - 1
    walks = [walk(family, name, float(times[0]), float(times[-1])) for name, times in cases]
    index = np.array([names.index(name) for name, _ in cases])
    grids = np.stack([c.padded(np.asarray(times, np.float64), longest) for _, times in cases])
    run = batched(make, list(FAMILIES[family].values()))
    found = np.asarray(run(index, grids, np.stack([x for x, _ in walks])))
    return np.array([c.rms(x - exact) for x, (_, exact) in zip(found, walks, strict=True)])


def fitted_orders(make: Callable[[], jd.Sampler], combos: list[tuple[str, str]]) -> dict[tuple[str, str, int], float]:
    """The order on each (schedule, grid), on the Gaussian (0) and the mixture (1)."""
    cases = [(s, order_grid(CONTINUOUS[s], g, int(n))) for s, g in combos for n in ORDER_STEPS]
    errors = errors_of(make, 0, cases).reshape(len(combos), len(ORDER_STEPS), 3)
    orders = {}
    for (i, (s, g)), data in itertools.product(enumerate(combos), (0, 1)):
        e = errors[i, :, data]
        orders[s, g, data] = c.fitted_order(ORDER_STEPS[e > FLOOR], e[e > FLOOR], bent=True)
    return orders


def ode_rows(name: str) -> list[dict]:
    """One sampler on every schedule and grid: fitted orders, and the errors of few steps."""
    method, rows = ODE[name], []
    orders = fitted_orders(method.make, [(s, g) for s in CONTINUOUS for g in GRIDS if g not in SAME])
    for family, schedules in enumerate(FAMILIES):
        combos = list(itertools.product(schedules, GRIDS))
        few = [(s, jd.time_grid(schedules[s], n, GRIDS[g])) for s, g in combos for n in FEW]
        errors = errors_of(method.make, family, few).reshape(len(combos), len(FEW), 3)
        for (s, g), error in zip(combos, errors, strict=True):
            found = [orders.get((s, SAME.get(g, g), data)) for data in (0, 1)]
            rows.append(
                {
                    "schedule": s,
                    "grid": g,
                    "orders": [None if order is None else round(order, 3) for order in found],
                    "gaussian": [float(f"{e:.3g}") for e in error[:, 0]],
                    "mixture": [float(f"{e:.3g}") for e in error[:, 1]],
                }
            )
    return rows


def batched_law(name: str, schedules: Sequence[jd.Schedule], max_steps: int) -> Callable:
    """(index [rows], times [rows, max_steps + 1], steps [rows]) -> mean and standard deviation of the law, exactly.

    Every step is affine in x and the noise on Gaussian data, and so is the result: see `convergence.compile_law`.
    """
    per_step = len(c.draws(name, jax.random.key(0)))
    keys = jd.sample_keys(jax.random.key(7), per_step * max_steps + 12)
    data = gaussian([MEAN], [SCALE])
    start = jax.random.normal(jax.random.key(8), (len(keys), 1))
    step_keys = jax.vmap(jax.random.split, out_axes=1)(keys)[1]
    fold = jax.vmap(lambda k: jax.vmap(lambda i: c.draws(name, jax.random.fold_in(k, i)))(jnp.arange(max_steps)))
    noise = np.asarray(jax.jit(fold)(step_keys)).reshape(len(keys), -1)

    @jax.jit
    def run(index, times):
        def one(index, times):
            schedule = c.one_of(index, schedules)
            m = schedule(times[0])
            x_T = m.alpha * MEAN + jnp.sqrt(jnp.square(m.alpha * SCALE) + jnp.square(m.sigma)) * start
            sampler = c.STOCHASTIC[name].make()
            return jd.sample(keys, data.denoiser(schedule), sampler, times=times, schedule=schedule, x_T=x_T)[:, 0]

        return jax.vmap(one)(index, times)

    def laws(index, times, steps):
        for x, n in zip(np.asarray(run(index, times)), steps, strict=True):
            used = per_step * n
            inputs = np.concatenate([np.ones_like(start), start, noise[:, :used]], axis=1)[: used + 12]
            coefficients, *_ = np.linalg.lstsq(inputs, x[: used + 12])
            np.testing.assert_allclose(inputs @ coefficients, x[: used + 12], atol=1e-8)
            yield coefficients[0], float(np.sqrt(np.sum(coefficients[1:] ** 2)))

    return laws


def law_rows(name: str) -> list[dict]:
    """One stochastic sampler: weak orders, and moments of NUM samples of 20 steps against the exact law of these."""
    rows = []
    for family, schedules in enumerate(FAMILIES):
        combos = list(itertools.product(schedules, GRIDS))
        twenty = [(s, jd.time_grid(schedules[s], 20, GRIDS[g]).astype(np.float64)) for s, g in combos]
        smooth = [(s, g) for s, g in combos if g not in SAME] if family == 0 else []
        many = [(s, order_grid(schedules[s], g, n)) for s, g in smooth for n in LAW_STEPS]
        cases, names = twenty + many, list(schedules)
        longest = max(len(times) for _, times in cases) - 1
        index = np.array([names.index(s) for s, _ in cases])
        grids = np.stack([c.padded(times, longest) for _, times in cases])
        steps = [len(times) - 1 for _, times in cases]
        found = list(batched_law(name, list(schedules.values()), longest)(index, grids, steps))
        gaps = []
        for (s, times), (_, spread) in zip(many, found[len(twenty) :], strict=True):
            m = c.at(schedules[s], times[-1])
            gaps.append(abs(spread - (m.alpha**2 * SCALE**2 + m.sigma**2) ** 0.5))
        orders = dict(zip(smooth, np.array(gaps).reshape(len(smooth), len(LAW_STEPS)), strict=True))
        draw = sampled(c.STOCHASTIC[name].make, list(schedules.values()), gaussian([MEAN] * 2, [SCALE] * 2))
        for i, (schedule, grid) in enumerate(combos):
            errors = orders.get((schedule, SAME.get(grid, grid)))
            order = None if errors is None else round(c.fitted_order(LAW_STEPS, errors, bent=True), 3)
            mean, spread = found[i]
            off = standard_errors(draw(index[i], twenty[i][1]), np.full(2, mean), spread**2 * np.eye(2))
            rows.append({"schedule": schedule, "grid": grid, "order": order, "off": round(off, 2)})
    return rows


def sampled(make: Callable[[], jd.Sampler], schedules: Sequence[jd.Schedule], data, denoiser=None) -> Callable:
    """(index of the schedule, times) -> NUM samples in float32, from exact draws at times[0]."""

    @jax.jit
    def run(index, times):
        schedule = c.one_of(index, schedules)
        m, keys = schedule(times[0]), jd.sample_keys(jax.random.key(3), NUM)
        x_0 = data.draw(jax.random.key(4), NUM)
        x_T = m.alpha * x_0 + m.sigma * jax.random.normal(jax.random.key(5), x_0.shape)
        denoise = (denoiser or data.denoiser)(schedule)
        return jd.sample(keys, denoise, make(), times=times, schedule=schedule, x_T=x_T)

    def draw(index, times):
        with jax.enable_x64(False):
            return np.asarray(run(np.int32(index), np.float32(times)), np.float64)

    return draw


def standard_errors(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """The largest deviation of mean and covariance of x [n, 2], in standard errors of these."""
    gap = x - x.mean(0)
    products = gap[:, :, None] * gap[:, None, :]
    off = np.abs(x.mean(0) - mean) / (x.std(0) / len(x) ** 0.5)
    spread = np.abs(products.mean(0) - covariance) / (products.std(0) / len(x) ** 0.5)
    return float(max(off.max(), spread.max()))


ONE_STEP_A_TIME = (("continuous_vp", "log_snr"), ("flow", "quadratic"), ("cosine", "trailing"))
EVERYWHERE = (*((s, "quadratic") for s in CONTINUOUS), *(("flow", g) for g in GRIDS if g != "quadratic"))
ON_THE_MIXTURE = {  # sampler, steps, where
    "ddpm small": (jd.samplers.ddpm, 1000, ONE_STEP_A_TIME),
    "ddpm large": (lambda: jd.samplers.ddpm("large"), 1000, ONE_STEP_A_TIME),
    "ddim eta=0.5": (lambda: jd.samplers.ddim(0.5), 1000, ONE_STEP_A_TIME),
    "dpmpp_sde": (jd.samplers.dpmpp_sde, 100, EVERYWHERE),
    "dpmpp_2m_sde": (jd.samplers.dpmpp_2m_sde, 100, EVERYWHERE),
    "heun churn=0.05": (lambda: jd.samplers.heun(churn=0.05), 100, EVERYWHERE),
}


def mixture_rows(name: str) -> list[dict]:
    """Mean and covariance of NUM samples of the mixture, started from its law at times[0]."""
    make, steps, where = ON_THE_MIXTURE[name]
    rows, moments = [], MIXTURE.moments()
    for schedules in FAMILIES:
        draw = sampled(make, list(schedules.values()), MIXTURE)
        for schedule, grid in where:
            if schedule in schedules:
                times = jd.time_grid(schedules[schedule], steps, GRIDS[grid])
                off = standard_errors(draw(list(schedules).index(schedule), times), *moments)
                rows.append({"schedule": schedule, "grid": grid, "steps": steps, "off": round(off, 2)})
    return rows


def consistency_rows() -> list[dict]:
    """LCM with the flow map to t = 0 of the Gaussian in place of a consistency model: its law in 1, 2 and 4 steps."""
    data = gaussian([MEAN] * 2, [SCALE] * 2)

    def to_the_end(schedule):
        def denoise(x_t, t):
            m = schedule(t)
            x_0 = MEAN + SCALE / jnp.sqrt(jnp.square(m.alpha * SCALE) + jnp.square(m.sigma)) * (x_t - m.alpha * MEAN)
            return Prediction(x_0, jnp.zeros_like(x_0))

        return denoise

    rows = []
    for schedules in FAMILIES:
        draw = sampled(jd.samplers.lcm, list(schedules.values()), data, to_the_end)
        for (index, schedule), steps in itertools.product(enumerate(schedules), (1, 2, 4)):
            times = c.padded(jd.time_grid(schedules[schedule], steps), 4)
            off = standard_errors(draw(index, times), np.full(2, MEAN), SCALE**2 * np.eye(2))
            rows.append({"schedule": schedule, "steps": steps, "off": round(off, 2)})
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
    "grids": grid_rows,
    "bound": bound_rows,
    "inversion": inversion_rows,
    "conversions": conversion_rows,
    "step time": step_time.rows,
    "page": list,
}


def main() -> int:
    wanted = sys.argv[1:] or list(PARTS)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        print(f"proof: unknown part {unknown[0]!r}; choose of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    jax.config.update("jax_enable_x64", True)
    for name in (name for name in wanted if name != "page"):
        began = time.perf_counter()
        rows = PARTS[name]()
        seconds = time.perf_counter() - began
        page.save(name, {"date": f"{datetime.date.today()}", "seconds": round(seconds, 1), "rows": rows})
        print(f"{name}: {seconds:.1f} s", flush=True)
    page.write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
