"""What a schedule is, and the one made from a list of betas.

Notation (used everywhere): x_0 is data, and t in [0, 1] counts noise, so t = 0 is clean data.

    (1)  q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)           Marginal(alpha, sigma): amplitudes, never squares
    (2)  alpha_bar_t = alpha_t^2 = prod_k (1 - beta_k)        only where betas are
    (3)  log_snr_t = 2 log(alpha_t / sigma_t)                 +inf at t = 0

Every schedule is exactly (1, 0) at t = 0, so the last step of a sampler lands on clean data with no special
case. A discrete schedule of T steps has a table of T + 1 marginals, computed in float64 with NumPy, and rounds
t * T to its entry; a continuous one evaluates a formula.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

_ROUNDING = 1e-6  # how far outside [0, 1] a t may lie that was meant to be inside


class Marginal(NamedTuple):
    """q(x_t | x_0) = N(alpha x_0, sigma^2 I): two amplitudes of any common batch shape, each >= 0."""

    alpha: jax.Array
    sigma: jax.Array

    @property
    def log_snr(self) -> jax.Array:
        """2 log(alpha / sigma): +inf where sigma = 0, -inf where alpha = 0."""
        return 2.0 * (jnp.log(self.alpha) - jnp.log(self.sigma))

    def like(self, x: ArrayLike) -> "Marginal":
        """The same marginal with trailing axes of size 1, so that it broadcasts against x [*batch, ...].

        No wider than x (but float32), so that under jax_enable_x64, where it is float64, types follow x.
        """
        dtype = jnp.promote_types(jnp.result_type(x), jnp.float32)

        def expand(a: ArrayLike) -> jax.Array:
            a = jnp.asarray(a)
            a = a.astype(dtype) if a.dtype == jnp.float64 else a
            return a if a.ndim == 0 else jnp.expand_dims(a, tuple(range(a.ndim, jnp.ndim(x))))

        return Marginal(expand(self.alpha), expand(self.sigma))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule: a function t -> Marginal, its inverse in log-SNR, and T if it is discrete.

    Attributes:
      marginal: t in [0, 1], any shape -> Marginal of that shape.
      time_of_log_snr: the t in [0, 1] whose log-SNR is nearest (a discrete schedule: among t = k/T, k >= 1).
      num_steps: T of a discrete schedule; None if continuous.
      betas: the T float64 betas of a discrete schedule; None if continuous.
    """

    marginal: Callable[[jax.Array], Marginal]
    time_of_log_snr: Callable[[ArrayLike], jax.Array]
    num_steps: int | None = None
    betas: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        name = getattr(self.marginal, "__qualname__", str(self.marginal)).partition(".")[0]
        return f"<Schedule {name}, {f'{self.num_steps} steps' if self.num_steps else 'continuous'}>"

    def __call__(self, t: ArrayLike) -> Marginal:
        """The marginal at t, in JAX's default float type whatever t's.

        Raises:
          ValueError: a t outside [0, 1]. Where t is traced its value is not known: the marginal is NaN there.
        """
        if not isinstance(t, Tracer):
            if not np.all(_inside(np.asarray(t))):
                raise ValueError(f"t must lie in [0, 1] (0 is clean data, 1 is noise), got {t}")
            return self.marginal(jnp.asarray(np.clip(t, 0.0, 1.0), jnp.result_type(float)))
        t = t.astype(jnp.result_type(float))
        m = self.marginal(jnp.where(t > 1, 1.0, jnp.where(t < 0, 0.0, t)))
        return Marginal(*(jnp.where(_inside(t), a, jnp.nan) for a in m))

    def rescale_zero_snr(self) -> "Schedule":
        """This discrete schedule, shifted and scaled so that nothing of x_0 is left at t = 1.

        alpha' = (alpha - alpha_T) alpha_1 / (alpha_1 - alpha_T): the first entry stays, the last becomes 0.
        Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.

        Raises:
          ValueError: the schedule is continuous, or has one step only.

        >>> from jaxdiff import schedules
        >>> float(schedules.linear().rescale_zero_snr()(1.0).alpha)
        0.0
        """
        if self.betas is None:
            raise ValueError("rescale_zero_snr takes a discrete schedule; give a continuous one its own log_snr_min")
        if self.betas.size < 2:
            raise ValueError("rescale_zero_snr needs 2 steps or more: it keeps the first and moves the last")
        alpha = amplitudes(self.betas)[0][1:]
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        alpha_bar = np.concatenate([[1.0], alpha**2])
        return from_betas(1.0 - alpha_bar[1:] / alpha_bar[:-1])


