"""What the higher-order samplers share: steps of half log-SNR, exponential integrals, the past of a multistep method.

With lambda = log(alpha/sigma), h = lambda_s - lambda_t and u = (lambda - lambda_t)/h in [0, 1], the probability-flow
ODE from t to s has the exact solutions

    (1)  x_s = (sigma_s/sigma_t) x_t + alpha_s h int_0^1 e^(-h (1 - u)) x_0(u) du        data form
    (2)  x_s = (alpha_s/alpha_t) x_t - sigma_s h int_0^1 e^(h (1 - u)) noise(u) du       noise form
    (3)  phi_{k+1}(z) = int_0^1 e^(z (1 - u)) u^k/k! du,  phi_{k+1}(z) = (phi_k(z) - 1/k!)/z,  phi_0(z) = e^z
    (4)  x_s = alpha_s x_0 + sigma_s noise        both with constant x_0 or noise: DDIM, the first-order step

Methods differ in how they extrapolate x_0(u) or noise(u). All are written here as (4) plus corrections: (4) holds
where sigma_s = 0 or alpha_t = 0, and there, lambda being infinite, the corrections are left out (order 1).

Polynomials in lambda say nothing over long steps: between noise and data x_0 changes within 1 or 2 of lambda, and then
not at all. So a multistep method drops its order before a leap (`History.usable`), and a method of the noise form,
whose weights grow as e^h times the change of x_0, takes bounded ones there. h is as in the few steps of real use: as
steps become shorter no leap is left, and the orders hold. The limits were chosen by tests/samplers/few_steps.py.

Sources: Lu et al. 2022 (DPM-Solver), proposition 3.1 and appendix B; Lu et al. 2022 (DPM-Solver++), section 4.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdiff.denoisers import Prediction
from jaxdiff.schedules import Marginal, Schedule

RATIO = 2.5  # a step more than this many times the one before makes no use of it,
SHORT = 0.1  # if its h is above this: where a grid has a kink, the order holds
DATA_REACH, NOISE_REACH = 1.0, 1.4  # the longest h over which x_0, or noise, is extrapolated from one estimate before
SHORTER = 0.6  # times that for each more
LEAP = 1.5  # the longest h of a single step in the noise form
_TINY = 1e-30  # stands for an amplitude of 0, so that lambda stays finite


def half_log_snr(m: Marginal) -> jax.Array:
    """lambda = log(alpha/sigma); +-69 rather than infinite where sigma or alpha is 0, so that no inf - inf arises."""
    return jnp.log(jnp.maximum(m.alpha, _TINY)) - jnp.log(jnp.maximum(m.sigma, _TINY))


def interior(*marginals: Marginal) -> jax.Array:
    """Whether lambda is finite at all of these."""
    ends = jnp.stack([jnp.minimum(m.alpha, m.sigma) for m in marginals])
    return jnp.min(ends) > 0


def first_order(p: Prediction, m_s: Marginal) -> jax.Array:
    """The step to s with x_0 and noise as they are, eq. (4)."""
    m_s = m_s.like(p.x_0)
    return m_s.alpha * p.x_0 + m_s.sigma * p.noise


def trapezoid_weight(m_t: Marginal, m_s: Marginal) -> jax.Array:
    """w of x_s = alpha_s x_0 + sigma_s noise + w (x_0(s) - x_0): the trapezoidal rule along the schedule's own line.

    On the straight line from (alpha_t, sigma_t) to (alpha_s, sigma_s) it is w = alpha_t (e^h - 1)/2. Where a schedule
    is such a line this is the rule in the variable in which its flow is straight: t of rectified flow, from t = 1 on,
    and sigma of EDM. On an arc it is that in the angle but for the third order. At most w = alpha_s, that is x_0(s) in
    place of x_0: in low noise e^h multiplies the rounding of x_0, and in high noise what x_0 is not yet.
    """
    noisy = m_s.sigma > 0
    along = 0.5 * (m_s.alpha * m_t.sigma / jnp.where(noisy, m_s.sigma, 1.0) - m_t.alpha)
    return jnp.minimum(jnp.where(noisy, along, 0.0), m_s.alpha)


def between(
    schedule: Schedule, m_t: Marginal, h: jax.Array, r: float, length: jax.Array
) -> tuple[jax.Array, Marginal, jax.Array]:
    """The time at u = r, its marginal, and u as it really is: a discrete schedule rounds the time to an entry.

    length is t - s, of which only a discrete schedule makes use.
    """
    lam, at = half_log_snr(m_t), jnp.asarray(r, h.dtype)
    if (
        schedule.num_steps is not None
    ):  # the middle of two neighbours is always rounded to t, not as the last bit has it
        at = r - 1e-3 / jnp.maximum(length * schedule.num_steps, 1.0)
    time = schedule.time_of_log_snr(2.0 * (lam + at * h))
    m = schedule(time)
    return time, m, (half_log_snr(m) - lam) / h


def phi(k: int, z: jax.Array) -> jax.Array:
    """phi_k(z) of eq. (3), k >= 1, accurate for every z: the recursion loses all digits near z = 0.

    >>> round(float(phi(1, jnp.array(1.0))), 6), round(float(phi(3, jnp.array(1e-4))), 6)
    (1.718282, 0.166671)
    """
    terms = 20  # of the series: the remainder at |z| = 1 is below 1/20!
    small = jnp.clip(z, -1.0, 1.0)
    series = jnp.zeros_like(z)
    for i in reversed(range(terms)):
        series = series * small + 1.0 / math.factorial(i + k)
    large = jnp.where(jnp.abs(z) < 1.0, 1.0, z)
    recursion = jnp.expm1(large) / large
    for i in range(1, k):
        recursion = (recursion - 1.0 / math.factorial(i)) / large
    return jnp.where(jnp.abs(z) < 1.0, series, recursion)


def adams_weights(nodes: Sequence[float | jax.Array], moments: Sequence[float | jax.Array]) -> Float[Array, " nodes"]:
    """The weights w with sum_j w_j p(nodes_j) = sum_k c_k moments_k for every p(u) = sum_k c_k u^k of that degree.

    With moments_k = int K(u) u^k du they integrate the polynomial through given values against the kernel K.

    Args:
      nodes: n distinct points u.
      moments: at least n moments, of u^0, u^1, ...

    >>> adams_weights([0.0, -1.0], [1.0, 0.5]).tolist()  # Adams-Bashforth 2
    [1.5, -0.5]
    """
    weights = []
    for j, node in enumerate(nodes):
        coefficients: list[jax.Array] = [jnp.ones_like(moments[0])]  # of prod_i (u - u_i)/(u_j - u_i)
        for other in (*nodes[:j], *nodes[j + 1 :]):
            lower, upper = [jnp.zeros_like(coefficients[0]), *coefficients], [*coefficients, 0.0]
            coefficients = [(a - other * b) / (node - other) for a, b in zip(lower, upper, strict=True)]
        weights.append(sum(c * m for c, m in zip(coefficients, moments, strict=False)))
    return jnp.stack(weights)


def noise_moments(h: jax.Array, count: int) -> list[jax.Array]:
    """h int_0^1 e^(-h u) u^k du, k = 0 .. count - 1: the kernel of eq. (2), over e^h so that nothing overflows."""
    return [math.factorial(k) * h * jnp.exp(-h) * phi(k + 1, h) for k in range(count)]


def data_moments(h: jax.Array, count: int) -> list[jax.Array]:
    """h int_0^1 e^(-h (1 - u)) u^k du, k = 0 .. count - 1: the kernel of eq. (1)."""
    return [math.factorial(k) * h * phi(k + 1, -h) for k in range(count)]


class History(NamedTuple):
    """What a multistep method remembers, newest first; empty at init.

    Attributes:
      values: [length, batch, ...] in the dtype of x: x_0 or noise estimates.
      positions: float [length]: where they were made (lambda or t).
      count: int32 []: how many are real.
    """

    values: Float[Array, "length batch *shape"]
    positions: Float[Array, " length"]
    count: Int[Array, ""]

    @classmethod
    def empty(cls, x_T: jax.Array, length: int) -> "History":
        """Nothing remembered; distinct positions far away, so that unused weights stay finite."""
        far = -1e4 * (1.0 + jnp.arange(length, dtype=jnp.result_type(float)))
        return cls(jnp.zeros((length, *x_T.shape), x_T.dtype), far, jnp.zeros((), jnp.int32))

    def push(self, value: jax.Array, position: jax.Array) -> "History":
        """value and position in front, the oldest dropped."""
        length = len(self.positions)
        values = jnp.concatenate([value[None].astype(self.values.dtype), self.values])[:length]
        positions = jnp.concatenate([position[None].astype(self.positions.dtype), self.positions])[:length]
        return History(values, positions, jnp.minimum(self.count + 1, length))

    def usable(
        self, lam: jax.Array, h: jax.Array, full_order: bool = False, reach: float = DATA_REACH
    ) -> Int[Array, ""]:
        """How many of the last estimates a step of h from lambda may use; the positions are lambdas.

        With full_order all that are real. Else none before a leap: where the step, or one between two of the estimates,
        is above SHORT and RATIO times the one before, or h is above reach (SHORTER reach for the second estimate, ...).
        """
        if full_order:
            return self.count
        steps = jnp.append(h, -jnp.diff(jnp.append(lam, self.positions)))
        limit = reach * SHORTER ** np.arange(len(self.positions))
        near = ((steps[:-1] <= RATIO * steps[1:]) | (steps[:-1] <= SHORT)) & (h <= limit)
        return jnp.minimum(self.count, jnp.sum(jnp.cumprod(near.astype(jnp.int32)), dtype=jnp.int32))

    def correction(self, newest: jax.Array, weights: Float[Array, " n"]) -> jax.Array:
        """sum_j weights_j (values_j - newest) over the n last values: what the past adds to a step of order 1."""
        past = self.values[: len(weights)] - newest[None]
        return jnp.tensordot(weights.astype(past.dtype), past, axes=1)


def by_count(options: Sequence[jax.Array], count: jax.Array) -> jax.Array:
    """options[count], or the last if count is beyond: arrays of rising length, padded with zeros to that of the last.

    >>> by_count([jnp.zeros(0), jnp.ones(1), jnp.ones(2)], jnp.array(1)).tolist()
    [1.0, 0.0]
    """
    width = len(options[-1])
    table = jnp.stack([jnp.pad(option, (0, width - len(option))) for option in options])
    return table[jnp.minimum(count, len(options) - 1)]
