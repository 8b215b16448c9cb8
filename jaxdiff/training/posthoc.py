"""Averages whose width is chosen after training, from a few that were tracked with power-function profiles.

With n steps done and theta(i) the parameters after step i, an average of exponent gamma is

    theta_gamma(n) = sum_i [(i/n)^(gamma+1) - ((i-1)/n)^(gamma+1)] theta(i)                             (1)
                   = b theta_gamma(n-1) + (1-b) theta(n),    b = (1 - 1/n)^(gamma+1)                    (2)

whose relative width is sigma_rel = sqrt(gamma+1) / [(gamma+2) sqrt(gamma+3)], the standard deviation of i/n under (1):
the weights' shape does not depend on n, and the random start has none. Any other average is near the span of snapshots
of tracked ones: the coefficients are those of the nearest profile whose weights sum to 1, as those of (1) do. Without
that condition the nearest profile is a small one where snapshots are few, and scales the network.

Source: Karras et al. 2024 (EDM2), section 3 and appendix C, algorithms 2 and 3.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, Int

WIDEST = 12**-0.5
"""sigma_rel of the plain mean, gamma = 0: wider ones would weigh the beginning more than the end."""


def exponent(sigma_rel: float) -> float:
    """gamma of a relative width in (0, WIDEST].

    Source: EDM2, algorithm 2.

    >>> round(exponent(0.10), 2), round(exponent(0.05), 2)
    (6.94, 16.97)
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"sigma_rel={sigma_rel} is out of range; it must lie in (0, {WIDEST:.4f}]")
    roots = np.roots([1.0, 7.0, 16.0 - sigma_rel**-2, 12.0 - sigma_rel**-2])
    return max(0.0, float(roots.real.max()))


def update(averages: tuple[Any, ...], params: Any, step: Int[Array, ""] | int, widths: Sequence[float]) -> Any:
    """Equation (2) for each width; the first update makes every average the parameters.

    Args:
      averages: one tree a width.
      params: the parameters after this step, the same tree.
      step: steps done before this one, >= 0.
      widths: sigma_rel of each.

    >>> import jax.numpy as jnp
    >>> [float(x) for x in update((jnp.zeros(()),), jnp.ones(()), 0, (0.1,))]
    [1.0]
    """
    done = jnp.asarray(step, jnp.float32) + 1

    def one(average: Any, width: float) -> Any:
        weight = -jnp.expm1((exponent(width) + 1) * jnp.log1p(-1 / done))
        return jax.tree.map(lambda a, p: a + weight * (p - a), average, params)

    return tuple(one(average, width) for average, width in zip(averages, widths, strict=True))


def coefficients(
    steps: Sequence[int], widths: Sequence[float], step: int, width: float
) -> Float64[np.ndarray, " snapshots"]:
    """The combination of snapshots whose profile is nearest to that of `width` at `step`, of those that sum to 1.

    Args:
      steps: of each snapshot, in 1..step.
      widths: of each snapshot.
      step: at which the average is wanted.
      width: its sigma_rel.

    Source: EDM2, algorithm 3, where the sum is not constrained (the released code divides by it).

    >>> np.abs(coefficients([100, 200], [0.1, 0.1], 200, 0.1)).round(6).tolist()
    [0.0, 1.0]
    >>> float(coefficients([100, 100], [0.05, 0.1], 100, 0.15).sum())
    1.0
    """
    products = _products(steps, widths, step, width)
    gram, wanted = products[:-1, :-1], products[:-1, -1]
    pivot = int(np.argmin(np.diag(gram) - 2 * wanted))  # the nearest snapshot; the others enter by what they differ
    differences = gram - gram[pivot][None] - gram[:, pivot][:, None] + gram[pivot, pivot]
    gain = wanted - wanted[pivot] - gram[:, pivot] + gram[pivot, pivot]
    weights = np.linalg.lstsq(differences, gain, rcond=None)[0]
    weights[pivot] = 0.0
    weights[pivot] = 1.0 - weights.sum()
    return weights


def profile_error(
    steps: Sequence[int], widths: Sequence[float], step: int, width: float, weights: Sequence[float] | np.ndarray
) -> float:
    """The distance of a combination's profile from that of `width` at `step`, as a share of the latter's norm.

    Args:
      steps: of each snapshot, in 1..step.
      widths: of each snapshot.
      step: at which the average is wanted.
      width: its sigma_rel.
      weights: of each snapshot.

    >>> round(profile_error([100, 100], [0.05, 0.1], 100, 0.15, [0.0, 1.0]), 3)
    0.442
    """
    products, rest = _products(steps, widths, step, width), np.append(weights, -1.0)
    return float(np.sqrt(max(0.0, rest @ products @ rest) / products[-1, -1]))


def _products(steps: Sequence[int], widths: Sequence[float], step: int, width: float) -> np.ndarray:
    """Inner products of the snapshots' profiles, and of the one wanted, which is the last row and column."""
    t = np.array([*steps, step], np.float64) / step
    gamma = np.array([exponent(w) for w in (*widths, width)])
    return _inner(t[:, None], gamma[:, None], t[None], gamma[None])


def _inner(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """The integral of the product of two profiles p(tau) = (gamma + 1) tau^gamma / t^(gamma+1) on [0, t]."""
    power = np.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** power / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
