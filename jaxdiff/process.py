"""The noise process: breaking images, the posterior of one step back, and the one conversion hub.

With Marginal(alpha, sigma) of jaxdiff.schedules and s < t:

    (1)  x_t = alpha_t x_0 + sigma_t noise                                       add_noise
    (2)  q(x_t | x_s) = N(alpha_ts x_s, sigma_ts^2 I),  alpha_ts = alpha_t/alpha_s,
         sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2                           transition, noise_step
    (3)  q(x_s | x_t, x_0) = N(mean, variance I),  variance = sigma_s^2 sigma_ts^2/sigma_t^2,
         mean = alpha_ts sigma_s^2/sigma_t^2 x_t + alpha_s sigma_ts^2/sigma_t^2 x_0     posterior

What a network puts out is one of six kinds, the rows of `PREDICTIONS`; all go through the hub (x_0, noise):

    noise   noise                       v      alpha noise - sigma x_0      score  -noise/sigma
    x_0     x_0                         flow   noise - x_0
    edm     F with x_0 = c_skip x_t + c_out F   (EDM, table 1), which is
            F = (sigma x_0 - d^2 alpha noise) / (d s),  s^2 = sigma^2 + d^2 alpha^2,  d = EDM_DATA below

A network is called with x_t and t; one of kind "edm" with c_in x_t = x_t/s and c_noise = log(sigma/alpha)/4, so that
what it sees and what it puts out have variance 1 at every noise level, if the data's is d^2 (`network_inputs`).

Accuracy: output and back, in floating point of unit roundoff u (float32: 6e-8), at any log-SNR,

    (4)  alpha |error of x_0| + sigma |error of noise| <= 12 u (alpha |x_0| + sigma |noise|)      every kind
    (5)  each error <= 12 u (|x_0| + |noise|)                                                     v, flow, edm

so a network's rounding is harmless everywhere with v, flow and edm, but "noise" (and "score") leaves x_0 undetermined
where alpha is small, by (4) up to sigma/alpha times u; and "x_0" leaves the noise so where sigma is small.

Sources: Ho et al. 2020 (DDPM), eq. 2-7; Kingma et al. 2021 (VDM), appendix A; Karras et al. 2022 (EDM).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxdiff.schedules import Marginal, Schedule

EDM_DATA = 0.5  # sigma_data, the standard deviation of images in [-1, 1] that EDM assumes


def add_noise(x_0: Float[Array, "*shape"], noise: Float[Array, "*shape"], m: Marginal) -> Float[Array, "*shape"]:
    """x_t = alpha x_0 + sigma noise, eq. (1): any noise level in one step.

    Args:
      x_0: data [batch, ...].
      noise: standard normal, of x_0's shape.
      m: the marginal at t; scalar or [batch].

    Source: Ho et al. 2020 (DDPM), eq. 4.

    >>> add_noise(jnp.ones((1, 2)), jnp.zeros((1, 2)), Marginal(0.5, 1.0)).tolist()
    [[0.5, 0.5]]
    """
    m = m.like(x_0)
    return m.alpha * x_0 + m.sigma * noise


def transition(m_s: Marginal, m_t: Marginal) -> Marginal:
    """q(x_t | x_s) for s <= t as Marginal(alpha_ts, sigma_ts), eq. (2); (1, 0) for s = t.

    In float32 the relative error of sigma_ts^2 is about 2e-7 sigma_t^2/sigma_ts^2: 5e-5 between neighbours of T = 1000
    steps, 6e-4 of T = 10^4. The posterior's mean is not affected by more than rounding.

    >>> m = transition(Marginal(0.8, 0.6), Marginal(0.6, 0.8))
    >>> round(float(m.alpha), 3), round(float(m.sigma), 3)
    (0.75, 0.661)
    """
    no_signal = m_s.alpha == 0  # then s = t = 1 of a schedule with zero terminal SNR
    alpha = jnp.where(no_signal, 1.0, m_t.alpha / jnp.where(no_signal, 1.0, m_s.alpha))
    noisy = m_t.sigma > 0
    kept = jnp.where(noisy, alpha * m_s.sigma / jnp.where(noisy, m_t.sigma, 1.0), 1.0)
    new = (1.0 - kept) * (1.0 + kept)  # a product, since kept can be close to 1; a share, since sigma^2 can underflow
    return Marginal(alpha, m_t.sigma * jnp.where(new > 0, jnp.sqrt(jnp.where(new > 0, new, 1.0)), 0.0))


def noise_step(
    key: jax.Array, x_prev: Float[Array, "*shape"], s: ArrayLike, t: ArrayLike, schedule: Schedule
) -> Float[Array, "*shape"]:
    """One step of the forward chain: x_t ~ q(x_t | x_s), eq. (2).

    With s and t neighbours of a discrete schedule it is sqrt(1 - beta_t) x_s + sqrt(beta_t) noise.

    Args:
      key: a PRNG key.
      x_prev: x_s [batch, ...].
      s: the time of x_prev; scalar or [batch].
      t: the new time, s <= t <= 1.
      schedule: the noise schedule.

    Source: Ho et al. 2020 (DDPM), eq. 2.

    >>> from jaxdiff import schedules
    >>> noise_step(jax.random.key(0), jnp.ones((2, 3)), 0.0, 0.5, schedules.cosine()).shape
    (2, 3)
    """
    return add_noise(x_prev, jax.random.normal(key, x_prev.shape, x_prev.dtype), transition(schedule(s), schedule(t)))


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(mean, variance I), eq. (3)."""

    mean: jax.Array
    variance: jax.Array