def from_betas(betas: Sequence[float] | np.ndarray) -> Schedule:
    """The discrete schedule of given betas: alpha_bar_k = prod_{j <= k} (1 - beta_j), eq. (2).

    The index of t is round(t T), exact for float32 t = k/T up to T = 10^4 and beyond.

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
    num_steps = len(betas)
    alpha, sigma = amplitudes(betas)
    with np.errstate(divide="ignore"):
        log_snr = 2.0 * (np.log(alpha[1:]) - np.log(sigma[1:]))
    midpoints = -0.5 * (log_snr[1:] + log_snr[:-1])
    times = np.arange(1, num_steps + 1) / num_steps  # looked up, since k / T of XLA may be off by one bit

    def marginal(t: jax.Array) -> Marginal:
        index = jnp.round(t * num_steps).astype(jnp.int32)
        return Marginal(*(jnp.take(constant(table), index, mode="clip") for table in (alpha, sigma)))

    def time_of_log_snr(value: ArrayLike) -> jax.Array:
        value = jnp.asarray(value, jnp.result_type(float))
        return jnp.take(constant(times), jnp.searchsorted(constant(midpoints), -value, side="right"), mode="clip")

    return Schedule(marginal, time_of_log_snr, num_steps, betas)


def from_function(amplitudes: Callable[[jax.Array], tuple[jax.Array, jax.Array]]) -> Schedule:
    """The continuous schedule of a function t -> (alpha, sigma) alone; its inverse in log-SNR is found by bisection.

    Args:
      amplitudes: JAX in, JAX out, elementwise; (1, 0) at t = 0, and log(alpha/sigma) falls with t.

    Raises:
      ValueError: it is not clean at t = 0, not finite, or its log-SNR does not fall everywhere (at 1001 times).

    >>> schedule = from_function(lambda t: (jnp.cos(t), jnp.sin(t)))
    >>> round(float(schedule.time_of_log_snr(schedule(0.25).log_snr)), 5)
    0.25
    """

    def marginal(t: jax.Array) -> Marginal:
        return Marginal(*(jnp.asarray(a, t.dtype) * jnp.ones_like(t) for a in amplitudes(t)))

    with jax.ensure_compile_time_eval():
        alpha, sigma = map(np.asarray, marginal(jnp.linspace(0.0, 1.0, 1001)))
    if not (np.isfinite(alpha).all() and np.isfinite(sigma).all() and min(alpha.min(), sigma.min()) >= 0):
        raise ValueError("alpha and sigma must be finite and >= 0 for every t in [0, 1]")
    if alpha[0] != 1 or sigma[0] != 0:
        raise ValueError(f"t = 0 must be clean data, alpha = 1 and sigma = 0; got {alpha[0]:g} and {sigma[0]:g}")
    if sigma[1:].min() == 0 or (np.diff(alpha[1:] / sigma[1:]) >= 0).any():
        raise ValueError("log(alpha/sigma) must fall with t: t counts noise")

    def time_of_log_snr(value: ArrayLike) -> jax.Array:
        value = jnp.asarray(value, jnp.result_type(float))

        def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            later = marginal(middle).log_snr > value
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        low, high = jax.lax.fori_loop(0, 50, halve, (jnp.zeros_like(value), jnp.ones_like(value)))
        return jnp.where(value == jnp.inf, 0.0, 0.5 * (low + high))

    return Schedule(marginal, time_of_log_snr)


def amplitudes(betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma at k = 0..T in float64; sigma from expm1, never as 1 - alpha_bar."""
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
    return np.exp(0.5 * log_alpha_bar), np.sqrt(np.abs(np.expm1(log_alpha_bar)))


def constant(table: np.ndarray) -> jax.Array:
    """A table in the default float type. A new array each time: JAX remembers the type of one that it has seen."""
    return jnp.asarray(table.astype(jnp.result_type(float)))


def _inside(t: Any) -> Any:
    return (t >= -_ROUNDING) & (t <= 1 + _ROUNDING)
