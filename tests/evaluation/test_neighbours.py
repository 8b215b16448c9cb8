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
    dense = d <= radius(real, k_density)[:, None]
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


def test_one_neighbour_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="no 5 neighbours"):
        neighbours(np.zeros((5, 2)), np.zeros((9, 2)))
