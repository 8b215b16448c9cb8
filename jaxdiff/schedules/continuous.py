"""Continuous schedules: a formula each, with its inverse in log-SNR, accurate in float32 at both ends."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxdiff.schedules.base import Marginal, Schedule, amplitudes, constant


def continuous_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The variance-preserving SDE: log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2, sigma^2 = 1 - alpha^2.

    Args:
      beta_min: beta(0), > 0.
      beta_max: beta(1), >= beta_min.

    Raises:
      ValueError: an argument is out of its range.

    Source: Song et al. 2021 (score SDE), eq. 33.

    >>> m = continuous_vp()(0.5)
    >>> round(float(m.alpha**2 + m.sigma**2), 6)
    1.0
    """
    slope = _slope(beta_min, beta_max)

    def marginal(t: jax.Array) -> Marginal:
        log_alpha = -0.25 * slope * jnp.square(t) - 0.5 * beta_min * t
        return Marginal(jnp.exp(log_alpha), jnp.sqrt(jnp.abs(jnp.expm1(2.0 * log_alpha))))

    def time(log_snr: jax.Array) -> jax.Array:
        return _vp_time(jax.nn.softplus(-log_snr), beta_min, slope)

    return _continuous(marginal, time)


def continuous_sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The sub-VP SDE: alpha as in `continuous_vp`, sigma = 1 - alpha^2 (less noise at every t < 1).

    Args:
      beta_min: beta(0), > 0.
      beta_max: beta(1), >= beta_min.

    Raises:
      ValueError: an argument is out of its range.

    Source: Song et al. 2021 (score SDE), eq. 29 of the appendix.

    >>> m = continuous_sub_vp()(0.2)
    >>> round(float(m.sigma + m.alpha**2), 6)
    1.0
    """
    slope = _slope(beta_min, beta_max)

    def marginal(t: jax.Array) -> Marginal:
        log_alpha = -0.25 * slope * jnp.square(t) - 0.5 * beta_min * t
        return Marginal(jnp.exp(log_alpha), jnp.abs(jnp.expm1(2.0 * log_alpha)))

    def time(log_snr: jax.Array) -> jax.Array:
        inverse = jnp.exp(-0.5 * log_snr)  # (1 - alpha^2)/alpha, of which alpha is the positive root
        return _vp_time(2.0 * jnp.arcsinh(0.5 * inverse), beta_min, slope)

    return _continuous(marginal, time)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """The variance-exploding SDE: alpha = 1, sigma^2 = sigma_min^2 (r^(2t) - 1), r = sigma_max/sigma_min.

    This is the exact marginal of the SDE, hence 0 at t = 0 (score_sde's code adds sigma_min^2).

    Args:
      sigma_min: > 0.
      sigma_max: > sigma_min.

    Raises:
      ValueError: an argument is out of its range.

    Source: Song et al. 2021 (score SDE), eq. 31.

    >>> round(float(ve()(1.0).sigma), 3)
    50.0
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"ve needs 0 < sigma_min < sigma_max, finite, got {sigma_min} and {sigma_max}")
    log_r = math.log(sigma_max / sigma_min)

    def marginal(t: jax.Array) -> Marginal:
        sigma = sigma_min * jnp.sqrt(jnp.expm1(2.0 * log_r * t))
        return Marginal(jnp.ones_like(sigma), sigma)

    def time(log_snr: jax.Array) -> jax.Array:
        return jnp.log1p(jnp.exp(-log_snr) / sigma_min**2) / (2.0 * log_r)

    return _continuous(marginal, time)


