"""Noise schedules: how much signal and how much noise is left at time t.

Notation (used everywhere): x_0 is data, and t in [0, 1] counts noise, so t = 0 is clean data.

    (1)  q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)           Marginal(alpha, sigma): amplitudes, never squares
    (2)  alpha_bar_t = alpha_t^2 = prod_k (1 - beta_k)        only where betas are
    (3)  log_snr_t = 2 log(alpha_t / sigma_t)                 +inf at t = 0

Every schedule is exactly (1, 0) at t = 0, so the last step of a sampler lands on clean data with no special
case. A discrete schedule of T steps has a table of T + 1 marginals, computed in float64 with NumPy, and rounds
t * T to its entry; a continuous one evaluates a formula.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


class Marginal(NamedTuple):
    """q(x_t | x_0) = N(alpha x_0, sigma^2 I): two amplitudes of any common batch shape, each >= 0."""

    alpha: jax.Array
    sigma: jax.Array

    @property
    def log_snr(self) -> jax.Array:
        """2 log(alpha / sigma): +inf where sigma = 0, -inf where alpha = 0."""
        return 2.0 * (jnp.log(self.alpha) - jnp.log(self.sigma))

    def like(self, x: ArrayLike) -> "Marginal":
        """The same marginal with trailing axes of size 1, so that it broadcasts against x [*batch, ...]."""

        def expand(a: ArrayLike) -> jax.Array:
            a = jnp.asarray(a)
            return a if a.ndim == 0 else jnp.expand_dims(a, tuple(range(a.ndim, jnp.ndim(x))))

        return Marginal(expand(self.alpha), expand(self.sigma))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule: a function t -> Marginal, its inverse in log-SNR, and T if it is discrete.

    Attributes:
      marginal: t in [0, 1], any shape -> Marginal of that shape.
      time_of_log_snr: the t with that log-SNR (a discrete schedule: the nearest t = k/T, k >= 1).
      num_steps: T of a discrete schedule; None if continuous.
      betas: the T float64 betas of a discrete schedule; None if continuous.
    """

    marginal: Callable[[ArrayLike], Marginal]
    time_of_log_snr: Callable[[ArrayLike], jax.Array]
    num_steps: int | None = None
    betas: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)

    def __call__(self, t: ArrayLike) -> Marginal:
        return self.marginal(t)

    def rescale_zero_snr(self) -> "Schedule":
        """This discrete schedule, shifted and scaled so that nothing of x_0 is left at t = 1.

        alpha' = (alpha - alpha_T) alpha_1 / (alpha_1 - alpha_T): the first entry stays, the last becomes 0.
        Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.

        Raises:
          ValueError: the schedule is continuous.

        >>> float(linear().rescale_zero_snr()(1.0).alpha)
        0.0
        """
        if self.betas is None:
            raise ValueError("rescale_zero_snr takes a discrete schedule; give a continuous one its own log_snr_min")
        alpha = np.exp(0.5 * np.cumsum(np.log1p(-self.betas[:-1])))
        alpha = np.append(alpha, alpha[-1] * np.sqrt(1.0 - self.betas[-1]))
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        alpha_bar = np.concatenate([[1.0], alpha**2])
        return from_betas(1.0 - alpha_bar[1:] / alpha_bar[:-1])


