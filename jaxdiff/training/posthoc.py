"""Averages whose width is chosen after training, from a few that were tracked with power-function profiles.

With n steps done and theta(i) the parameters after step i, an average of exponent gamma is

    theta_gamma(n) = sum_i [(i/n)^(gamma+1) - ((i-1)/n)^(gamma+1)] theta(i)                             (1)
                   = b theta_gamma(n-1) + (1-b) theta(n),    b = (1 - 1/n)^(gamma+1)                    (2)

whose relative width is sigma_rel = sqrt(gamma+1) / [(gamma+2) sqrt(gamma+3)], the standard deviation of i/n under (1):
the weights' shape does not depend on n, and the random start has none. Any other average is near the span of snapshots
of tracked ones; the least squares over the profiles give the coefficients.

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
    """The combination of snapshots whose profile is nearest to that of `width` at `step`.

    Args:
      steps: of each snapshot, >= 1.
      widths: of each snapshot.
      step: at which the average is wanted.
      width: its sigma_rel.

    Source: EDM2, algorithm 3.

    >>> np.abs(coefficients([100, 200], [0.1, 0.1], 200, 0.1)).round(6).tolist()
    [0.0, 1.0]
    """
    t = np.array(steps, np.float64)
    gamma = np.array([exponent(w) for w in widths])
    gram = _inner(t[:, None], gamma[:, None], t[None], gamma[None])
    wanted = _inner(t, gamma, np.array(float(step)), np.array(exponent(width)))
    return np.linalg.lstsq(gram, wanted, rcond=None)[0]


def _inner(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """The integral of the product of two profiles p(tau) = (gamma + 1) tau^gamma / t^(gamma+1) on [0, t]."""
    power = np.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** power / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
