"""Kernel distance against scikit-learn's kernel, and its unbiasedness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm as normal
from scipy.stats import t as student
from sklearn.metrics.pairwise import polynomial_kernel

from jaxdiff.evaluation import kernel_distance
from jaxdiff.evaluation.kernel import block_mmd


def expected_mmd(x, y):
    """Eq. (1) with scikit-learn's kernel (its defaults are KID's: degree 3, gamma 1/d, coef0 1), in float64."""
    m = len(x)
    xx, yy, xy = polynomial_kernel(x), polynomial_kernel(y), polynomial_kernel(x, y)
    return (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean()


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 7)) + 1.0, 1.5 * rng.standard_normal((50, 7))
    found = float(block_mmd(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)))
    assert found == pytest.approx(expected_mmd(x, y), rel=1e-4)


def test_mean_over_blocks_and_their_spread():
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal((67, 3)).astype(np.float32) for _ in range(2))
    found = kernel_distance(x, y + 1.0, block=20)
    blocks = [expected_mmd(x[i : i + 20], y[i : i + 20] + 1.0) for i in (0, 20, 40)]
    assert found.n == 60
    assert found.value == pytest.approx(np.mean(blocks), rel=1e-4)
    few = student.ppf(0.975, 2) / normal.ppf(0.975)
    assert found.standard_error == pytest.approx(few * np.std(blocks, ddof=1) / np.sqrt(3), rel=1e-4)


@pytest.mark.parametrize("blocks", [2, 3, 10])
def test_the_error_bar_covers_what_it_says_with_few_blocks_too(blocks):
    """Two laws whose distance is known from many draws: 1.96 errors cover it in 95 % of 400 sets, to 4 of theirs."""
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 400, blocks * 20, 3)).astype(np.float32)
    found = [kernel_distance(a, b + 0.5, block=20) for a, b in zip(x, y, strict=True)]
    truth = np.mean([distance.value for distance in found])
    covered = np.mean([abs(distance.value - truth) <= 1.96 * distance.standard_error for distance in found])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 400)


def test_unbiased_at_tiny_blocks():
    """Two sets of one law: the mean of 20,000 blocks of 4 is 0 within 4 standard errors. With i = j it would not be."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, y = (jax.random.normal(key, (20_000, 4, 2)) for key in keys)
    values = np.asarray(jax.jit(jax.vmap(block_mmd))(x, y))
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    assert error < 0.1  # with i = j it would be off by 2 (E k(x, x) - E k(x, y))/4, more than 2


def test_known_value():
    """x = 0, y = 1 in d = 1: 1 + 8 - 2, whatever the size."""
    assert kernel_distance(np.zeros((8, 1), np.float32), np.ones((8, 1), np.float32), block=4).value == 7.0


def test_too_few_for_an_error_are_refused():
    with pytest.raises(ValueError, match="2 blocks of 10"):
        kernel_distance(np.zeros((19, 2), np.float32), np.zeros((40, 2), np.float32), block=10)
