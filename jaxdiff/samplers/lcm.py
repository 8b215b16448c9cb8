"""Multistep consistency sampling (LCM): exact for a consistency function, one network evaluation a step."""

from jax import Array

from jaxdiff.denoisers import Denoiser
from jaxdiff.process import add_noise
from jaxdiff.samplers.base import Sampler, normal_like
from jaxdiff.schedules import Schedule


def lcm() -> Sampler:
    """x_s = alpha_s f(x_t, t) + sigma_s z: to the end of the flow, and back to s by fresh noise.

    The denoiser's x_0 must be f, the end at t = 0 of the probability flow through x_t, as a consistency model
    estimates it; then every number of steps draws from the data. With an ordinary denoiser, whose x_0 is a mean, the
    samples lose variance.

    Source: Song et al. 2023 (consistency models), algorithm 1; Luo et al. 2023 (LCM), algorithm 3.

    >>> lcm().nfe
    1
    """

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: tuple, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, tuple]:
        return add_noise(denoise(x, t).x_0, normal_like(keys, x), schedule(s)), state

    return Sampler(lambda x_T: (), step)
