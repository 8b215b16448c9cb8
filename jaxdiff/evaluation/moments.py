"""Mean and covariance of features, streamed: sums over batches, devices and hosts, one array of d^2 numbers.

    S_1 = sum_i (x_i - c),   S_2 = sum_i (x_i - c)(x_i - c)^T                                    (1)
    mean = c + S_1/n,        covariance = (S_2 - S_1 S_1^T/n)/(n - 1)                            (2)

c, near the mean, is fixed beforehand: (2) then subtracts nothing large. Within a batch the sums are float32 products;
between batches they are pairs of float32 (sum and what rounding lost, Knuth's two-sum), so the error does not grow with
the number of batches; and (2) is float64. Against float64 throughout, the relative error of a covariance's
entries, to the geometric mean of their variances, is below 1e-6 with c the mean of the first batch (tested).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Sum(NamedTuple):
    """An unevaluated float32 sum high + low, as good as 48 bits."""

    high: jax.Array
    low: jax.Array

    def add(self, x: jax.Array) -> "Sum":
        """The sum and x, exact but for the rounding of `low`."""
        high = self.high + x
        part = high - self.high
        return Sum(high, self.low + ((self.high - (high - part)) + (x - part)))

    def float64(self) -> np.ndarray:
        """The value, on the host."""
        return np.add(self.high, self.low, dtype=np.float64, out=np.empty(self.high.shape))


class Moments(NamedTuple):
    """What is kept of the features seen so far: shift c [d], S_1 [d], S_2 [d, d]; count float32 pair, exact to 2^48."""

    shift: jax.Array
    count: Sum
    first: Sum
    second: Sum


class Gaussian(NamedTuple):
    """Number of features, their mean [d] and unbiased covariance [d, d], float64 on the host."""

    n: int
    mean: np.ndarray
    covariance: np.ndarray


def init(shift: Float[Array, " d"]) -> Moments:
    """No features yet; shift is somewhere near their mean (that of the first batch is near enough)."""

    def zeros(*shape: int) -> Sum:
        return Sum(jnp.zeros(shape), jnp.zeros(shape))

    d = shift.shape[0]
    return Moments(shift, zeros(), zeros(d), zeros(d, d))


def add(moments: Moments, features: Float[Array, "batch d"], weight: Float[Array, " batch"]) -> Moments:
    """The moments with a batch added, whose rows count once (weight 1) or not at all (0, padding).

    Under jit with rows spread over devices the sums are global.

    >>> x = jnp.array([[1.0], [3.0], [99.0]])
    >>> finish(add(init(jnp.zeros(1)), x, jnp.array([1.0, 1.0, 0.0])))
    Gaussian(n=2, mean=array([2.]), covariance=array([[2.]]))
    """
    x = (features - moments.shift[None]) * weight[:, None]
    second = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
    return Moments(
        moments.shift,
        moments.count.add(jnp.sum(weight)),
        moments.first.add(jnp.sum(x, axis=0)),
        moments.second.add(second),
    )


def finish(moments: Moments) -> Gaussian:
    """Mean and covariance by eq. (2).

    Raises:
      ValueError: fewer than 2 features.
    """
    n = round(float(moments.count.float64()))
    if n < 2:
        raise ValueError(f"a covariance needs at least 2 features, got {n}")
    first, second = moments.first.float64(), moments.second.float64()
    mean = np.asarray(moments.shift, np.float64) + first / n
    return Gaussian(n, mean, (second - np.outer(first, first) / n) / (n - 1))