def from_betas(betas: Sequence[float] | np.ndarray) -> Schedule:
    """The discrete schedule of given betas: alpha_bar_k = prod_{j <= k} (1 - beta_j), eq. (2).

    Args:
      betas: T values in (0, 1); the last may be 1 (zero terminal signal-to-noise ratio).

    Returns:
      A schedule with T + 1 entries on t = k / T, of which entry 0 is clean data.

    Raises:
      ValueError: a beta is outside (0, 1), or there is none.

    Source: Ho et al. 2020 (DDPM), eq. 4.

    >>> schedule = from_betas([0.1, 0.2])
    >>> [round(float(a) ** 2, 6) for a in schedule(jnp.array([0.0, 0.5, 1.0])).alpha]
    [1.0, 0.9, 0.72]
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be a non-empty list of numbers, got shape {betas.shape}")
    if not (np.all(betas > 0) and np.all(betas[:-1] < 1) and betas[-1] <= 1):
        raise ValueError(f"betas must lie in (0, 1) (the last may be 1), got {betas.min():.6g} to {betas.max():.6g}")
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
    return _tabulated(np.exp(0.5 * log_alpha_bar), np.sqrt(-np.expm1(log_alpha_bar)), betas)


def linear(num_steps: int = 1000, beta_start: float | None = None, beta_end: float | None = None) -> Schedule:
    """Betas rising linearly. Defaults: DDPM's 1e-4 to 0.02 times 1000/T, so that any T ends as noisy.

    Args:
      num_steps: T >= 1; with the default betas T >= 21.
      beta_start: the first beta, in (0, 1).
      beta_end: the last beta, in (0, 1).

    Raises:
      ValueError: a beta would not be below 1 (names the smallest legal T).

    Source: Ho et al. 2020 (DDPM), section 4.

    >>> f"{float(linear(1000)(1.0).alpha) ** 2:.4e}"  # alpha_bar_T
    '4.0358e-05'
    """
    start, end = _beta_range(num_steps, beta_start, beta_end, 1e-4, 0.02)
    return from_betas(np.linspace(start, end, num_steps))


def scaled_linear(num_steps: int = 1000, beta_start: float | None = None, beta_end: float | None = None) -> Schedule:
    """Betas whose square roots rise linearly. Defaults: Stable Diffusion's 0.00085 to 0.012 times 1000/T.

    Raises:
      ValueError: a beta would not be below 1 (names the smallest legal T).

    Source: Rombach et al. 2022 (latent diffusion), released configurations.

    >>> round(float(scaled_linear()(1.0).sigma), 4)
    0.9977
    """
    start, end = _beta_range(num_steps, beta_start, beta_end, 0.00085, 0.012)
    return from_betas(np.linspace(math.sqrt(start), math.sqrt(end), num_steps) ** 2)


def cosine(num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alpha_bar(t) = f(t)/f(0), f(t) = cos^2((t + offset)/(1 + offset) pi/2), betas capped at max_beta.

    Args:
      num_steps: T >= 1.
      offset: keeps the first betas from vanishing; > 0.
      max_beta: cap in (0, 1). The cap sets the terminal alpha: 4.9e-5 at T = 1000, so the x_0 that a noise
        prediction implies at t = 1 is amplified 2e4 times: clip it, or predict v.

    Source: Nichol & Dhariwal 2021 (improved DDPM), eq. 17.

    >>> f"{float(cosine()(1.0).alpha):.1e}"
    '4.9e-05'
    """
    t = np.arange(num_steps + 1) / _positive(num_steps)
    return _from_alpha_bar(np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2, max_beta)