def posterior(x_0: Float[Array, "*shape"], x_t: Float[Array, "*shape"], m_s: Marginal, m_t: Marginal) -> Posterior:
    """q(x_s | x_t, x_0), eq. (3); m_s and m_t are scalar or [batch]. Where sigma_t = 0 it is alpha_s x_0.

    >>> p = posterior(jnp.ones((1, 1)), jnp.zeros((1, 1)), Marginal(1.0, 0.0), Marginal(0.6, 0.8))
    >>> float(p.mean[0, 0]), float(p.variance)
    (1.0, 0.0)
    """
    m_s, m_t = m_s.like(x_0), m_t.like(x_0)
    step = transition(m_s, m_t)
    noisy = m_t.sigma > 0
    safe = jnp.where(noisy, m_t.sigma, 1.0)
    shrink, gain = jnp.square(m_s.sigma / safe), jnp.where(noisy, jnp.square(step.sigma / safe), 1.0)
    return Posterior(step.alpha * shrink * x_t + m_s.alpha * gain * x_0, gain * jnp.square(m_s.sigma))


def learned_log_variance(fraction: Float[Array, "*shape"], m_s: Marginal, m_t: Marginal) -> Float[Array, "*shape"]:
    """log variance of a reverse step t -> s between beta-tilde (fraction 0) and beta (1): linear in the logs.

    beta = sigma_ts^2 and beta-tilde = beta sigma_s^2/sigma_t^2. At s = 0, where beta-tilde is 0 and its log -inf,
    beta/2 stands in (others take the second entry's beta-tilde there: the same, if the first two betas are equal).

    Args:
      fraction: of x's shape, as in `Prediction.fraction`.
      m_s: the marginal at s < t; scalar or [batch].
      m_t: the marginal at t.

    Source: Nichol & Dhariwal 2021 (improved DDPM), eq. 15.

    >>> m_s, m_t = Marginal(jnp.array(0.8), jnp.array(0.6)), Marginal(jnp.array(0.6), jnp.array(0.8))
    >>> large, small = jnp.exp(learned_log_variance(jnp.array([1.0, 0.0]), m_s, m_t))
    >>> round(float(large), 4), round(float(small / large), 4)  # sigma_ts^2, (sigma_s/sigma_t)^2
    (0.4375, 0.5625)
    """
    m_s, m_t = m_s.like(fraction), m_t.like(fraction)
    log_beta = 2.0 * jnp.log(transition(m_s, m_t).sigma)
    ratio = jnp.where(m_s.sigma > 0, jnp.square(m_s.sigma / m_t.sigma), 0.5)
    return log_beta + (1.0 - fraction) * jnp.log(ratio)