def edm(sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """EDM: alpha = 1, sigma = sigma_max t^rho, so that uniform t is Karras' grid with sigma_min = 0.

    Args:
      sigma_max: > 0.
      rho: > 0.

    Raises:
      ValueError: an argument is out of its range.

    Source: Karras et al. 2022 (EDM), eq. 5.

    >>> float(edm()(1.0).sigma)
    80.0
    """
    if not (0 < sigma_max < math.inf and 0 < rho < math.inf):
        raise ValueError(f"edm needs sigma_max > 0 and rho > 0, finite, got {sigma_max} and {rho}")

    def marginal(t: jax.Array) -> Marginal:
        sigma = sigma_max * t**rho
        return Marginal(jnp.ones_like(sigma), sigma)

    def time(log_snr: jax.Array) -> jax.Array:
        return jnp.exp((-0.5 * log_snr - math.log(sigma_max)) / rho)

    return _continuous(marginal, time)


def flow(shift: float = 1.0) -> Schedule:
    """Rectified flow: alpha = 1 - u, sigma = u, with u = shift t / (1 + (shift - 1) t).

    Args:
      shift: > 0; > 1 moves time towards noise, as higher resolutions need (SD3: 3 at 1024 pixels).

    Raises:
      ValueError: shift is not positive.

    Source: Liu et al. 2023 (rectified flow), eq. 1; the shift: Esser et al. 2024 (SD3), eq. 23.

    >>> m = flow(shift=3.0)(0.5)
    >>> float(m.alpha), float(m.sigma)
    (0.25, 0.75)
    """
    if not 0 < shift < math.inf:
        raise ValueError(f"shift must be positive and finite, got {shift}")

    def marginal(t: jax.Array) -> Marginal:
        scale = 1.0 + (shift - 1.0) * t
        return Marginal((1.0 - t) / scale, shift * t / scale)

    def time(log_snr: jax.Array) -> jax.Array:
        u = jax.nn.sigmoid(-0.5 * log_snr)
        return u / (shift - (shift - 1.0) * u)

    return _continuous(marginal, time)


def shifted_cosine(shift: float = 1.0, log_snr_min: float = -15.0) -> Schedule:
    """log_snr = 2 log(shift / tan u), u from 0 at t = 0 up to where log_snr = log_snr_min at t = 1.

    Args:
      shift: > 0, base resolution over this resolution, e.g. 64/256; 1 is the plain continuous cosine schedule.
      log_snr_min: log-SNR at t = 1, finite so that every parameterisation works there.

    Raises:
      ValueError: shift is not positive.

    Source: Hoogeboom et al. 2023 (simple diffusion), section 3.1.

    >>> round(float(shifted_cosine(0.25)(1.0).log_snr), 3)
    -15.0
    """
    return interpolated_cosine(shift, shift, log_snr_min)


def interpolated_cosine(shift_noise: float, shift_clean: float = 1.0, log_snr_min: float = -15.0) -> Schedule:
    """A shifted cosine whose shift goes from shift_clean at t = 0 to shift_noise at t = 1, log-linearly.

    Args:
      shift_noise: > 0, the shift where there is much noise.
      shift_clean: > 0, the shift where there is little; at least shift_noise/23, so that log-SNR falls with t.
      log_snr_min: log-SNR at t = 1, finite.

    Raises:
      ValueError: an argument is out of its range.

    Source: Hoogeboom et al. 2023 (simple diffusion), section 3.1 (the interpolated schedule).

    >>> s = interpolated_cosine(0.25)
    >>> float(s(0.0).sigma), round(float(s.time_of_log_snr(s(0.3).log_snr)), 5)
    (0.0, 0.3)
    """
    if not (shift_noise > 0 and shift_clean > 0 and math.isfinite(log_snr_min)):
        raise ValueError(
            f"shifts must be positive and log_snr_min finite, got {shift_noise}, {shift_clean}, {log_snr_min}"
        )
    u_max = math.atan(shift_noise * math.exp(-0.5 * log_snr_min))
    rest = math.atan(math.exp(0.5 * log_snr_min) / shift_noise)  # pi/2 - u_max, without the cancellation
    growth = math.log(shift_noise / shift_clean)
    if growth > 2.0 * u_max:  # d log_snr / dt = 2 growth - 4 u_max / sin(2 u)
        raise ValueError(
            f"shift_noise={shift_noise} must be at most {math.exp(2 * u_max):.3g} times shift_clean={shift_clean}"
        )

    def marginal(t: jax.Array) -> Marginal:
        signal = shift_clean * jnp.exp(growth * t) * jnp.sin(rest + u_max * (1.0 - t))  # the sine is cos(u_max t)
        noise = jnp.sin(u_max * t)
        norm = jnp.hypot(signal, noise)
        return Marginal(signal / norm, noise / norm)

    def time(log_snr: jax.Array) -> jax.Array:
        if growth == 0:
            return jnp.arctan(shift_noise * jnp.exp(-0.5 * log_snr)) / u_max

        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            early = marginal(middle).log_snr > log_snr
            return jnp.where(early, middle, low), jnp.where(early, high, middle)

        start = (jnp.zeros_like(log_snr), jnp.ones_like(log_snr))
        return jax.lax.fori_loop(0, 60, halve, start)[1]  # 60 halvings: below float64's resolution

    return _continuous(marginal, time)


def interpolate(discrete: Schedule) -> Schedule:
    """A discrete schedule between its entries, for solvers that choose their own times.

    atan(sigma/alpha), the angle between signal and noise, is linear in t between entries: finite at both ends,
    zero terminal SNR included. At t = k/T it is the discrete schedule, so networks trained on that one fit.

    Args:
      discrete: a schedule with betas.

    Raises:
      ValueError: the schedule is continuous already.

    >>> from jaxdiff import schedules
    >>> m, left = interpolate(schedules.cosine(10))(0.25), schedules.cosine(10)(0.2)
    >>> bool(m.sigma > left.sigma), round(float(m.alpha**2 + m.sigma**2), 6)
    (True, 1.0)
    """
    if discrete.betas is None:
        raise ValueError("interpolate takes a discrete schedule; this one is continuous")
    entries = np.linspace(0.0, 1.0, discrete.betas.size + 1)
    alpha, sigma = amplitudes(discrete.betas)
    from_data, from_noise = np.arctan2(sigma, alpha), np.arctan2(alpha, sigma)  # each accurate where it is small

    def marginal(t: jax.Array) -> Marginal:
        towards_noise = jnp.interp(t, constant(entries), constant(from_data))
        towards_data = jnp.interp(1.0 - t, constant(entries), constant(from_noise[::-1]))
        return Marginal(jnp.sin(towards_data), jnp.sin(towards_noise))  # the two angles sum to pi/2

    def time(log_snr: jax.Array) -> jax.Array:
        angle = jnp.arctan(jnp.exp(-0.5 * jnp.abs(log_snr)))  # the smaller of the two
        early = jnp.interp(angle, constant(from_data), constant(entries))
        late = 1.0 - jnp.interp(angle, constant(from_noise[::-1]), constant(entries))
        return jnp.where(log_snr > 0, early, late)

    return _continuous(marginal, time)


def _continuous(marginal: Callable[[jax.Array], Marginal], time: Callable[[jax.Array], jax.Array]) -> Schedule:
    """The schedule of a formula; `time` may leave [0, 1] for a log-SNR that the schedule does not reach."""

    def time_of_log_snr(log_snr: ArrayLike) -> jax.Array:
        return jnp.clip(time(jnp.asarray(log_snr, jnp.result_type(float))), 0.0, 1.0)

    return Schedule(marginal, time_of_log_snr)


def _slope(beta_min: float, beta_max: float) -> float:
    if not 0 < beta_min <= beta_max < math.inf:
        raise ValueError(f"betas need 0 < beta_min <= beta_max, finite, got {beta_min} and {beta_max}")
    return beta_max - beta_min


def _vp_time(integral: jax.Array, beta_min: float, slope: float) -> jax.Array:
    """The t at which the integral of beta, slope t^2/2 + beta_min t, has the given value (stable root)."""
    rate = beta_min / integral  # divided out, so that an infinite integral gives inf and 0 gives 0
    return 2.0 / (rate + jnp.sqrt(rate**2 + 2.0 * slope / integral))