def sigmoid(
    num_steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> Schedule:
    """alpha_bar(t) = (g(end) - g(start + t (end - start))) / (g(end) - g(start)), g(u) = 1/(1 + exp(-u/tau)).

    Source: Jabri et al. 2022 (RIN), appendix; betas capped at max_beta as for the cosine schedule.

    >>> round(float(sigmoid()(0.5).alpha) ** 2, 3)
    0.5
    """
    t = np.arange(num_steps + 1) / _positive(num_steps)
    gate = 1.0 / (1.0 + np.exp(-(start + t * (end - start)) / tau))
    return _from_alpha_bar(gate[-1] - gate, max_beta)


def continuous_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The variance-preserving SDE: log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2, sigma^2 = 1 - alpha^2.

    Source: Song et al. 2021 (score SDE), eq. 33.

    >>> m = continuous_vp()(0.5)
    >>> round(float(m.alpha**2 + m.sigma**2), 6)
    1.0
    """
    slope = beta_max - beta_min

    def marginal(t: ArrayLike) -> Marginal:
        log_alpha = -0.25 * slope * jnp.square(t) - 0.5 * beta_min * jnp.asarray(t)
        return Marginal(jnp.exp(log_alpha), jnp.sqrt(-jnp.expm1(2.0 * log_alpha)))

    def time_of_log_snr(log_snr: ArrayLike) -> jax.Array:
        return _vp_time(jax.nn.softplus(-jnp.asarray(log_snr)), beta_min, slope)

    return Schedule(marginal, time_of_log_snr)


def continuous_sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The sub-VP SDE: alpha as in `continuous_vp`, sigma = 1 - alpha^2 (less noise at every t < 1).

    Source: Song et al. 2021 (score SDE), eq. 29 of the appendix.

    >>> m = continuous_sub_vp()(0.2)
    >>> round(float(m.sigma + m.alpha**2), 6)
    1.0
    """
    slope = beta_max - beta_min

    def marginal(t: ArrayLike) -> Marginal:
        log_alpha = -0.25 * slope * jnp.square(t) - 0.5 * beta_min * jnp.asarray(t)
        return Marginal(jnp.exp(log_alpha), -jnp.expm1(2.0 * log_alpha))

    def time_of_log_snr(log_snr: ArrayLike) -> jax.Array:
        inverse = jnp.exp(-0.5 * jnp.asarray(log_snr))  # (1 - alpha^2)/alpha, of which alpha is the positive root
        return _vp_time(2.0 * jnp.arcsinh(0.5 * inverse), beta_min, slope)

    return Schedule(marginal, time_of_log_snr)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """The variance-exploding SDE: alpha = 1, sigma^2 = sigma_min^2 (r^(2t) - 1), r = sigma_max/sigma_min.

    This is the exact marginal of the SDE, hence 0 at t = 0 (score_sde's code adds sigma_min^2).
    Source: Song et al. 2021 (score SDE), eq. 31.

    >>> round(float(ve()(1.0).sigma), 3)
    50.0
    """
    log_r = math.log(sigma_max / sigma_min)

    def marginal(t: ArrayLike) -> Marginal:
        sigma = sigma_min * jnp.sqrt(jnp.expm1(2.0 * log_r * jnp.asarray(t)))
        return Marginal(jnp.ones_like(sigma), sigma)

    def time_of_log_snr(log_snr: ArrayLike) -> jax.Array:
        return jnp.log1p(jnp.exp(-jnp.asarray(log_snr)) / sigma_min**2) / (2.0 * log_r)

    return Schedule(marginal, time_of_log_snr)


def edm(sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """EDM: alpha = 1, sigma = sigma_max t^rho, so that uniform t is Karras' grid with sigma_min = 0.

    Source: Karras et al. 2022 (EDM), eq. 5.

    >>> float(edm()(1.0).sigma)
    80.0
    """

    def marginal(t: ArrayLike) -> Marginal:
        sigma = sigma_max * jnp.asarray(t) ** rho
        return Marginal(jnp.ones_like(sigma), sigma)

    def time_of_log_snr(log_snr: ArrayLike) -> jax.Array:
        return jnp.exp((-0.5 * jnp.asarray(log_snr) - math.log(sigma_max)) / rho)

    return Schedule(marginal, time_of_log_snr)


def flow(shift: float = 1.0) -> Schedule:
    """Rectified flow: alpha = 1 - u, sigma = u, with u = shift t / (1 + (shift - 1) t).

    Args:
      shift: > 1 moves time towards noise, as higher resolutions need (SD3: 3 at 1024 pixels).

    Source: Liu et al. 2023 (rectified flow), eq. 1; the shift: Esser et al. 2024 (SD3), eq. 23.

    >>> m = flow(shift=3.0)(0.5)
    >>> float(m.alpha), float(m.sigma)
    (0.25, 0.75)
    """

    def marginal(t: ArrayLike) -> Marginal:
        t = jnp.asarray(t)
        scale = 1.0 + (shift - 1.0) * t
        return Marginal((1.0 - t) / scale, shift * t / scale)

    def time_of_log_snr(log_snr: ArrayLike) -> jax.Array:
        u = jax.nn.sigmoid(-0.5 * jnp.asarray(log_snr))
        return u / (shift - (shift - 1.0) * u)

    return Schedule(marginal, time_of_log_snr)


def shifted_cosine(shift: float = 1.0, log_snr_min: float = -15.0) -> Schedule:
    """log_snr = 2 log(shift / tan u), u from 0 at t = 0 up to where log_snr = log_snr_min at t = 1.

    Args:
      shift: base resolution over this resolution, e.g. 64/256; 1 is the plain continuous cosine schedule.
      log_snr_min: log-SNR at t = 1, finite so that every parameterisation works there.

    Source: Hoogeboom et al. 2023 (simple diffusion), section 3.1.

    >>> round(float(shifted_cosine(0.25)(1.0).log_snr), 3)
    -15.0
    """
    u_max = math.atan(shift * math.exp(-0.5 * log_snr_min))

    def marginal(t: ArrayLike) -> Marginal:
        u = u_max * jnp.asarray(t)
        signal, noise = shift * jnp.cos(u), jnp.sin(u)
        norm = jnp.hypot(signal, noise)
        return Marginal(signal / norm, noise / norm)

    def time_of_log_snr(log_snr: ArrayLike) -> jax.Array:
        return jnp.arctan(shift * jnp.exp(-0.5 * jnp.asarray(log_snr))) / u_max

    return Schedule(marginal, time_of_log_snr)


def interpolated_cosine(shift_noise: float, shift_clean: float = 1.0, log_snr_min: float = -15.0) -> Schedule:
    """A shifted cosine whose shift goes from shift_clean at t = 0 to shift_noise at t = 1, log-linearly.

    Source: Hoogeboom et al. 2023 (simple diffusion), section 3.1 (the interpolated schedule).

    >>> s = interpolated_cosine(0.25)
    >>> float(s(0.0).sigma), round(float(s.time_of_log_snr(s(0.3).log_snr)), 5)
    (0.0, 0.3)
    """
    u_max = math.atan(shift_noise * math.exp(-0.5 * log_snr_min))

    def marginal(t: ArrayLike) -> Marginal:
        t = jnp.asarray(t)
        signal = shift_clean * (shift_noise / shift_clean) ** t * jnp.cos(u_max * t)
        noise = jnp.sin(u_max * t)
        norm = jnp.hypot(signal, noise)
        return Marginal(signal / norm, noise / norm)

    def time_of_log_snr(log_snr: ArrayLike) -> jax.Array:
        log_snr = jnp.asarray(log_snr)

        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            early = marginal(middle).log_snr > log_snr
            return jnp.where(early, middle, low), jnp.where(early, high, middle)

        start = (jnp.zeros_like(log_snr), jnp.ones_like(log_snr))
        return jax.lax.fori_loop(0, 60, halve, start)[1]  # 60 halvings: below float64's resolution

    return Schedule(marginal, time_of_log_snr)


def _tabulated(alpha: np.ndarray, sigma: np.ndarray, betas: np.ndarray) -> Schedule:
    """The discrete schedule of a table; index = round(t T), so that float32 t = k/T is exact to T = 10^4."""
    num_steps = len(betas)
    with np.errstate(divide="ignore"):
        log_snr = 2.0 * (np.log(alpha[1:]) - np.log(sigma[1:]))
    midpoints = -0.5 * (log_snr[1:] + log_snr[:-1])

    def marginal(t: ArrayLike) -> Marginal:
        index = jnp.round(jnp.asarray(t) * num_steps).astype(jnp.int32)
        return Marginal(jnp.asarray(alpha)[index], jnp.asarray(sigma)[index])

    def time_of_log_snr(value: ArrayLike) -> jax.Array:
        index = 1 + jnp.searchsorted(jnp.asarray(midpoints), -jnp.asarray(value))
        return index / num_steps

    return Schedule(marginal, time_of_log_snr, num_steps, betas)


def _from_alpha_bar(alpha_bar: np.ndarray, max_beta: float) -> Schedule:
    """alpha_bar at k/T, k = 0..T, up to a factor -> schedule with betas capped at max_beta."""
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta must lie in (0, 1), got {max_beta}")
    return from_betas(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], max_beta))


def _beta_range(
    num_steps: int, start: float | None, end: float | None, default_start: float, default_end: float
) -> tuple[float, float]:
    """Explicit betas, or the defaults times 1000/T, checked to lie in (0, 1)."""
    scale = 1000 / _positive(num_steps)
    smallest = math.floor(1000 * default_end) + 1
    if end is None and default_end * scale >= 1:
        raise ValueError(f"num_steps={num_steps} makes the last beta {default_end * scale:.3g} >= 1; use >= {smallest}")
    return default_start * scale if start is None else start, default_end * scale if end is None else end


def _positive(num_steps: int) -> int:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return num_steps


def _vp_time(integral: jax.Array, beta_min: float, slope: float) -> jax.Array:
    """The t at which the integral of beta, slope t^2/2 + beta_min t, has the given value (stable root)."""
    return 2.0 * integral / (beta_min + jnp.sqrt(beta_min**2 + 2.0 * slope * integral))
