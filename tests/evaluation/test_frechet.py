"""Frechet distance against closed forms and SciPy's matrix square root."""

import numpy as np
import pytest
import scipy.linalg

from jaxdiff.evaluation import frechet_distance
from jaxdiff.evaluation.moments import Gaussian


def random_gaussian(seed, d, rank=None):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((d, rank or 2 * d))
    return Gaussian(9, rng.standard_normal(d), root @ root.T)


def test_commuting_covariances_have_a_closed_form():
    """tr (C_1 C_2)^(1/2) of diagonal ones is the sum of the products of standard deviations."""
    s, r = np.array([0.5, 2.0, 3.0]), np.array([1.0, 1.0, 0.0])
    a, b = Gaussian(9, np.zeros(3), np.diag(s**2)), Gaussian(9, np.array([1.0, -2.0, 0.0]), np.diag(r**2))
    assert frechet_distance(a, b) == pytest.approx(5.0 + np.sum((s - r) ** 2), rel=1e-12)


@pytest.mark.parametrize("d", [3, 64])
def test_against_scipy(d):
    a, b = random_gaussian(0, d), random_gaussian(1, d)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    gap = a.mean - b.mean
    expected = gap @ gap + np.trace(a.covariance + b.covariance) - 2 * np.trace(root).real
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_fewer_samples_than_dimensions():
    """Singular covariances, where a square root of the product needs luck: still 0 from itself, and symmetric."""
    a, b = random_gaussian(2, 20, rank=5), random_gaussian(3, 20, rank=7)
    assert abs(frechet_distance(a, a)) < 1e-5 * np.trace(a.covariance)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_rotation_and_shift_of_both_change_nothing():
    a, b = random_gaussian(4, 6), random_gaussian(5, 6)
    turn = np.linalg.qr(np.random.default_rng(6).standard_normal((6, 6)))[0]
    moved = [Gaussian(9, turn @ g.mean + 3.0, turn @ g.covariance @ turn.T) for g in (a, b)]
    assert frechet_distance(*moved) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_other_features_are_refused():
    with pytest.raises(ValueError, match="3 and of 4"):
        frechet_distance(random_gaussian(0, 3), random_gaussian(0, 4))
