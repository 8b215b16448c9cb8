"""The stochastic half of the proof: laws on a Gaussian, exactly, and moments of 10^5 samples on it and on the mixture.

All cases of a family of schedules run in one batch: they share the noise, which is most of the cost, so their
deviations are not independent of one another.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from benchmarks.proof_cases import CONTINUOUS, DISCRETE, FAMILIES, GRIDS, SAME, fine, fit, order_grid
from jaxdiff.denoisers import Prediction
from tests.oracles import MIXTURE, gaussian
from tests.samplers import convergence as c

MEAN, SCALE = 0.5, 0.8  # of the Gaussian of the stochastic samplers, in each entry
NUM, CHUNK = 100_000, 1000
LAW_STEPS = np.array([160, 224, 320, 448])
SPARE = 12  # runs more than there are unknowns
ENTRIES = 100_000  # of the tables on which weak orders are measured


def batched_law(name: str, schedules: Sequence[jd.Schedule], max_steps: int) -> Callable:
    """(index [rows], times [rows, max_steps + 1], steps [rows]) -> mean and standard deviation of the law, exactly.

    Every step is affine in x and the noise on Gaussian data, and so is the result: see `convergence.compile_law`.
    """
    per_step = len(c.draws(name, jax.random.key(0)))
    keys = jd.sample_keys(jax.random.key(7), per_step * max_steps + 2 + SPARE)
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

    def laws(index, times, steps) -> np.ndarray:
        found, x, steps = np.zeros((len(steps), 2)), np.asarray(run(index, times)), np.asarray(steps)
        for n in np.unique(steps):
            used = per_step * n + 2
            inputs = np.concatenate([np.ones_like(start), start, noise[:, : used - 2]], axis=1)[: used + SPARE]
            runs = x[steps == n][:, : used + SPARE].T
            coefficients, *_ = np.linalg.lstsq(inputs, runs)
            np.testing.assert_allclose(inputs @ coefficients, runs, atol=1e-8)
            found[steps == n] = np.stack([coefficients[0], np.linalg.norm(coefficients[1:], axis=0)], axis=1)
        return found

    return laws


def _laws(name: str, schedules: dict[str, jd.Schedule], cases: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Mean and standard deviation [cases, 2] at the end of each (schedule, times)."""
    names, steps = list(schedules), [len(times) - 1 for _, times in cases]
    grids = np.stack([c.padded(np.asarray(times, np.float64), max(steps)) for _, times in cases])
    index = np.array([names.index(schedule) for schedule, _ in cases])
    return batched_law(name, list(schedules.values()), max(steps))(index, grids, steps)


def weak_orders(name: str, schedules: dict[str, jd.Schedule]) -> dict[tuple[str, str], tuple[float, list]]:
    """(schedule, grid) -> the order at which the standard deviation converges to the data's, and the plain slopes."""
    combos = list(itertools.product(schedules, (g for g in GRIDS if g not in SAME)))
    cases = [(s, order_grid(schedules[s], g, int(n))) for s, g in combos for n in LAW_STEPS]
    gaps = []
    for (s, times), (_, spread) in zip(cases, _laws(name, schedules, cases), strict=True):
        m = c.at(schedules[s], times[-1])
        gaps.append(abs(spread - (m.alpha**2 * SCALE**2 + m.sigma**2) ** 0.5))
    gaps = np.array(gaps).reshape(len(combos), len(LAW_STEPS))
    return {combo: fit(LAW_STEPS, gap) for combo, gap in zip(combos, gaps, strict=True)}


def law_rows(name: str) -> list[dict]:
    """One stochastic sampler: weak orders, and moments of NUM samples of 20 steps against the exact law of these."""
    rows = []
    for schedules, where in ((CONTINUOUS, CONTINUOUS), (DISCRETE, fine(ENTRIES))):
        orders = weak_orders(name, where)
        combos = list(itertools.product(schedules, GRIDS))
        twenty = [(s, jd.time_grid(schedules[s], 20, GRIDS[g])) for s, g in combos]
        laws = _laws(name, schedules, twenty)
        drawn = samples(c.STOCHASTIC[name].make, schedules, twenty, gaussian([MEAN] * 2, [SCALE] * 2))
        for (schedule, grid), (mean, spread), x in zip(combos, laws, drawn, strict=True):
            order, slopes = orders[schedule, SAME.get(grid, grid)]
            off = standard_errors(x, np.full(2, mean), spread**2 * np.eye(2))
            rows.append({"schedule": schedule, "grid": grid, "order": order, "slopes": slopes, "off": round(off, 2)})
    return rows


