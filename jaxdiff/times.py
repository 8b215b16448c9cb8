"""Time grids: the descending times at which a sampler calls the network.

A grid of N steps has N + 1 times, from near 1 (noise) down to exactly 0 (data); step i goes from times[i] to
times[i + 1]. All are made on the host. On a discrete schedule the times are entries k/T, all distinct.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxdiff.family import Family
from jaxdiff.schedules import SCHEDULES, Schedule

CLEANEST, NOISIEST = 0.002, 80.0  # sigma/alpha of EDM's ends, for data of standard deviation 1/2 or so (images)


def time_grid(
    schedule: Schedule | str,
    num_steps: int,
    spacing: str | Sequence[float] = "trailing",
    *,
    max_steps: int | None = None,
    **options: Any,
) -> np.ndarray:
    """The times of a sampler with exactly num_steps steps, descending, ending in 0.0.

    Args:
      schedule: the noise schedule.
      num_steps: N >= 1; on a discrete schedule N <= T.
      spacing: a name in SPACINGS; or a list of descending times in (0, 1], ending above 0, which is resampled to N
        log-linearly (AYS), and then 0.
      max_steps: pad with zeros to max_steps + 1 times. `sample` skips steps from 0 to 0, so that programs
        compiled for max_steps serve every smaller number.
      **options: of the spacing. t_min, of most, is the last time above 0: default 1/T; if continuous, where
        sigma/alpha = 0.002, as in EDM: see `clean_time`.

    Returns:
      float32 [num_steps + 1] or [max_steps + 1].

    Raises:
      ValueError: unknown spacing or option, or a number of steps or a list that cannot work, with the legal range.

    Source: Sabour et al. 2024 (AYS); the others as their functions say.

    >>> from jaxdiff import schedules
    >>> time_grid(schedules.cosine(), 4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    schedule = SCHEDULES.made(schedule)
    top = schedule.num_steps
    for name, number in (("num_steps", num_steps), ("max_steps", max_steps)):
        if number is not None and not isinstance(number, int | np.integer):
            raise ValueError(f"{name} must be a whole number, got {number!r}")
    if num_steps < 1 or (top is not None and num_steps > top):
        legal = f"lie in 1..{top} (the schedule's T)" if top else "be at least 1"
        raise ValueError(f"num_steps must {legal}, got {num_steps}")
    if max_steps is not None and max_steps < num_steps:
        raise ValueError(f"max_steps must be at least num_steps={num_steps}, got {max_steps}")
    if isinstance(spacing, str):
        times = TIME_GRIDS.build(spacing, options, schedule, num_steps)
    elif options:
        raise ValueError(f"a list of times has no option {next(iter(options))!r}")
    else:
        times = _resample(spacing, num_steps)

    if top is not None:
        times = _distinct_entries(times, top) / top
    times = np.append(times, np.zeros(1 + (max_steps - num_steps if max_steps else 0))).astype(np.float32)
    if not np.all(np.diff(times[: num_steps + 1]) < 0):
        raise ValueError(f"{num_steps} steps of {spacing!r} are closer than float32 can tell apart")
    return times


def clean_time(schedule: Schedule) -> float:
    """The time at which a continuous schedule leaves so little noise that the rest is one step: sigma/alpha = 0.002.

    It is a noise level, since a time is none: t = 1e-3 is sigma = 0.01 for the VP SDE, and 8e-20 for EDM.

    Source: Karras et al. 2022 (EDM), table 1: sigma_min.

    >>> from jaxdiff import schedules
    >>> round(float(schedules.edm()(clean_time(schedules.edm())).sigma), 6)
    0.002
    """
    with jax.ensure_compile_time_eval():
        return float(jax.jit(schedule.time_of_log_snr)(-2.0 * np.log(CLEANEST)))


def trailing(schedule: Schedule, num_steps: int, /) -> np.ndarray:
    """t_i = (N - i)/N: from 1, equal steps, the last as long as the others.

    Source: Lin et al. 2023, table 2, as leading and linspace.
    """
    del schedule
    return np.arange(num_steps, 0, -1) / num_steps


def leading(schedule: Schedule, num_steps: int, /, *, t_min: float | None = None) -> np.ndarray:
    """Multiples of T // N entries plus one: never starts at 1 (trap: the network never sees pure noise).

    On a continuous schedule multiples of (1 - t_min)/N plus t_min.
    """
    last, top = _last_time(schedule, num_steps, t_min), schedule.num_steps
    if top is None:
        return last + (1.0 - last) * np.arange(num_steps - 1, -1, -1) / num_steps
    return (np.arange(num_steps - 1, -1, -1) * (top // num_steps) + 1) / top


def linspace(schedule: Schedule, num_steps: int, /, *, t_min: float | None = None) -> np.ndarray:
    """From 1 to t_min in equal steps, then 0."""
    return np.linspace(1.0, _last_time(schedule, num_steps, t_min), num_steps)


def quadratic(schedule: Schedule, num_steps: int, /) -> np.ndarray:
    """t_i = ((N - i)/N)^2: more steps where there is little noise.

    Source: Song et al. 2021 (DDIM), appendix D.2.
    """
    return trailing(schedule, num_steps) ** 2


def log_snr(schedule: Schedule, num_steps: int, /, *, t_min: float | None = None) -> np.ndarray:
    """From 1 to t_min in equal steps of log-SNR, then 0.

    Source: Lu et al. 2022 (DPM-Solver), section 3.4.
    """
    start, end = _log_snr_range(schedule, _last_time(schedule, num_steps, t_min))
    return _invert(schedule, np.linspace(start, end, num_steps))


def karras(schedule: Schedule, num_steps: int, /, *, t_min: float | None = None, rho: float = 7.0) -> np.ndarray:
    """From 1 to t_min in equal steps of (sigma/alpha)^(1/rho), then 0.

    Source: Karras et al. 2022 (EDM), eq. 5.
    """
    if not 0 < rho < np.inf:
        raise ValueError(f"rho must be positive and finite (7 is usual), got {rho}")
    last = _last_time(schedule, num_steps, t_min)
    start, end = np.exp(-0.5 / rho * np.array(_log_snr_range(schedule, last)))
    return _invert(schedule, -2.0 * rho * np.log(np.linspace(start, end, num_steps)))


SPACINGS: dict[str, Callable[..., np.ndarray]] = {
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "karras": karras,
}
TIME_GRIDS = Family("spacing", SPACINGS)
"""Members take (schedule, N) and give N descending times in (0, 1], float64; `time_grid` adds the 0."""


def _last_time(schedule: Schedule, num_steps: int, t_min: float | None) -> float:
    """The last time above 0."""
    top = schedule.num_steps
    t_min = t_min if t_min is not None else (1.0 / top if top else clean_time(schedule))
    if not 0 < t_min < 1 and num_steps > 1:
        raise ValueError(f"t_min must lie in (0, 1), got {t_min}")
    return t_min


def _log_snr_range(schedule: Schedule, t_min: float) -> tuple[float, float]:
    """log-SNR at t = 1 (or where sigma/alpha = 80, if nothing is left of x_0 there) and at t_min."""
    with jax.ensure_compile_time_eval(), np.errstate(divide="ignore"):  # values, also while a caller is traced
        alpha, sigma = (np.asarray(a, np.float64) for a in jax.jit(schedule)(np.array([1.0, t_min])))
        last, first = 2.0 * (np.log(alpha) - np.log(sigma))
    return (last if np.isfinite(last) else -2.0 * np.log(NOISIEST)), first


def _invert(schedule: Schedule, log_snr: np.ndarray) -> np.ndarray:
    """The times of a descent through log_snr, the first one set to exactly 1."""
    padded = np.resize(log_snr, 1 << (len(log_snr) - 1).bit_length())  # few shapes, so few compilations
    with jax.ensure_compile_time_eval():
        times = np.array(jax.jit(schedule.time_of_log_snr)(padded), np.float64)[: len(log_snr)]
    times[0] = 1.0
    return times


def _resample(times: Sequence[float], num_steps: int) -> np.ndarray:
    points = np.asarray(times, np.float64)
    falling = points.ndim == 1 and points.size >= 2 and np.all(np.diff(points) < 0)
    if not (falling and 0 < points[-1] and points[0] <= 1):
        raise ValueError("a list of times must hold 2 or more, descending, in (0, 1], without the final 0")
    position = np.linspace(0, 1, num_steps) if num_steps > 1 else np.zeros(1)
    return np.exp(np.interp(position, np.linspace(0, 1, points.size), np.log(points)))


def _distinct_entries(times: np.ndarray, top: int) -> np.ndarray:
    """Nearest entries k in 1..T, moved apart where rounding made two equal: exactly as many, strictly descending."""
    rising = np.round(times[::-1] * top)
    rank = np.arange(1, len(times) + 1)
    rising = np.maximum.accumulate(np.maximum(rising, rank) - rank) + rank
    return np.minimum(rising, top - len(times) + rank)[::-1]
