"""Frechet distance of two Gaussians; of Inception's features it is FID.

    d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))                                       (1)

Source: Heusel et al. 2017 (FID), eq. 6.
"""

import numpy as np

from jaxdiff.evaluation.moments import Gaussian


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Eq. (1), in float64 on the host.

    tr (C_1 C_2)^(1/2) is the sum of the singular values of C_1^(1/2) C_2^(1/2): nothing has to be invertible, and no
    square root of a matrix that is not symmetric is taken, which is where other implementations add 1e-6 I.
    Estimated from n samples it is too large by about a constant over n: compare numbers of one n only.

    Args:
      a: mean and covariance of one set.
      b: of the other.

    Raises:
      ValueError: the features have different numbers of dimensions.

    >>> flat = Gaussian(9, np.zeros(2), np.eye(2))
    >>> round(frechet_distance(flat, Gaussian(9, np.ones(2), 4 * np.eye(2))), 9)  # 2 + 2 (2 - 1)^2
    4.0
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.size} and of {b.mean.size} dimensions have no distance")
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    gap = a.mean - b.mean
    return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
