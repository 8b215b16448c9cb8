"""Loss weights by noise level, the same for every parameterisation and finite where the loss is.

At fixed x_t an error of x_0 is an error of noise: |error of noise|^2 = SNR |error of x_0|^2. So one weighting has two
forms, of which either may be infinite at one end; both are written down, and no product 0 * inf is ever taken:

    weight of the noise loss = weight of the x_0 loss / SNR

The loss of v, flow and edm is of size |error of noise| / (alpha g) = |error of x_0| / (sigma g), with g as below.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.process import EDM_DATA, PREDICTIONS, check_prediction
from jaxdiff.schedules import Marginal


class Weights(NamedTuple):
    """One weighting in two forms, [batch] each: what multiplies the noise loss, and SNR times it for the x_0 loss."""

    noise: jax.Array
    x_0: jax.Array


Weighting = Callable[[jax.Array], Weights]  # log_snr [batch] -> Weights


def simple() -> None:
    """1 on the loss of the prediction itself, whatever it is: the plain loss of every paper that names no weighting.

    Source: Ho et al. 2020 (DDPM), eq. 14.

    >>> simple()
    """


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the x_0 loss, min(1, gamma/SNR) on the noise loss, min(SNR, gamma)/(SNR + 1) on the v loss.

    Args:
      gamma: > 0; less weighs low noise less.

    Source: Hang et al. 2023 (min-SNR), eq. 3 and section 3.4.

    >>> min_snr()(jnp.array([-jnp.inf, math.log(10.0)])).noise.tolist()
    [1.0, 0.5]
    """
    top = math.log(_positive("gamma", gamma))
    return lambda log_snr: Weights(jnp.exp(jnp.minimum(0.0, top - log_snr)), jnp.exp(jnp.minimum(log_snr, top)))


def truncated_snr() -> Weighting:
    """max(SNR, 1) on the x_0 loss: the noise loss, but never less than the x_0 loss.

    Source: Salimans & Ho 2022 (progressive distillation), section 4.

    >>> truncated_snr()(jnp.array([-jnp.inf, math.log(4.0)])).x_0.tolist()
    [1.0, 4.0]
    """
    return lambda log_snr: Weights(jnp.exp(jnp.maximum(-log_snr, 0.0)), jnp.exp(jnp.maximum(log_snr, 0.0)))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """1/(k + SNR)^gamma on the noise loss: little where there is little noise.

    Args:
      gamma: >= 0; 0 is the noise loss.
      k: > 0.

    Raises:
      ValueError: gamma or k is out of its range.

    Source: Choi et al. 2022 (P2), eq. 8.

    >>> p2()(jnp.array([0.0])).noise.tolist()
    [0.5]
    """
    _positive("k", k)
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite, >= 0, got {gamma}")

    def weights(log_snr: jax.Array) -> Weights:
        log_noise = -gamma * jnp.logaddexp(math.log(k), log_snr)
        return Weights(jnp.exp(log_noise), jnp.exp(log_noise + log_snr))

    return weights


def sigmoid(bias: float = 0.0) -> Weighting:
    """sigmoid(bias - log_snr) on the noise loss, e^bias sigmoid(log_snr - bias) on the x_0 loss.

    It is meant per unit of log-SNR: draw times evenly in log-SNR (`uniform_log_snr`), as the continuous bound has it.

    Args:
      bias: moves weight towards low noise; SiD2 uses -1 to -3 in pixel space, less at higher resolution.

    Source: Kingma & Gao 2023 (VDM++), section 4; Hoogeboom et al. 2024 (SiD2), section 3.

    >>> sigmoid(1.0)(jnp.array([1.0])).noise.tolist()
    [0.5]
    """
    if not abs(bias) <= 80:
        raise ValueError(f"bias must lie in [-80, 80] (its exponential is a float32), got {bias}")
    return lambda log_snr: Weights(jax.nn.sigmoid(bias - log_snr), math.exp(bias) * jax.nn.sigmoid(log_snr - bias))


