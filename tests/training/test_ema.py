"""The moving average against its definition."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.training import ema


@pytest.mark.parametrize(("step", "decay"), [(0, 1 / 10), (8, 9 / 18), (80, 81 / 90), (899, 0.99), (10**6, 0.99)])
def test_the_decay_warms_up_to_its_limit(step, decay):
    np.testing.assert_allclose(ema.decay_at(jnp.int32(step), 0.99), decay, rtol=1e-6)


def test_the_average_is_the_weighted_sum_of_all_parameters_seen():
    seen = np.random.default_rng(0).standard_normal(50)
    average, weights = jnp.asarray(0.5), [1.0]
    for step, value in enumerate(seen):
        average = ema.update(average, jnp.asarray(value, jnp.float32), jnp.int32(step), 0.9)
        d = min(0.9, (1 + step) / (10 + step))
        weights = [w * d for w in weights] + [1 - d]
    assert abs(sum(weights) - 1) < 1e-12
    np.testing.assert_allclose(average, np.dot(weights, [0.5, *seen]), atol=1e-6)


def test_equal_parameters_change_no_bit():
    params = {"w": jnp.asarray(np.random.default_rng(0).standard_normal(1000), jnp.float32)}
    result = ema.update(params, params, 3, 0.999)
    np.testing.assert_array_equal(result["w"], params["w"])
