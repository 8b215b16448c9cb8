"""The sampler contract and the one loop that runs every sampler.

A sampler is two pure functions, as an Optax transform is. It sees only `denoise(x_t, t) -> Prediction`, and goes
from time t to time s by one step. Memory does not grow with the number of steps, unless a trajectory is asked for.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxdiff.denoisers import Denoiser
from jaxdiff.keys import typed
from jaxdiff.schedules import SCHEDULES, Schedule


class Sampler(NamedTuple):
    """A sampling method.

    Attributes:
      init: x_T -> state, any pytree of arrays; () where a step needs no past.
      step: (keys [batch], denoise, x, state, t, s, *, schedule) -> (x at s, state). t and s are scalars.
      nfe: network evaluations a step.
    """

    init: Callable[[jax.Array], Any]
    step: Callable[..., tuple[jax.Array, Any]]
    nfe: int = 1

    def __repr__(self) -> str:
        name = getattr(self.step, "__qualname__", str(self.step)).partition(".")[0]
        return f"<Sampler {name}, {self.nfe} evaluation{'s' * (self.nfe > 1)} a step>"


class Trajectory(NamedTuple):
    """The walk of N steps: x_t [N + 1, batch, ...] from x_T on, and the x_0 estimate at each t, [N, batch, ...]."""

    x_t: jax.Array
    x_0: jax.Array


def sample_keys(key: jax.Array, num: int, start: ArrayLike = 0) -> jax.Array:
    """One key per sample, [num]: sample i depends on (key, start + i) alone, not on how many are drawn.

    >>> all_keys, one = sample_keys(jax.random.key(0), 8), sample_keys(jax.random.key(0), 1, start=5)
    >>> bool(all_keys[5] == one[0])
    True
    """
    key = typed(key)
    if key.ndim:
        raise ValueError(f"sample_keys makes the keys of samples from one key; got {len(key)} of them")
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(start + jnp.arange(num))


def normal_like(keys: jax.Array, x: jax.Array) -> jax.Array:
    """Standard normal noise of x's shape [batch, ...], example i from keys[i] alone.

    It is kept apart from what uses it: XLA would draw it anew in each place.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    return jax.lax.optimization_barrier(noise)


def check_eta(eta: float | jax.Array) -> None:
    """Raises ValueError unless eta lies in [0, 1]; a traced value is taken as it is."""
    if not isinstance(eta, Tracer) and not 0 <= float(eta) <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")


def sample(
    keys: jax.Array,
    denoise: Denoiser,
    sampler: Sampler | str,
    *,
    times: ArrayLike,
    schedule: Schedule | str,
    shape: Sequence[int] = (),
    x_T: Float[Array, "batch ..."] | None = None,
    trajectory: bool = False,
) -> Any:
    """Runs a sampler from times[0] to times[-1] and returns x there.

    Example i depends on keys[i] alone. Steps between equal times are skipped without calling the network, so
    times padded with zeros (`time_grid(..., max_steps=...)`) serve any number of steps with one compilation, if the
    call is inside one `jax.jit` that takes times, keys, eta and guidance as arguments.

    Args:
      keys: one key per sample, [batch]; see `sample_keys`.
      denoise: (x_t, t) -> Prediction.
      sampler: a `Sampler`, or the name of one.
      times: [N + 1], descending (ascending for inversion), in [0, 1].
      schedule: the noise schedule, or the name of one.
      shape: of one sample; not needed if x_T is given.
      x_T: x at times[0], [batch, ...]; default: sigma noise, from the keys. Computed in float32 at least.
      trajectory: also return the walk; its memory grows with N, and times must not be padded.

    Returns:
      x [batch, ...], or (x, Trajectory).

    Raises:
      ValueError: times are not monotone in [0, 1], or ascend without x_T; keys are not one per sample.

    >>> from jaxdiff import samplers, schedules, times
    >>> schedule = schedules.cosine()
    >>> point = lambda x, t: to_point(x, schedule(t))  # the exact denoiser of data that is always 0.5
    >>> to_point = lambda x, m: Prediction(jnp.full_like(x, 0.5), (x - 0.5 * m.alpha) / m.sigma)
    >>> from jaxdiff.denoisers import Prediction
    >>> grid = times.time_grid(schedule, 3)
    >>> x = sample(sample_keys(jax.random.key(0), 2), point, samplers.ddim(), shape=(1,), times=grid, schedule=schedule)
    >>> x.tolist()
    [[0.5], [0.5]]
    """
    from jaxdiff.samplers import SAMPLERS  # made of this module

    sampler, schedule, keys = SAMPLERS.made(sampler), SCHEDULES.made(schedule), typed(keys)
    _check_times(times, padded=not trajectory, may_ascend=x_T is not None)
    if keys.ndim != 1:
        what = "one key" if keys.ndim == 0 else f"an array of shape {keys.shape}"
        raise ValueError(f"keys must be one per sample, as sample_keys(key, num) makes them; got {what}")
    if x_T is None and len(shape) == 4 and shape[0] == len(keys):
        message = f"shape {tuple(shape)} is that of one sample; for {len(keys)} images it is {tuple(shape[1:])}"
        warnings.warn(message, stacklevel=2)
    times = jnp.asarray(times)
    start_keys, step_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    if x_T is None:
        x_T = schedule(times[0]).sigma * normal_like(start_keys, jnp.zeros((keys.shape[0], *shape)))
    if x_T.shape[0] != keys.shape[0]:
        raise ValueError(f"one key per sample: got {keys.shape[0]} keys for {x_T.shape[0]} samples")
    x_T = x_T.astype(jnp.promote_types(x_T.dtype, jnp.float32))

    def own(x, t):  # in x's type, whatever the denoiser's: under jax_enable_x64 a schedule is float64
        return jax.tree.map(lambda a: a.astype(x.dtype), denoise(x, t))

    def body(carry, inputs):
        index, t, s = inputs

        def step(carry):
            x, state = carry
            now = jax.vmap(lambda key: jax.random.fold_in(key, index))(step_keys)
            x_s, state = sampler.step(now, own, x, state, t, s, schedule=schedule)
            return x_s.astype(x.dtype), state

        if trajectory:  # the step's first call and this one have the same input: under jit they are one
            return step(carry), (carry[0], own(carry[0], t).x_0)
        return jax.lax.cond(t != s, step, lambda carry: carry, carry), None

    steps = jnp.arange(len(times) - 1)
    (x, _), walk = jax.lax.scan(body, (x_T, sampler.init(x_T)), (steps, times[:-1], times[1:]))
    if walk is None:
        return x
    return x, Trajectory(jnp.concatenate([walk[0], x[None]]), walk[1])


def _check_times(times: ArrayLike, padded: bool, may_ascend: bool) -> None:
    """On the host, where the values are known: under jit out-of-range times would clamp silently."""
    if isinstance(times, Tracer):
        return
    times = np.asarray(times)
    if times.ndim != 1 or len(times) < 2 or not (times.min() >= 0 and times.max() <= 1):
        raise ValueError("times must be a list of 2 or more numbers in [0, 1]")
    steps = np.trim_zeros(np.diff(times), "b") if padded else np.diff(times)
    if np.all(steps > 0) and not may_ascend:
        raise ValueError("times ascend, which is inversion, of given x_T; samples take them descending: times[::-1]")
    if not (np.all(steps < 0) or np.all(steps > 0)):
        raise ValueError(
            "times must be strictly descending (ascending: inversion), padding at the end aside (none with trajectory)"
        )