def edm(data_std: float = EDM_DATA) -> Weighting:
    """SNR + 1/data_std^2 on the x_0 loss, which is 1 on the loss of an "edm" network.

    With data_std = 1 it is SNR + 1: on a variance-preserving schedule, 1 on the v loss.

    Args:
      data_std: standard deviation of the data, > 0.

    Source: Karras et al. 2022 (EDM), table 1; to be used with `log_normal` times.

    >>> edm(1.0)(jnp.array([0.0])).noise.tolist()
    [2.0]
    """
    floor = 1.0 / _positive("data_std", data_std) ** 2
    return lambda log_snr: Weights(1.0 + floor * jnp.exp(-log_snr), jnp.exp(log_snr) + floor)


def from_log_snr(weight: Callable[[jax.Array], jax.Array]) -> Weighting:
    """The weighting of a function alone: log-SNR -> what multiplies the noise loss.

    Args:
      weight: JAX in, JAX out, elementwise; finite, >= 0. It sees log-SNR in [-80, 80].

    >>> float(from_log_snr(lambda log_snr: jax.nn.sigmoid(2.0 - log_snr))(jnp.array([2.0])).noise[0])
    0.5
    """

    def weights(log_snr: jax.Array) -> Weights:
        log_snr = jnp.clip(log_snr, -80.0, 80.0)  # beyond, SNR is no float32
        return Weights(weight(log_snr), weight(log_snr) * jnp.exp(log_snr))

    return weights


class Uncertainty(NamedTuple):
    """A weighting with parameters of its own: loss/exp(u) + u, which is least where u = log E[loss | noise level].

    So every noise level has the same pull on the network, whatever the losses there are.

    Attributes:
      init: () -> parameters, under which u = 0.
      log_loss: (parameters, log_snr [batch]) -> u [batch].
    """

    init: Callable[[], jax.Array]
    log_loss: Callable[[jax.Array, jax.Array], jax.Array]


def uncertainty(features: int = 128) -> Uncertainty:
    """u = w . sqrt(2/n) cos(2 pi (f c + phase)), c = -log_snr/8 = log(sigma/alpha)/4; f normal, phases uniform, fixed.

    Args:
      features: n, >= 1.

    Source: Karras et al. 2024 (EDM2), appendix A and eq. 14 (there w has norm 1 and begins at random).

    >>> learned = uncertainty()
    >>> learned.log_loss(learned.init(), jnp.array([0.0, jnp.inf])).tolist()
    [0.0, 0.0]
    """
    generator = np.random.Generator(np.random.Philox(0))
    frequency = (2 * np.pi * generator.standard_normal(features)).astype(np.float32)
    phase = (2 * np.pi * generator.random(features)).astype(np.float32)

    def log_loss(weights: jax.Array, log_snr: jax.Array) -> jax.Array:
        c = -jnp.clip(log_snr, -80.0, 80.0) / 8
        return math.sqrt(2 / features) * jnp.cos(c[:, None] * frequency[None] + phase[None]) @ weights

    return Uncertainty(lambda: jnp.zeros(features), log_loss)


def output_weight(kind: str, weighting: Weighting, m: Marginal) -> jax.Array:
    """What multiplies |error of an output|^2, for an output of the given kind at marginal m [batch].

    Raises:
      ValueError: unknown kind (the choices are listed).

    >>> m = Marginal(jnp.array([0.0]), jnp.array([1.0]))  # nothing left of x_0
    >>> [float(output_weight(kind, min_snr(), m)[0]) for kind in ("noise", "x_0", "v")]
    [1.0, 0.0, 0.0]
    """
    check_prediction(kind)
    weights = weighting(m.log_snr)
    return PREDICTIONS[kind].weight(weights.noise, weights.x_0, m.alpha, m.sigma)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value