def to_x0_noise(
    kind: str, output: Float[Array, "*shape"], x_t: Float[Array, "*shape"], m: Marginal
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """A network's output of the given kind -> (x_0, noise), the hub.

    Args:
      kind: one of "noise", "x_0", "v", "flow", "score", "edm".
      output: what the network put out at x_t.
      x_t: the noisy data, of the same shape.
      m: the marginal at t; scalar or [batch]. "noise" and "score" need alpha > 0. Where sigma = 0, "x_0" says
        nothing of the noise, and 0 is returned for it.

    Raises:
      ValueError: unknown kind (the choices are listed).

    Source: Salimans & Ho 2022, appendix D (v); Karras et al. 2022 (EDM), eq. 7.

    >>> x_0, noise = to_x0_noise("v", jnp.array([[-1.0]]), jnp.array([[0.0]]), Marginal(0.6, 0.8))
    >>> round(float(x_0[0, 0]), 6), round(float(noise[0, 0]), 6)
    (0.8, -0.6)
    """
    check_prediction(kind)
    return PREDICTIONS[kind].hub(output, x_t, *m.like(output))


def from_x0_noise(
    kind: str, x_0: Float[Array, "*shape"], noise: Float[Array, "*shape"], m: Marginal
) -> Float[Array, "*shape"]:
    """(x_0, noise) -> what a network of the given kind should put out at x_t = alpha x_0 + sigma noise.

    "score" needs sigma > 0.

    Raises:
      ValueError: unknown kind (the choices are listed).

    >>> from_x0_noise("flow", jnp.array([1.0]), jnp.array([3.0]), Marginal(0.5, 0.5)).tolist()
    [2.0]
    """
    check_prediction(kind)
    return PREDICTIONS[kind].target(x_0, noise, *m.like(x_0))


def network_inputs(
    kind: str, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], m: Marginal
) -> tuple[Float[Array, "batch *shape"], Float[Array, " batch"]]:
    """What a network of the given kind is called with at (x_t, t): the scaled input, and how time is labelled.

    Raises:
      ValueError: unknown kind (the choices are listed).

    Source: Karras et al. 2022 (EDM), eq. 7 and table 1 (c_in, c_noise).

    >>> m = Marginal(jnp.array([1.0]), jnp.array([1.2]))
    >>> x, label = network_inputs("edm", jnp.array([[1.3]]), jnp.array([0.5]), m)
    >>> round(float(x[0, 0]), 6), round(float(label[0]), 6)  # 1.3/sqrt(1.44 + 0.25), log(1.2)/4
    (1.0, 0.04558)
    """
    check_prediction(kind)
    row = PREDICTIONS[kind]
    return (x_t if row.scale is None else x_t / row.scale(*m.like(x_t)).astype(x_t.dtype)), row.label(t, m)


def check_prediction(kind: str) -> None:
    """Raises ValueError unless kind is one of PREDICTIONS."""
    if kind not in PREDICTIONS:
        raise ValueError(f"unknown prediction {kind!r}; choose one of {', '.join(PREDICTIONS)}")


def _safe(x: Array) -> Array:
    """x, and 1 where it is 0 and its quotient is not used."""
    return jnp.where(x > 0, x, 1.0)


