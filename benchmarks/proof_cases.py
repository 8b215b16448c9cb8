"""What the proof runs on: schedules, grids, and where on them orders are measured."""

import functools

import numpy as np

import jaxdiff as jd
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
FAMILIES = (CONTINUOUS, DISCRETE)
AYS = (0.999, 0.845, 0.73, 0.587, 0.443, 0.31, 0.193, 0.116, 0.053, 0.013)
GRIDS = {name: name for name in ("trailing", "leading", "linspace", "quadratic", "log_snr", "karras")} | {"list": AYS}
SAME = {"leading": "trailing", "linspace": "trailing"}  # between the ends these are all even in t
LAMBDA = -3.5, 2.0  # log(alpha/sigma) where the orders are measured: all schedules reach it
RAMP = 14  # more steps of a ramped grid: those of order 1 are short enough not to show at order 4
FLOOR = 1e-12  # errors below this are also those of rounding and of the reference


@functools.cache
def fine(num_steps: int) -> dict[str, jd.Schedule]:
    """DISCRETE with tables of so many entries that a step of the grids passes over a hundred or more."""
    linear = jd.schedules.linear(num_steps)
    return {
        "linear": linear,
        "scaled_linear": jd.schedules.scaled_linear(num_steps),
        "cosine": jd.schedules.cosine(num_steps),
        "sigmoid": jd.schedules.sigmoid(num_steps),
        "linear, zero SNR": linear.rescale_zero_snr(),
    }


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
    """num_steps steps of a squeezed grid, the first one ramped; on a table its entries, each once."""
    times = density(schedule, grid, c.ramped(np.linspace(0.0, 1.0, num_steps + 1), RAMP))
    top = schedule.num_steps
    return times if top is None else np.unique(np.round(times * top))[::-1] / top


def fit(steps: np.ndarray, errors: np.ndarray) -> tuple[float, list[float | None]]:
    """The order by the fit of `c.fitted_order`, and the plain slopes between neighbouring numbers of steps."""
    good = errors > FLOOR
    with np.errstate(divide="ignore"):
        slopes = -np.diff(np.log(errors)) / np.diff(np.log(steps))
    order = c.fitted_order(steps[good], errors[good], bent=True)
    return round(order, 3), [round(float(p), 3) if ok else None for p, ok in zip(slopes, good[1:], strict=True)]


def limits(schedule: jd.Schedule, t: float) -> jd.Marginal:
    """The marginal at t; a flow from no signal is that from just below it."""
    m = c.at(schedule, t)
    return jd.Marginal(1e-9, m.sigma) if m.alpha == 0 else m


@functools.cache
def walk(schedule: jd.Schedule, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
    """Start points at the first time, and where the flow has them at the last."""
    x = c.start_points(c.at(schedule, first))
    return x, c.exact_flow(x, limits(schedule, first), c.at(schedule, last))
