"""How an order of convergence is measured: against the exact flow of a Gaussian and a mixture, in float64.

Shared by the tests and by benchmarks/proof.py. A run holds points of all data sets in one batch, and several
continuous schedules at once, chosen by a traced index, so that one compilation serves them all. Grids are even in
lambda but for the first step, which is ramped: a multistep method starts at order 1, and one step of that would show
in the fit of an order above 2.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff.denoisers import Prediction
from tests.oracles import GAUSSIAN, MIXTURE, GaussianMixture, gaussian, gaussian_flow

NUM_POINTS = 16  # of each data set
POINT = gaussian([0.7, -0.2], [0.0, 0.0])
SCHEDULES = (jd.schedules.continuous_vp(), jd.schedules.flow())  # alpha^2 + sigma^2 = 1, and not


@dataclasses.dataclass(frozen=True)
class Method:
    """A sampler and the order that its docstring states: of its result, or of its law if it is stochastic."""

    make: Callable[[], jd.Sampler]
    order: int


METHODS = {
    "ddim": Method(jd.samplers.ddim, 1),
    "heun": Method(jd.samplers.heun, 2),
    "dpm_solver_2": Method(jd.samplers.dpm_solver_2, 2),
    "dpm_solver_3": Method(jd.samplers.dpm_solver_3, 3),
    "dpmpp_2s": Method(jd.samplers.dpmpp_2s, 2),
    "dpmpp_2m": Method(jd.samplers.dpmpp_2m, 2),
    "dpmpp_3m": Method(jd.samplers.dpmpp_3m, 2),
    "dpmpp_3m compat=False": Method(lambda: jd.samplers.dpmpp_3m(compat=False), 3),
    "unipc 1": Method(lambda: jd.samplers.unipc(1), 2),
    "unipc 2": Method(lambda: jd.samplers.unipc(2), 3),
    "unipc 3": Method(lambda: jd.samplers.unipc(3), 4),
    "unipc 1 bh2": Method(lambda: jd.samplers.unipc(1, "bh2"), 2),
    "unipc 2 bh1": Method(lambda: jd.samplers.unipc(2, "bh1"), 3),
    "unipc 2 bh2": Method(lambda: jd.samplers.unipc(2, "bh2"), 3),
    "deis 2": Method(lambda: jd.samplers.deis(2), 2),
    "deis 3": Method(lambda: jd.samplers.deis(3), 3),
    "deis 4": Method(lambda: jd.samplers.deis(4), 4),
    "plms": Method(jd.samplers.plms, 2),
}


def joint(schedule: jd.Schedule) -> Callable:
    """The best denoiser of a batch whose thirds are Gaussian data, the mixture, and data that is one point."""
    parts = [data.denoiser(schedule) for data in (GAUSSIAN, MIXTURE, POINT)]

    def denoise(x_t, t):
        found = [part(x, t)[:2] for part, x in zip(parts, jnp.split(x_t, 3), strict=True)]
        return Prediction(*(jnp.concatenate(third) for third in zip(*found, strict=True)))

    return denoise


def one_of(index: jax.Array, schedules: Sequence[jd.Schedule]) -> jd.Schedule:
    """The schedule of that index, which may be traced: of several continuous ones, or of discrete ones of equal T."""

    def pick(functions):
        return lambda value: jax.lax.switch(index, functions, jnp.asarray(value))

    marginal, inverse = (pick([getattr(s, part) for s in schedules]) for part in ("marginal", "time_of_log_snr"))
    return jd.Schedule(marginal, inverse, schedules[0].num_steps)


@functools.cache
def setting(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Start points at lambda = -4 of schedule `index` of SCHEDULES, and where the flow has them at lambda = 3."""
    m_t, m_s = (at(SCHEDULES[index], t) for t in lambda_grid(SCHEDULES[index], 1)[[0, -1]])
    x_t = start_points(m_t)
    return x_t, exact_flow(x_t, m_t, m_s)


def compile_run(make: Callable[[], jd.Sampler], schedules: Sequence[jd.Schedule]) -> Callable:
    """(index of the schedule, times, x_T [3 * NUM_POINTS, 2]) -> x at times[-1]; one compilation a length of times."""

    @jax.jit
    def run(index, times, x_T):
        schedule = one_of(index, schedules) if len(schedules) > 1 else schedules[0]
        keys = jd.sample_keys(jax.random.key(0), len(x_T))
        return jd.sample(keys, joint(schedule), make(), times=times, schedule=schedule, x_T=x_T)

    return run


def at(schedule: jd.Schedule, t: float) -> jd.Marginal:
    """The marginal at t as floats, for NumPy."""
    return jd.Marginal(*map(float, schedule(t)))


def lambda_grid(schedule: jd.Schedule, num_steps: int, start: float = -4.0, end: float = 3.0) -> np.ndarray:
    """num_steps + 1 float64 times, equally spaced in lambda = log(alpha/sigma), ending above t = 0."""
    return np.asarray(schedule.time_of_log_snr(2.0 * ramped(np.linspace(start, end, num_steps + 1))))


def ramped(grid: np.ndarray, halvings: int = 6) -> np.ndarray:
    """An even grid whose first step is made in halvings + 2 steps, each but the first two twice the one before."""
    start, width = grid[0], grid[1] - grid[0]
    return np.concatenate([grid[:1], start + width * 2.0 ** -np.arange(halvings + 1.0)[::-1], grid[2:]])


def padded(times: np.ndarray, max_steps: int) -> np.ndarray:
    """times with the last repeated: steps that are skipped."""
    return np.append(times, np.full(max_steps + 1 - len(times), times[-1]))