def _v(output: Array, x_t: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    scale = jnp.square(alpha) + jnp.square(sigma)
    return (alpha * x_t - sigma * output) / scale, (sigma * x_t + alpha * output) / scale


def _shared(of_noise: Array, of_x_0: Array, alpha: Array, sigma: Array) -> Array:
    """alpha^2 times the weight of the noise loss = sigma^2 times that of the x_0 loss, by whichever is finite."""
    return jnp.where(alpha > sigma, jnp.square(alpha) * of_noise, jnp.square(sigma) * of_x_0)


def _edm_scale(alpha: Array, sigma: Array) -> Array:
    return jnp.sqrt(jnp.square(sigma) + jnp.square(EDM_DATA * alpha))


def _edm(output: Array, x_t: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    scale = jnp.square(sigma) + jnp.square(EDM_DATA * alpha)
    output = EDM_DATA * output / jnp.sqrt(scale)
    return EDM_DATA**2 * alpha * x_t / scale + sigma * output, sigma * x_t / scale - alpha * output


def _c_noise(t: Array, m: Marginal) -> Array:
    """log(sigma/alpha)/4, and finite at both ends."""
    del t
    return jnp.clip(-0.125 * m.log_snr, -20.0, 20.0)


class PredictionKind(NamedTuple):
    """What a network puts out, and what it is called with; alpha and sigma broadcast against x_t.

    Attributes:
      hub: (output, x_t, alpha, sigma) -> (x_0, noise).
      target: (x_0, noise, alpha, sigma) -> the output it should have.
      weight: (weight of the noise loss, of the x_0 loss, alpha, sigma) -> the weight of this output's loss, finite
        where that loss is; see `losses.weightings`.
      scale: (alpha, sigma) -> what x_t is divided by; None: nothing.
      label: (t, m) -> how the time is told.
      needs_signal: whether its hub divides by alpha, so that nothing is known where alpha = 0.
    """

    hub: Callable[..., tuple[Array, Array]]
    target: Callable[..., Array]
    weight: Callable[[Array, Array, Array, Array], Array]
    scale: Callable[[Array, Array], Array] | None = None
    label: Callable[[Array, Marginal], Array] = lambda t, m: t
    needs_signal: bool = False


PREDICTIONS = {
    "noise": PredictionKind(
        lambda o, x, a, s: ((x - s * o) / a, o),
        lambda x_0, noise, a, s: noise,
        lambda of_noise, of_x_0, a, s: of_noise,
        needs_signal=True,
    ),
    "x_0": PredictionKind(
        lambda o, x, a, s: (o, jnp.where(s > 0, (x - a * o) / _safe(s), 0.0)),
        lambda x_0, noise, a, s: x_0,
        lambda of_noise, of_x_0, a, s: of_x_0,
    ),
    "v": PredictionKind(
        _v,
        lambda x_0, noise, a, s: a * noise - s * x_0,
        lambda of_noise, of_x_0, a, s: _shared(of_noise, of_x_0, a, s) / jnp.square(jnp.square(a) + jnp.square(s)),
    ),
    "flow": PredictionKind(
        lambda o, x, a, s: ((x - s * o) / (a + s), (x + a * o) / (a + s)),
        lambda x_0, noise, a, s: noise - x_0,
        lambda of_noise, of_x_0, a, s: _shared(of_noise, of_x_0, a, s) / jnp.square(a + s),
    ),
    "score": PredictionKind(
        lambda o, x, a, s: ((x + s * s * o) / a, -s * o),
        lambda x_0, noise, a, s: -noise / s,
        lambda of_noise, of_x_0, a, s: of_noise * jnp.square(s),
        needs_signal=True,
    ),
    "edm": PredictionKind(
        _edm,
        lambda x_0, noise, a, s: (s * x_0 - EDM_DATA**2 * a * noise) / (EDM_DATA * _edm_scale(a, s)),
        lambda of_noise, of_x_0, a, s: (
            _shared(of_noise, of_x_0, a, s) * EDM_DATA**2 / (jnp.square(s) + jnp.square(EDM_DATA * a))
        ),
        _edm_scale,
        _c_noise,
    ),
}
"""Every kind of prediction: to add one is to add a row."""