def samples(
    make: Callable[[], jd.Sampler],
    schedules: dict[str, jd.Schedule],
    cases: list[tuple[str, np.ndarray]],
    data,
    denoiser: Callable | None = None,
    seed: int = 3,
) -> Iterator[np.ndarray]:
    """NUM samples [NUM, 2] of each (schedule, times), drawn in float32 from exact draws at times[0]."""
    longest = max(len(times) for _, times in cases) - 1
    index = np.array([list(schedules).index(s) for s, _ in cases], np.int32)
    grids = np.stack([c.padded(times, longest) for _, times in cases]).astype(np.float32)

    @jax.jit
    def run(index, times):
        draws = data.draw(jax.random.key(seed + 1), NUM)
        start = jd.sample_keys(jax.random.key(seed), NUM), draws, jax.random.normal(jax.random.key(seed + 2), (NUM, 2))

        def some(start):
            keys, x_0, noise = start

            def one(index, times):
                schedule = c.one_of(index, list(schedules.values()))
                m = schedule(times[0])
                denoise = (denoiser or data.denoiser)(schedule)
                x_T = m.alpha * x_0 + m.sigma * noise
                return jd.sample(keys, denoise, make(), times=times, schedule=schedule, x_T=x_T)

            return jax.vmap(one)(index, times)

        return jax.lax.map(some, jax.tree.map(lambda a: a.reshape(-1, CHUNK, *a.shape[1:]), start))

    with jax.enable_x64(False):
        x = np.asarray(run(index, grids))
    return (np.float64(x[:, i]).reshape(NUM, 2) for i in range(len(cases)))


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x [n, 2] in a row of six numbers, and the standard error of each."""
    gap = x - x.mean(0)
    values = np.concatenate([x, (gap[:, :, None] * gap[:, None, :]).reshape(-1, 4)], axis=1)
    return values.mean(0), values.std(0) / len(x) ** 0.5


def standard_errors(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """The largest deviation of mean and covariance of x [n, 2], in standard errors of these."""
    found, error = moments(x)
    return float(np.max(np.abs(found - np.append(mean, covariance)) / error))


ON_THE_MIXTURE = c.STOCHASTIC | {
    "heun churn=0.0125": c.Method(lambda: jd.samplers.heun(churn=0.0125), 2)  # EDM's S_churn of 5, in 400 steps
}
STEPS = {1: 200, 2: 400}  # of the continuous schedules, by weak order
TABLE_STEPS = {1: 500, 2: 1000}  # of tables: to all 1000 entries, where every grid is this one


def mixture_rows(name: str) -> list[dict]:
    """NUM samples of the mixture, from the grid's first time to its last above 0, against the law there.

    Order 2: of so many steps. Order 1: of N and of 2N steps, each with noise of its own, and by their deviations those
    of infinitely many: 2 d_2N - d_N, with the standard error of that.
    """
    method, rows = ON_THE_MIXTURE[name], []
    for schedules, steps in ((CONTINUOUS, STEPS), (DISCRETE, TABLE_STEPS)):
        combos = list(itertools.product(schedules, ["trailing"] if schedules is DISCRETE else GRIDS))
        n = steps[method.order]
        counts, found = [n, 2 * n][: 3 - method.order], []
        for count in counts:
            cases = [(s, jd.time_grid(schedules[s], count, GRIDS[g])[:-1]) for s, g in combos]
            drawn = samples(method.make, schedules, cases, MIXTURE, seed=count)
            found.append([deviation(x, schedules[s], times[-1]) for (s, times), x in zip(cases, drawn, strict=True)])
        for (schedule, grid), *each in zip(combos, *found, strict=True):
            off, error = each[-1]
            if len(each) > 1:
                off, error = 2 * off - each[0][0], np.hypot(2 * error, each[0][1])
            rows.append({"schedule": schedule, "grid": grid, "steps": counts})
            worst = [round(float(np.max(np.abs(d) / e)), 2) for d, e in (*each, (off, error))]
            rows[-1] |= {"each": worst[:-1], "off": worst[-1]}
    return rows


def deviation(x: np.ndarray, schedule: jd.Schedule, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x less those of the mixture at t, six numbers, and their standard errors."""
    m, (mean, covariance), (found, error) = c.at(schedule, t), MIXTURE.moments(), moments(x)
    return found - np.append(m.alpha * mean, m.alpha**2 * covariance + m.sigma**2 * np.eye(2)), error


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
        combos = list(itertools.product(schedules, (1, 2, 4)))
        cases = [(s, jd.time_grid(schedules[s], steps)) for s, steps in combos]
        for (schedule, steps), x in zip(
            combos, samples(jd.samplers.lcm, schedules, cases, data, to_the_end), strict=True
        ):
            off = standard_errors(x, np.full(2, MEAN), SCALE**2 * np.eye(2))
            rows.append({"schedule": schedule, "steps": steps, "off": round(off, 2)})
    return rows
