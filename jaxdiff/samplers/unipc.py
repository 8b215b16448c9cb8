"""UniPC of order p = 1, 2, 3, multistep predictor-corrector: order p + 1, one network evaluation a step."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxdiff.denoisers import Denoiser
from jaxdiff.samplers.base import Sampler
from jaxdiff.samplers.exponential import (
    DATA_REACH,
    History,
    adams_weights,
    by_count,
    data_moments,
    first_order,
    half_log_snr,
    interior,
)
from jaxdiff.schedules import Schedule

COEFFICIENTS = ("exact", "bh1", "bh2")


class UniPCState(NamedTuple):
    """The past estimates of x_0, and where the last step started: x, corrected, and sigma (0: correct nothing)."""

    past: History
    x: Float[Array, "batch *shape"]
    sigma: Float[Array, ""]


def unipc(order: int = 3, coefficients: str = "exact", full_order: bool = False) -> Sampler:
    """Each evaluation first corrects the step that led to it, then predicts the next.

        (1)  x_t^c = (sigma_t/sigma_b) x_b^c + alpha_t sum_j w_j x_0,j    b: the step before; j: b, older, and t itself
        (2)  x_s = (sigma_s/sigma_t) x_t^c + alpha_s sum_j w_j x_0,j      j: t, and older

    with weights that integrate the polynomial through the estimates against the kernel of the data form: UniC is
    its Adams-Moulton, UniP its Adams-Bashforth method. Orders warm up from 1 and fall before leaps; the last step
    has order 1. The result
    is a prediction: nothing evaluates, or corrects, at the end.

    Args:
      order: 1, 2 or 3: how many estimates a prediction uses.
      coefficients: "exact"; or "bh1" or "bh2", the released code, which takes 1/2 B(h) for a weight that stands
        alone, B(h) = -h or e^-h - 1 (otherwise its solution is the exact one for any B). The order is the same.

      full_order: as in `dpmpp_2m`: order p before leaps too.

    Raises:
      ValueError: order or coefficients are not one of these.

    Source: Zhao et al. 2023 (UniPC), algorithms 1 and 2, theorem 3.1.

    >>> unipc(order=2).nfe
    1
    """
    if order not in (1, 2, 3):
        raise ValueError(f"UniPC's order must be 1, 2 or 3, got {order}")
    if coefficients not in COEFFICIENTS:
        raise ValueError(f"unknown coefficients {coefficients!r}; choose one of {', '.join(COEFFICIENTS)}")

    def weights(h: Array, nodes: list[Array]) -> Float[Array, " nodes"]:
        """Of the estimates at nodes (in units of h from the newest old one), which is itself left out."""
        if coefficients != "exact" and len(nodes) == 1:
            bound = h if full_order else jnp.minimum(h, DATA_REACH)  # h/2 of a leap is more than the whole of x_0
            b = -bound if coefficients == "bh1" else jnp.expm1(-h)
            return (-0.5 * b / nodes[0])[None]
        return adams_weights([jnp.zeros_like(h), *nodes], data_moments(h, len(nodes) + 1))[1:]

    def correct(state: UniPCState, x_0: Array, lam: Array, alpha: Array, sigma: Array) -> Array:
        """Eq. (1): x at lam again, now that x_0 there is known."""
        past = state.past
        h = lam - past.positions[0]
        older = [(position - past.positions[0]) / h for position in past.positions[1:]]
        # The estimate at t itself is the node at 1; it comes first in the table, since it is always used.
        options = [weights(h, [jnp.ones_like(h), *older[:n]]) for n in range(order)]
        before = History(past.values[1:], past.positions[1:], past.count - 1)
        usable = before.usable(past.positions[0], h, full_order)
        w = by_count(options, usable)
        base = past.values[0]
        w = (alpha * w).astype(base.dtype)
        change = w[0] * (x_0 - base) + past._replace(values=past.values[1:]).correction(base, w[1:])
        kept, moved = sigma / jnp.where(state.sigma > 0, state.sigma, 1.0), alpha * jnp.expm1(-h)
        return kept.astype(base.dtype) * state.x + change - moved.astype(base.dtype) * base

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: UniPCState, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, UniPCState]:
        del keys
        m_t, m_s = schedule(t), schedule(s)
        lam = half_log_snr(m_t)
        p = denoise(x, t)
        corrected = correct(state, p.x_0, lam, *m_t)
        corrected = jnp.where((state.sigma > 0) & (m_t.sigma > 0), corrected, x).astype(x.dtype)

        h = half_log_snr(m_s) - lam
        older = [(position - lam) / h for position in state.past.positions[: order - 1]]
        options = [weights(h, older[:n]) if n else jnp.zeros(0, h.dtype) for n in range(order)]
        w = jnp.where(interior(m_t, m_s), m_s.alpha * by_count(options, state.past.usable(lam, h, full_order)), 0.0)
        moved = (m_s.sigma / jnp.where(m_t.sigma > 0, m_t.sigma, 1.0)).astype(x.dtype) * (corrected - x)
        x_s = first_order(p, m_s) + moved + state.past.correction(p.x_0, w)
        # B(h) estimates no weight over an infinite step: from alpha = 0 the released code's rules correct nothing.
        usable = (m_t.alpha > 0) | (coefficients == "exact")
        sigma = jnp.where(usable, m_t.sigma, 0.0).astype(state.sigma.dtype)
        return x_s, UniPCState(state.past.push(p.x_0, lam), corrected, sigma)

    def init(x_T: Array) -> UniPCState:
        return UniPCState(History.empty(x_T, order), x_T, jnp.zeros((), jnp.result_type(float)))

    return Sampler(init, step)
