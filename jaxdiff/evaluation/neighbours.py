"""Precision, recall, density and coverage: fidelity and diversity apart, from balls around features.

B(x) is the ball around x that reaches to its k-th nearest neighbour in its own set, B°(x) the same without its
surface. With R real and F generated features:

    precision = share of F in some B(R_i)           recall   = share of R in some B(F_j)
    density   = mean over F of #{i: f in B°(R_i)}/k   coverage = share of R whose B°(R_i) holds some f

So a set has density and coverage 1 against itself. Distances are in float64, and those that decide (a radius, or within
rounding of one) are sums of squared differences: a tie of features is a tie here, wherever the features lie.

Sources: Kynkaanniemi et al. 2019, eq. 1-2 (k = 3); Naeem et al. 2020, eq. 3 and 5 (k = 5), released code (<).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_ROWS = 500  # distances are computed so many rows at a time


class Neighbours(NamedTuple):
    """The four, of the same real and generated features."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbours(
    real: Float[np.ndarray, "n d"],
    generated: Float[np.ndarray, "m d"],
    k_precision: int = 3,
    k_density: int = 5,
) -> Neighbours:
    """All four, exactly: every distance is computed, a block of rows at a time, in O(rows n) memory.

    Args:
      real: features of real images.
      generated: of generated ones; use n = m, since all four depend on both.
      k_precision: neighbours for precision and recall.
      k_density: neighbours for density and coverage.

    Raises:
      ValueError: a set has no k neighbours.

    >>> x = np.arange(12.0)[:, None]
    >>> neighbours(x, x + 100.0)
    Neighbours(precision=0.0, recall=0.0, density=0.0, coverage=0.0)
    """
    k = max(k_precision, k_density)
    if min(k_precision, k_density) < 1 or min(len(real), len(generated)) <= k:
        raise ValueError(f"{min(len(real), len(generated))} features have no {k} neighbours each; use more, or k >= 1")
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    radii, fake_radii = _radii(real, k), _radii(generated, k)[:, k_precision - 1]
    precise, dense = np.zeros(len(generated), bool), np.zeros(len(generated))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for start in range(0, len(generated), _ROWS):
        rows = slice(start, start + _ROWS)
        near, far = radii[None, :, k_precision - 1], radii[None, :, k_density - 1]
        squares = _squares(generated[rows], real, near, far, fake_radii[rows, None])
        precise[rows] = np.any(squares <= near, axis=1)
        dense[rows] = np.sum(squares < far, axis=1)
        recalled |= np.any(squares <= fake_radii[rows, None], axis=0)
        covered |= np.any(squares < far, axis=0)
    return Neighbours(
        float(precise.mean()), float(recalled.mean()), float(dense.mean() / k_density), float(covered.mean())
    )


def _squares(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "n d"], *radii: np.ndarray) -> Float[np.ndarray, "m n"]:
    """Squared distances; those that rounding could put on the other side of a radius (squared) are exact."""
    centre = y.mean(axis=0)[None]
    x_c, y_c = x - centre, y - centre
    sizes = np.sum(x_c**2, axis=1)[:, None] + np.sum(y_c**2, axis=1)[None]
    squares = sizes - 2.0 * x_c @ y_c.T
    close = np.zeros(squares.shape, bool)
    for radius in radii:
        close |= np.abs(squares - radius) <= 1e-12 * sizes
    for i in np.flatnonzero(close.any(axis=1)):
        squares[i, close[i]] = _exact(x[i], y[close[i]])
    return squares


def _exact(x: Float[np.ndarray, " d"], y: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Squared distances of one x, the same whichever of two points is x."""
    return np.sum((y - x[None]) ** 2, axis=1)


def _radii(x: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, "n k"]:
    """Squared distances to the 1st to k-th nearest neighbour, itself aside."""
    radii = np.empty((len(x), k))
    for start in range(0, len(x), _ROWS):
        squares = _squares(x[start : start + _ROWS], x)
        nearest = np.argpartition(squares, k, axis=1)[:, : k + 1]
        for i, candidates in enumerate(nearest, start):
            radii[i] = np.sort(_exact(x[i], x[candidates]))[1:]  # the nearest is itself
    return radii