def start_points(m: jd.Marginal) -> np.ndarray:
    """Draws of x_t, of the three data sets in turn: float64 [3 * NUM_POINTS, 2]."""
    data = jnp.concatenate([d.draw(jax.random.key(1), NUM_POINTS) for d in (GAUSSIAN, MIXTURE, POINT)])
    noise = jax.random.normal(jax.random.key(2), data.shape)
    return np.asarray(m.alpha * data + m.sigma * noise)


def exact_flow(x_t: np.ndarray, m_t: jd.Marginal, m_s: jd.Marginal) -> np.ndarray:
    """The probability flow of the three data sets: a closed form, a fine solution for the mixture, a closed form."""
    first, second, third = np.split(x_t, 3)
    gauss = gaussian_flow(first, m_t, m_s, GAUSSIAN.means[0], GAUSSIAN.scales[0])
    end = 15.0 if m_s.sigma == 0 else float(np.log(m_s.alpha / m_s.sigma))  # beyond 15 only e^-30 is left to go
    y = _mixture_flow()(second / m_t.alpha, float(np.log(m_t.alpha / m_t.sigma)), end)
    point = gaussian_flow(third, m_t, m_s, POINT.means[0], POINT.scales[0])
    return np.concatenate([gauss, m_s.alpha * np.asarray(y), point])


@functools.cache
def _mixture_flow() -> Callable:
    return fine_flow(MIXTURE)


def fine_flow(data: GaussianMixture, num_steps: int = 4000) -> Callable:
    """(y, start, end) -> the solution of dy/dlambda = -e^-lambda noise, y = x/alpha, by classical Runge-Kutta."""
    denoise = data.denoiser(lambda lam: jd.Marginal(jnp.ones_like(lam), jnp.exp(-lam)))

    def slope(y, lam):
        return -jnp.exp(-lam) * denoise(y, lam).noise

    @jax.jit
    def solve(y, start, end):
        h = (end - start) / num_steps

        def body(i, y):
            lam = start + i * h
            k_1 = slope(y, lam)
            k_2 = slope(y + 0.5 * h * k_1, lam + 0.5 * h)
            k_3 = slope(y + 0.5 * h * k_2, lam + 0.5 * h)
            k_4 = slope(y + h * k_3, lam + h)
            return y + h / 6.0 * (k_1 + 2.0 * k_2 + 2.0 * k_3 + k_4)

        return jax.lax.fori_loop(0, num_steps, body, y)

    return solve


def rms(error: np.ndarray) -> np.ndarray:
    """Root mean square of each third of the batch: [Gaussian, mixture, point]."""
    return np.sqrt(np.mean(np.square(error).reshape(3, -1), axis=1))


def fitted_order(steps: Sequence[int], errors: Sequence[float], bent: bool = False) -> float:
    """The p of errors C N^-p, or of C N^-p e^(c/N) where the next term still shows: least squares in the logarithms."""
    n = np.asarray(steps, np.float64)
    columns = [np.ones_like(n), -np.log(n)] + ([1.0 / n] if bent else [])
    return float(np.linalg.lstsq(np.stack(columns, axis=1), np.log(errors))[0][1])


STOCHASTIC = {
    "ddpm small": Method(jd.samplers.ddpm, 1),
    "ddpm large": Method(lambda: jd.samplers.ddpm("large"), 1),
    "ddim eta=0.5": Method(lambda: jd.samplers.ddim(0.5), 1),
    "dpmpp_sde": Method(jd.samplers.dpmpp_sde, 2),
    "dpmpp_2m_sde": Method(jd.samplers.dpmpp_2m_sde, 2),
}


def draws(name: str, key: jax.Array) -> jax.Array:
    """The standard normal numbers that one step of a sampler takes from its key, for x of shape [batch, 1]."""
    keys = jax.random.split(key) if name == "dpmpp_sde" else key[None]
    return jax.vmap(lambda key: jax.random.normal(key, (1,)))(keys).reshape(-1)


def compile_law(name: str, schedule: jd.Schedule, max_steps: int, mean: float = 0.5, scale: float = 0.8) -> Callable:
    """(times, number of steps) -> the mean and standard deviation at times[-1] of a sampler's law on N(mean, scale^2).

    On Gaussian data every step is affine in x and in the noise, and so is the result: its coefficients are found
    exactly, by least squares, from more runs than there are draws. x_T has the exact law at times[0].
    """
    per_step = len(draws(name, jax.random.key(0)))
    keys = jd.sample_keys(jax.random.key(7), 2 * (per_step * max_steps + 2))
    data = gaussian([mean], [scale])

    @jax.jit
    def run(times):
        m = schedule(times[0])
        start = jax.random.normal(jax.random.key(8), (len(keys), 1))
        x_T = m.alpha * mean + jnp.sqrt(jnp.square(m.alpha * scale) + jnp.square(m.sigma)) * start
        sampler = STOCHASTIC[name].make()
        x = jd.sample(keys, data.denoiser(schedule), sampler, times=times, schedule=schedule, x_T=x_T)
        step_keys = jax.vmap(jax.random.split, out_axes=1)(keys)[1]
        fold = jax.vmap(lambda key: jax.vmap(lambda i: draws(name, jax.random.fold_in(key, i)))(jnp.arange(max_steps)))
        return x[:, 0], start, fold(step_keys).reshape(len(keys), -1)

    def law(times, num_steps):
        x, start, noise = (np.asarray(a) for a in run(padded(times, max_steps)))
        inputs = np.concatenate([np.ones_like(start), start, noise[:, : per_step * num_steps]], axis=1)
        coefficients, *_ = np.linalg.lstsq(inputs, x)
        np.testing.assert_allclose(inputs @ coefficients, x, atol=1e-9)
        return coefficients[0], np.sqrt(np.sum(coefficients[1:] ** 2))

    return law
