"""Precision, recall, density and coverage against scikit-learn's exact neighbours."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from jaxdiff.evaluation import neighbours


def radius(x, k):
    return NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(x).kneighbors(x)[0][:, k]


def distances(x, y):
    return np.sqrt(((x[:, None, :] - y[None, :, :]) ** 2).sum(-1))


def expected(real, generated, k, k_density):
    d = distances(real, generated)
    dense = d < radius(real, k_density)[:, None]
    return (
        (d <= radius(real, k)[:, None]).any(0).mean(),
        (d <= radius(generated, k)[None, :]).any(1).mean(),
        dense.sum(0).mean() / k_density,
        dense.any(1).mean(),
    )


@pytest.mark.parametrize(("n", "m", "offset"), [(120, 120, 0.0), (501, 40, 1000.0)])
def test_against_scikit_learn(n, m, offset):
    """Far from zero too, and where the last block of rows is padded."""
    rng = np.random.default_rng(0)
    real = offset + rng.standard_normal((n, 4))
    generated = offset + 0.5 + 0.6 * rng.standard_normal((m, 4))
    real, generated = real.astype(np.float32), generated.astype(np.float32)
    found = neighbours(real, generated, 3, 5)
    np.testing.assert_allclose(found, expected(real.astype(float), generated.astype(float), 3, 5), atol=1e-12)


def test_what_they_tell_apart():
    """Half the modes, well drawn: precise, dense, but recall and coverage are half. Outliers: the reverse."""
    rng = np.random.default_rng(1)
    near, far = rng.standard_normal((200, 2)), 100.0 + rng.standard_normal((200, 2))
    real = np.concatenate([near, far])
    dropped = neighbours(real, near + 0.01 * rng.standard_normal((200, 2)))
    assert dropped.precision > 0.98 and dropped.density > 0.9
    assert dropped.recall < 0.51 and dropped.coverage < 0.51
    junk = neighbours(near, np.concatenate([near + 0.01, far]))
    assert junk.precision == pytest.approx(0.5, abs=0.02) and junk.coverage > 0.98


@pytest.mark.parametrize("offset", [0.0, 1.0 / 3.0, 1000.1])
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_a_set_against_itself_has_density_and_coverage_1(offset, scale):
    """Every radius is the distance of a generated point: k of them lie inside, and the k-th on the surface."""
    x = (offset + scale * np.random.default_rng(2).standard_normal((150, 6))).astype(np.float32)
    assert neighbours(x, x[::-1]) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("shift", [0.0, 0.25, 1e5])
def test_points_on_the_surface(shift):
    """Points in steps of 10 along (6, 8), and others 10 off at a right angle: on the balls of one neighbour exactly."""
    real = shift + np.arange(40.0)[:, None] * np.array([[6.0, 8.0]])
    assert neighbours(real, real + np.array([[8.0, -6.0]]), 1, 1) == (1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("far", [2e3, 1e5])
def test_distances_far_smaller_than_the_features(far):
    """Two tight clusters, far apart: centring alone leaves features thousands of times as large as distances."""
    rng = np.random.default_rng(3)
    side = np.where(np.arange(120) % 2, far, -far)[:, None]
    real, generated = ((side + rng.standard_normal((120, 4))).astype(np.float32) for _ in range(2))
    found = neighbours(real, generated, 3, 5)
    np.testing.assert_allclose(found, expected(real.astype(float), generated.astype(float), 3, 5), atol=1e-12)


def test_one_neighbour_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="no 5 neighbours"):
        neighbours(np.zeros((5, 2)), np.zeros((9, 2)))
