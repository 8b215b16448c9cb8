"""The probability-flow ODE through diffrax: adaptive solvers, and log-likelihoods. Needs the extra `jaxdiff[ode]`.

In the angle phi = atan(sigma/alpha), and with y = x_t / sqrt(alpha^2 + sigma^2) = cos(phi) x_0 + sin(phi) noise, all
schedules are one; and the flow has no singularity at either end, zero terminal signal included:

    (1)  dy/dphi = cos(phi) noise(x_t, t) - sin(phi) x_0(x_t, t)
    (2)  d log p(y) / dphi = -div (dy/dphi)

Every example is solved by itself, with its own step sizes, so that the batch it is in changes a result by rounding only
(which may change a step size: within the tolerance).

Sources: Song et al. 2021 (score SDE), section 4.3 and appendix D.2; Chen et al. 2018 (neural ODE), theorem 1;
Grathwohl et al. 2019 (FFJORD), eq. 7-8.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxdiff.denoisers import Denoiser
from jaxdiff.schedules import Schedule
from jaxdiff.times import clean_time


class Solution(NamedTuple):
    """Where the flow leads.

    Attributes:
      x: [batch, ...] at the time asked for.
      steps: int32 [batch], steps of the solver, rejected ones included (Tsit5 calls the network 6 times in each).
    """

    x: jax.Array
    steps: jax.Array


class Likelihood(NamedTuple):
    """log p(x_0) in nats, [batch]; the noise x_T [batch, ...] that x_0 comes from; steps int32 [batch]."""

    log_prob: jax.Array
    x_T: jax.Array
    steps: jax.Array


def solve(
    denoise: Denoiser,
    x: Float[Array, "batch *shape"],
    *,
    schedule: Schedule,
    t: float = 1.0,
    s: float = 0.0,
    rtol: float | Array = 1e-5,
    atol: float | Array = 1e-5,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 4096,
) -> Solution:
    """Follows the flow from x at time t to time s: s < t samples, s > t encodes.

    Args:
      denoise: (x_t, t) -> Prediction, at any t.
      x: where to start, at time t; for t = 1 `schedule(1.0).sigma` times normal noise.
      schedule: continuous; `schedules.interpolate` makes a discrete one so.
      t: time of x.
      s: the time to go to.
      rtol: relative tolerance of a step.
      atol: absolute tolerance of a step.
      solver: of diffrax, for example `diffrax.Dopri5()`; default Tsit5.
      max_steps: more raise an error.

    Raises:
      ValueError: the schedule is discrete, or t or s outside [0, 1].

    >>> from jaxdiff import schedules
    >>> from jaxdiff.denoisers import Prediction
    >>> schedule = schedules.continuous_vp()
    >>> normal = lambda x, t: Prediction(x * schedule(t).alpha[:, None], x * schedule(t).sigma[:, None])
    >>> solve(normal, jnp.array([[1.0]]), schedule=schedule).x.round(3).tolist()  # N(0, 1) stays where it is
    [[1.0]]
    """
    velocity = _velocity(denoise, schedule)
    (start, scale), (end, final) = _place(schedule, t), _place(schedule, s)

    def one(x: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Int[Array, ""]]:
        y, steps = _integrate(velocity, x / scale, start, end, solver, rtol, atol, max_steps)
        return y * final, steps

    return Solution(*jax.vmap(one)(x))


def log_likelihood(
    denoise: Denoiser,
    x_0: Float[Array, "batch *shape"],
    *,
    schedule: Schedule,
    keys: Key[Array, " batch"] | None = None,
    t_min: float | None = None,
    rtol: float | Array = 1e-5,
    atol: float | Array = 1e-5,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 4096,
) -> Likelihood:
    """log p(x_0) of the model whose samples are the flow of N(0, sigma_T^2 I), by eq. (2).

    Args:
      denoise: (x_t, t) -> Prediction, at any t.
      x_0: data [batch, ...]; integers need uniform noise of one level added first.
      schedule: continuous; `schedules.interpolate` makes a discrete one so.
      keys: one per example, for Hutchinson's estimate of the divergence with one random sign an entry: one network
        derivative a step, unbiased. None: the exact divergence, one derivative for each dimension of an example.
      t_min: where x_0 is put on the flow, >= 0: the density is that of data with so much noise. Networks are not
        trained at 0. Default: where sigma/alpha = 0.002, see `jaxdiff.times.clean_time`.
      rtol: as in `solve`.
      atol: as in `solve`.
      solver: as in `solve`.
      max_steps: as in `solve`.

    Raises:
      ValueError: the schedule is discrete, or t_min outside [0, 1).

    >>> from jaxdiff import schedules
    >>> from jaxdiff.denoisers import Prediction
    >>> schedule = schedules.continuous_vp()
    >>> normal = lambda x, t: Prediction(x * schedule(t).alpha[:, None], x * schedule(t).sigma[:, None])
    >>> log_prob = log_likelihood(normal, jnp.array([[0.0]]), schedule=schedule).log_prob
    >>> round(float(log_prob[0]), 3)  # -log(2 pi)/2
    -0.919
    """
    velocity = _velocity(denoise, schedule)
    t_min = clean_time(schedule) if t_min is None else t_min
    if not 0 <= t_min < 1:
        raise ValueError(f"t_min must lie in [0, 1), got {t_min}")
    (start, scale), (end, final) = _place(schedule, t_min), _place(schedule, 1.0)
    signs = None if keys is None else jax.vmap(lambda key: jax.random.rademacher(key, x_0.shape[1:], x_0.dtype))(keys)

    def one(
        x: Float[Array, "*shape"], sign: Float[Array, "*shape"] | None
    ) -> tuple[Float[Array, ""], Float[Array, "*shape"], Int[Array, ""]]:
        def extended(
            phi: Float[Array, ""], state: tuple[Float[Array, "*shape"], Float[Array, ""]]
        ) -> tuple[Float[Array, "*shape"], Float[Array, ""]]:
            return _with_divergence(lambda y: velocity(phi, y), state[0], sign)

        initial = x / scale, jnp.zeros((), x.dtype)
        (y_T, divergence), steps = _integrate(extended, initial, start, end, solver, rtol, atol, max_steps)
        prior = jnp.sum(jax.scipy.stats.norm.logpdf(y_T, 0.0, jnp.sin(end)))
        return prior + divergence - x.size * jnp.log(scale), y_T * final, steps

    return Likelihood(*jax.vmap(one)(x_0, signs))


def _velocity(
    denoise: Denoiser, schedule: Schedule
) -> Callable[[Float[Array, ""], Float[Array, "*shape"]], Float[Array, "*shape"]]:
    """(phi, y) -> dy/dphi of one example, eq. (1)."""
    if schedule.num_steps is not None:
        raise ValueError("an adaptive solver needs a continuous schedule; use schedules.interpolate(schedule)")

    def velocity(phi: Float[Array, ""], y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        log_snr = 2.0 * (jnp.log(jnp.maximum(jnp.cos(phi), 0.0)) - jnp.log(jnp.maximum(jnp.sin(phi), 0.0)))
        t = schedule.time_of_log_snr(log_snr)
        alpha, sigma = schedule(t)
        scale = jnp.hypot(alpha, sigma)
        p = denoise((y * scale).astype(y.dtype)[None], t[None])
        return ((alpha * p.noise[0] - sigma * p.x_0[0]) / scale).astype(y.dtype)

    return velocity


def _place(schedule: Schedule, t: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The angle at t, and sqrt(alpha^2 + sigma^2)."""
    alpha, sigma = schedule(t)
    return jnp.arctan2(sigma, alpha), jnp.hypot(alpha, sigma)


def _with_divergence(
    field: Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]],
    y: Float[Array, "*shape"],
    sign: Float[Array, "*shape"] | None,
) -> tuple[Float[Array, "*shape"], Float[Array, ""]]:
    """field(y) and its divergence: exact, or sign . J sign."""
    if sign is not None:
        value, change = jax.jvp(field, (y,), (sign,))
        return value, jnp.sum(sign * change)
    value, derivative = jax.linearize(field, y)
    basis = jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
    return value, jnp.sum(jax.vmap(derivative)(basis) * basis)


def _integrate(
    field: Callable[..., Any],
    y: Any,
    start: Float[Array, ""],
    end: Float[Array, ""],
    solver: diffrax.AbstractSolver | None,
    rtol: float | Array,
    atol: float | Array,
    max_steps: int,
) -> tuple[Any, Int[Array, ""]]:
    """y at `end`, and the steps it took."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda phi, y, _: field(phi, y)),
        solver or diffrax.Tsit5(),
        start,
        end,
        None,
        y,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
    )
    return jax.tree.map(lambda a: a[0], solution.ys), solution.stats["num_steps"]
