"""Few steps on hard data: deterministic samplers beside DDIM, in float32 beside float64, and the spread of SDE methods.

Shared by the tests and by benchmarks/proof.py. All cases of a family of schedules (schedule, grid, number of steps,
data) are one program of values: one compilation a sampler.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff.denoisers import Prediction
from tests.oracles import HARD
from tests.samplers import convergence as c

NUM_POINTS = 8  # of each data set
WIDTH = max(data.means.shape[1] for data in HARD.values())


def denoiser(schedule: jd.Schedule, by_x_0: bool = False) -> Callable:
    """The best denoiser of a batch whose equal parts are the sets of HARD, padded with zeros to WIDTH columns.

    by_x_0: noise is what x_0 leaves of x_t, as with a network that predicts x_0: its rounding is divided by sigma.
    """

    def denoise(x_t, t):
        m, found = schedule(t), []
        for data, x in zip(HARD.values(), jnp.split(x_t, len(HARD)), strict=True):
            size = data.means.shape[1]
            parts = data.predict(x[:, :size], m)
            found.append([jnp.pad(part, ((0, 0), (0, WIDTH - size))) for part in parts])
        x_0, noise = (jnp.concatenate(part).astype(x_t.dtype) for part in zip(*found, strict=True))
        if by_x_0:
            noise = jd.to_x0_noise("x_0", x_0, x_t, m)[1]
        return Prediction(x_0, noise)

    return denoise


def program(make: Callable[[], jd.Sampler], schedules: dict[str, jd.Schedule], by_x_0: bool = False) -> Callable:
    """(index [cases], times [cases, steps + 1], x_T [cases, points, WIDTH]) -> x at the end."""

    @jax.jit
    def run(index, times, x_T):
        def one(index, times, x_T):
            schedule = c.one_of(index, list(schedules.values()))
            keys = jd.sample_keys(jax.random.key(0), len(x_T))
            return jd.sample(keys, denoiser(schedule, by_x_0), make(), times=times, schedule=schedule, x_T=x_T)

        return jax.vmap(one)(index, times, x_T)

    return run


def cases_of(schedules: dict[str, jd.Schedule], grids: dict, steps: Sequence[int]) -> list[tuple[str, str, int]]:
    return list(itertools.product(schedules, grids, steps))


@functools.cache
def walk(schedule: jd.Schedule, first: float, points: int = NUM_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Draws of x at the first time, and where the flow has them at t = 0."""
    m = c.at(schedule, first)
    starts, ends = [], []
    for i, (name, data) in enumerate(HARD.items()):
        x_0 = data.draw(jax.random.key(i), points)
        x = np.asarray(m.alpha * x_0 + m.sigma * jax.random.normal(jax.random.key(100 + i), x_0.shape))
        start = max(float(np.log(max(m.alpha, 1e-9) / m.sigma)), -18.0)
        x_end = flow(name)(x / np.hypot(m.alpha, m.sigma), start)
        for kept, value in ((starts, x), (ends, np.asarray(x_end))):
            kept.append(np.pad(value, ((0, 0), (0, WIDTH - value.shape[1]))))
    return np.concatenate(starts), np.concatenate(ends)


@functools.cache
def flow(name: str, num_steps: int = 3000, end: float = 14.0) -> Callable:
    """(y, lambda) -> y at lambda = end, y = x / hypot(alpha, sigma), by classical Runge-Kutta on the angle."""
    data = HARD[name]

    def slope(y, lam):
        phi = jnp.arctan(jnp.exp(-lam))
        x_0, noise = data.predict(y, jd.Marginal(jnp.cos(phi), jnp.sin(phi)))
        return -0.5 / jnp.cosh(lam) * (jnp.cos(phi) * noise - jnp.sin(phi) * x_0)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})  # it runs for long
    def solve(y, start):
        h = (end - start) / num_steps

        def body(i, y):
            lam = start + i * h
            k_1 = slope(y, lam)
            k_2 = slope(y + 0.5 * h * k_1, lam + 0.5 * h)
            k_3 = slope(y + 0.5 * h * k_2, lam + 0.5 * h)
            return y + h / 6.0 * (k_1 + 2.0 * k_2 + 2.0 * k_3 + slope(y + h * k_3, lam + h))

        return jax.lax.fori_loop(0, num_steps, body, y)

    return solve


def setting(
    schedules: dict[str, jd.Schedule], grids: dict, cases: Sequence[tuple[str, str, int]], points: int = NUM_POINTS
) -> tuple:
    """(index, times, x_T, exact) of the cases."""
    names, longest = list(schedules), max(n for *_, n in cases)
    times = [jd.time_grid(schedules[s], n, grids[g]) for s, g, n in cases]
    walks = [walk(schedules[s], float(t[0]), points) for (s, *_), t in zip(cases, times, strict=True)]
    index = np.array([names.index(s) for s, *_ in cases], np.int32)
    grid = np.stack([c.padded(t.astype(np.float64), longest) for t in times])
    return index, grid, np.stack([x for x, _ in walks]), np.stack([x for _, x in walks])


def rms(error: np.ndarray) -> np.ndarray:
    """Root mean square [cases, data] of errors [cases, points, WIDTH], over each set's own columns."""
    parts = np.split(error, len(HARD), axis=1)
    sizes = [data.means.shape[1] for data in HARD.values()]
    return np.stack([np.sqrt(np.mean(p[..., :n] ** 2, axis=(1, 2))) for p, n in zip(parts, sizes, strict=True)], 1)


SDE = {
    "ddim eta=1": lambda: jd.samplers.ddim(1.0),
    "dpmpp_2m_sde": jd.samplers.dpmpp_2m_sde,
    "dpmpp_sde": jd.samplers.dpmpp_sde,
}
SDE_POINTS = 128


def spread(x: np.ndarray) -> np.ndarray:
    """Root mean square distance [cases, data] of samples [cases, points, WIDTH] from the mean, less the data's.

    In units of the data's root mean square norm. That of 128 draws of the data itself is off by about 0.05.
    """
    found = []
    for part, data in zip(np.split(x, len(HARD), axis=1), HARD.values(), strict=True):
        mean, covariance = data.moments()
        total = np.trace(covariance)
        distance = np.sqrt(np.mean(np.sum((part[..., : len(mean)] - mean) ** 2, axis=-1), axis=-1))
        found.append((distance - np.sqrt(total)) / np.sqrt(total + mean @ mean))
    return np.stack(found, axis=1)
