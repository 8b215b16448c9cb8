"""Inception score, streamed: exp of the mean KL(p(y|x) || p(y)) = H(p(y)) - mean H(p(y|x)), of any classifier.

Source: Salimans et al. 2016 (improved techniques for GANs), section 4. One split, all samples: with the customary ten
it is lower, as each split estimates p(y) from a tenth.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.evaluation.moments import Sum


class ClassSums(NamedTuple):
    """What is kept: sums over images of p(y|x) [classes], of its entropy, and their count."""

    probabilities: Sum
    entropy: Sum
    count: Sum


def init(classes: int) -> ClassSums:
    """No images yet."""
    zero = jnp.zeros(())
    return ClassSums(Sum(jnp.zeros(classes), jnp.zeros(classes)), Sum(zero, zero), Sum(zero, zero))


def add(sums: ClassSums, logits: Float[Array, "batch classes"], weight: Float[Array, " batch"]) -> ClassSums:
    """The sums with a batch added; weight is 1, or 0 for padding."""
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p) * weight[:, None]
    return ClassSums(
        sums.probabilities.add(jnp.sum(p, axis=0)),
        sums.entropy.add(-jnp.sum(p * log_p)),
        sums.count.add(jnp.sum(weight)),
    )


def finish(sums: ClassSums) -> float:
    """The score, between 1 and the number of classes.

    >>> sure = 99.0 * jnp.eye(4)  # four images, a class each, no doubt
    >>> round(finish(add(init(4), sure, jnp.ones(4))), 6)
    4.0
    """
    n = sums.count.float64()
    mean = sums.probabilities.float64() / n
    entropy = -np.sum(np.where(mean > 0, mean * np.log(np.where(mean > 0, mean, 1.0)), 0.0))
    return math.exp(entropy - float(sums.entropy.float64()) / float(n))
