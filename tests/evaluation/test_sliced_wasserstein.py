"""Sliced Wasserstein distance against SciPy's transport and the closed form of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxdiff.evaluation.sliced_wasserstein import directions, project, sliced_wasserstein


def test_one_direction_is_optimal_transport():
    """In one dimension W_2 is the cheapest assignment, which SciPy finds without sorting."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 1)), 2.0 * rng.standard_normal((30, 1)) + 1.0
    cost = (x - y.T) ** 2
    rows, columns = linear_sum_assignment(cost)
    assert sliced_wasserstein(x, y) == pytest.approx(np.sqrt(cost[rows, columns].mean()), rel=1e-12)


def test_gaussians():
    """N(m, s^2 I) and N(0, I) in d dimensions: mean over u of (m.u)^2 + (s - 1)^2 = |m|^2/d + (s - 1)^2."""
    d, shift, scale = 6, 1.5, 2.0
    keys = jax.random.split(jax.random.key(0), 3)
    u = directions(keys[0], d, 400)
    x = project(shift + scale * jax.random.normal(keys[1], (20_000, 2, 3)), u)
    y = project(jax.random.normal(keys[2], (20_000, 2, 3)), u)
    expected = np.sqrt(shift**2 + (scale - 1) ** 2)
    assert sliced_wasserstein(np.asarray(x), np.asarray(y)) == pytest.approx(expected, rel=0.03)


def test_moving_every_sample_by_a_vector_costs_its_mean_projection():
    u = directions(jax.random.key(1), 4, 50)
    x = jax.random.normal(jax.random.key(2), (100, 4))
    move = jnp.array([[1.0, 2.0, 0.0, -1.0]])
    found = sliced_wasserstein(np.asarray(project(x, u)), np.asarray(project(x + move, u)))
    assert found == pytest.approx(float(jnp.sqrt(jnp.mean((move @ u) ** 2))), rel=1e-5)


def test_sets_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="same size"):
        sliced_wasserstein(np.zeros((3, 2)), np.zeros((4, 2)))
