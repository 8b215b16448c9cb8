"""Inception score against SciPy's entropies, and its ends."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from jaxdiff.evaluation import inception_score


def score(batches):
    sums = inception_score.init(batches[0].shape[1])
    for logits in batches:
        sums = inception_score.add(sums, jnp.asarray(logits, jnp.float32), jnp.ones(len(logits)))
    return inception_score.finish(sums)


def test_against_scipy_in_batches():
    logits = 3.0 * np.random.default_rng(0).standard_normal((60, 7))
    p = softmax(logits, axis=1)
    expected = np.exp(np.mean([entropy(row, p.mean(axis=0)) for row in p]))
    assert score([logits[:25], logits[25:]]) == pytest.approx(expected, rel=1e-5)


def test_ends():
    """Sure and of one class, or never sure: 1. Sure and evenly spread: the number of classes."""
    assert score([np.tile([90.0, 0.0, 0.0], (5, 1))]) == pytest.approx(1.0, abs=1e-6)
    assert score([np.zeros((5, 3))]) == pytest.approx(1.0, abs=1e-6)
    assert score([90.0 * np.eye(3)]) == pytest.approx(3.0, rel=1e-6)


def test_padding_does_not_count():
    sums = inception_score.init(2)
    sums = inception_score.add(sums, 90.0 * jnp.eye(2)[jnp.array([0, 1, 0])], jnp.array([1.0, 1.0, 0.0]))
    assert inception_score.finish(sums) == pytest.approx(2.0, rel=1e-6)
