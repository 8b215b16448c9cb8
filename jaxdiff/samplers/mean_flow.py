"""The sampler of flow maps (MeanFlow, Shortcut): exact in any number of steps, one network evaluation a step."""

from jax import Array

from jaxdiff.denoisers import Denoiser, Span
from jaxdiff.process import add_noise
from jaxdiff.samplers.base import Sampler
from jaxdiff.schedules import Schedule


def mean_flow() -> Sampler:
    """x_s = alpha_s x_0 + sigma_s noise, of a denoiser that is asked for the way from t to s (`Span`).

    On alpha = 1 - t, sigma = t it is x_s = x_t - (t - s) u(x_t, s, t). If u is the mean velocity of the probability
    flow from t to s, every number of steps ends where the flow does. Other samplers ask the same network for its
    velocity at t.

    Source: Geng et al. 2025 (MeanFlow), eq. 12; Frans et al. 2025 (Shortcut), algorithm 2.

    >>> mean_flow().nfe
    1
    """

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: tuple, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, tuple]:
        del keys
        p = denoise(x, Span(t, s))
        return add_noise(p.x_0, p.noise, schedule(s)), state

    return Sampler(lambda x_T: (), step)
