"""Which times to train at.

A time sampling is a quantile function: it turns u in (0, 1) into a time. So it goes with any source of u: one
key an example (`uniforms`), or evenly spread over the global batch (`stratified`), which lowers the variance of the
mean loss. Loss-aware sampling keeps a state, and is a triple of pure functions.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int, Key

from jaxdiff.schedules import Schedule

TimeSampling = Callable[[jax.Array, Schedule], jax.Array]  # (u [batch], schedule) -> t [batch]
_FIRST = 1e-5  # the least time of a continuous schedule: never t = 0
_HALF = 2.0**-24  # half the spacing of float32 uniforms, so that u is never 0 or 1


def uniforms(keys: Key[Array, " batch"]) -> Float[Array, " batch"]:
    """One u in (0, 1) per key.

    >>> uniforms(jax.random.split(jax.random.key(0), 3)).shape
    (3,)
    """
    return jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(keys) + _HALF


def stratified(key: Key[Array, ""], rows: Int[Array, " batch"], num_rows: int) -> Float[Array, " batch"]:
    """u = offset + row / num_rows (mod 1), one random offset for all: evenly spread over the batch, each u uniform.

    Every device and host computes its own rows from the same key, so the result does not depend on their number.

    Args:
      key: the step's key, the same for all rows.
      rows: each example's index in the global batch, in 0..num_rows - 1.
      num_rows: size of the global batch.

    Source: Kingma et al. 2021 (VDM), appendix I.1 (low-discrepancy sampler).

    >>> u = stratified(jax.random.key(0), jnp.arange(4), 4)
    >>> sorted(jnp.floor(4 * u).tolist())
    [0.0, 1.0, 2.0, 3.0]
    """
    u = jax.random.uniform(key, dtype=jnp.float32) + rows.astype(jnp.float32) / num_rows
    return jnp.clip(u - jnp.floor(u), _HALF, 1.0 - _HALF)


def uniform(u: Float[Array, " batch"], schedule: Schedule) -> Float[Array, " batch"]:
    """Uniform on k/T, k = 1..T (discrete), or on [1e-5, 1] (continuous). Never t = 0.

    Source: Ho et al. 2020 (DDPM), algorithm 1.

    >>> from jaxdiff import schedules
    >>> uniform(jnp.array([0.1, 0.9]), schedules.from_betas([0.1, 0.2])).tolist()
    [0.5, 1.0]
    """
    if schedule.num_steps is None:
        return _FIRST + (1.0 - _FIRST) * u
    return _entry(jnp.floor(u * schedule.num_steps) + 1, schedule.num_steps)


class Stratified(NamedTuple):
    """Times of a whole batch, evenly spread over the quantiles of another time sampling; see `stratified`."""

    base: TimeSampling


def uniform_log_snr(log_snr_min: float = -15.0, log_snr_max: float = 15.0) -> TimeSampling:
    """Uniform in log-SNR over the given range, or over what the schedule reaches of it.

    Source: Kingma et al. 2021 (VDM), eq. 17: the continuous bound is an integral over log-SNR.

    >>> from jaxdiff import schedules
    >>> round(float(uniform_log_snr()(jnp.array([0.5]), schedules.flow())[0]), 6)  # log-SNR 0
    0.5
    """
    if not log_snr_min < log_snr_max:
        raise ValueError(f"log_snr_min must be less than log_snr_max, got {log_snr_min} and {log_snr_max}")

    def times(u: jax.Array, schedule: Schedule) -> jax.Array:
        ends = np.array([_FIRST if schedule.num_steps is None else 1 / schedule.num_steps, 1.0])
        high, low = jnp.clip(schedule(ends).log_snr, log_snr_min, log_snr_max)
        return _on_schedule(schedule.time_of_log_snr(high + (low - high) * u), schedule)

    return times


def log_normal(mean: float = -1.2, std: float = 1.2) -> TimeSampling:
    """log(sigma/alpha) ~ N(mean, std^2), limited to what the schedule reaches.

    On the plain flow schedule this is SD3's logit-normal time as well: there log(sigma/alpha) = logit(t).

    Args:
      mean: EDM's P_mean.
      std: EDM's P_std, > 0.

    Source: Karras et al. 2022 (EDM), table 1.

    >>> from jaxdiff import schedules
    >>> round(float(log_normal()(jnp.array([0.5]), schedules.edm())[0]), 4)  # sigma = exp(-1.2)
    0.4505
    """
    _check_normal(mean, std)
    return lambda u, schedule: _on_schedule(schedule.time_of_log_snr(-2.0 * (mean + std * ndtri(u))), schedule)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeSampling:
    """logit(t) ~ N(mean, std^2), whatever the schedule makes of t (a shift, for one).

    Args:
      mean: > 0 moves times towards noise.
      std: > 0.

    Source: Esser et al. 2024 (SD3), eq. 19.

    >>> from jaxdiff import schedules
    >>> logit_normal()(jnp.array([0.5]), schedules.flow(3.0)).tolist()
    [0.5]
    """
    _check_normal(mean, std)
    return lambda u, schedule: _on_schedule(jax.nn.sigmoid(mean + std * ndtri(u)), schedule)


class LossHistory(NamedTuple):
    """The last losses of each entry of a discrete schedule: losses float32 [T, history], counts int32 [T]."""

    losses: jax.Array
    counts: jax.Array


class LossAware(NamedTuple):
    """Time sampling that follows the loss.

    Attributes:
      init: () -> LossHistory.
      sample: (LossHistory, keys [batch]) -> (t [batch], weight [batch]). The mean of weight * loss estimates what
        the plain mean over uniform times does.
      update: (LossHistory, t [batch], losses [batch]) -> LossHistory; losses unweighted, those of the whole global
        batch, so that every device keeps the same history. Losses that are not finite are left out.
    """

    init: Callable[[], LossHistory]
    sample: Callable[[LossHistory, jax.Array], tuple[jax.Array, jax.Array]]
    update: Callable[[LossHistory, jax.Array, jax.Array], LossHistory]


def loss_aware(num_steps: int, history: int = 10, uniform_share: float = 0.001) -> LossAware:
    """p_k proportional to the root mean square of the last losses at entry k, once every entry has enough of them.

    Args:
      num_steps: T of the schedule.
      history: losses kept of each entry, >= 1.
      uniform_share: of the samples that are drawn uniformly, in (0, 1]; it bounds the weights by its inverse.

    Returns:
      Pure functions; use with `denoising_loss(..., t=t)`.

    Raises:
      ValueError: an argument is out of its range.

    Source: Nichol & Dhariwal 2021 (improved DDPM), eq. 18.

    >>> sampler = loss_aware(2, history=1, uniform_share=0.5)
    >>> state = sampler.update(sampler.init(), jnp.array([0.5, 1.0]), jnp.array([3.0, 1.0]))
    >>> t, weight = sampler.sample(state, jax.random.split(jax.random.key(0), 1))
    >>> bool(weight[0] == (0.8 if t[0] == 0.5 else 1.3333334))  # p = 5/8, 3/8
    True
    """
    if num_steps < 1 or history < 1 or not 0 < uniform_share <= 1:
        raise ValueError(
            "loss_aware needs num_steps >= 1, history >= 1 and uniform_share in (0, 1], "
            f"got {num_steps}, {history}, {uniform_share}"
        )

    def init() -> LossHistory:
        return LossHistory(jnp.zeros((num_steps, history)), jnp.zeros((num_steps,), jnp.int32))

    def sample(state: LossHistory, keys: Key[Array, " batch"]) -> tuple[jax.Array, jax.Array]:
        size = jnp.sqrt(jnp.mean(jnp.square(state.losses), axis=1))
        known = jnp.all(state.counts >= history) & (jnp.sum(size) > 0)
        share = jnp.where(known, size / jnp.where(known, jnp.sum(size), 1.0), 1.0 / num_steps)
        p = (1.0 - uniform_share) * share + uniform_share / num_steps
        index = jax.vmap(lambda key: jax.random.categorical(key, jnp.log(p)))(keys)
        return _entry(index + 1, num_steps), 1.0 / (num_steps * jnp.take(p, index))

    def update(state: LossHistory, t: jax.Array, losses: jax.Array) -> LossHistory:
        k, good = jnp.round(t * num_steps).astype(jnp.int32) - 1, jnp.isfinite(losses)
        same = (k[:, None] == k[None]) & good[None]  # all at once: one after another a batch takes too long
        before, after = jnp.sum(jnp.tril(same, -1), axis=1), jnp.sum(jnp.triu(same, 1), axis=1)
        place = (state.counts[k] + before) % history
        row = jnp.where(good & (after < history), k, num_steps)  # beyond the table: left out
        kept = state.losses.at[row, place].set(losses.astype(state.losses.dtype), mode="drop")
        return LossHistory(kept, state.counts.at[k].add(good.astype(jnp.int32)))

    return LossAware(init, sample, update)


def _entry(k: jax.Array, num_steps: int) -> jax.Array:
    """The time k/T, k in 1..T, looked up: bit for bit those of the grids that samplers use."""
    times = jnp.asarray(np.arange(1, num_steps + 1) / num_steps, jnp.result_type(float))
    return jnp.take(times, k.astype(jnp.int32) - 1, mode="clip")


def _on_schedule(t: jax.Array, schedule: Schedule) -> jax.Array:
    """The nearest time that a network is trained at."""
    if schedule.num_steps is None:
        return jnp.clip(t, _FIRST, 1.0)
    return _entry(jnp.round(t * schedule.num_steps), schedule.num_steps)


def _check_normal(mean: float, std: float) -> None:
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    if not math.isfinite(mean):
        raise ValueError(f"mean must be finite, got {mean}")
