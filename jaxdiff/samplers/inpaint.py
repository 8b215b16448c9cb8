"""RePaint: any sampler without memory, held to what is known of the image."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxdiff.denoisers import Denoiser
from jaxdiff.process import add_noise, transition
from jaxdiff.samplers.base import Sampler, normal_like
from jaxdiff.schedules import Schedule


def inpaint(sampler: Sampler, mask: Bool[Array, "*#shape"], known: Float[Array, "*shape"], rounds: int = 1) -> Sampler:
    """After each step the known part is replaced by the known data, noised to the new time.

        (1)  x_s = step(x_t);  x_s = alpha_s known + sigma_s z where mask, else x_s
        (2)  all but the last round: x_t ~ q(x_t | x_s), and again from (1)

    Rounds let the new part harmonise with the known one; with one round it is often seen from where it was put.
    At s = 0 the known part is exactly what is known.

    Rounds also repeat the sampler's own bias of few steps: of the exact denoiser of N(0, 0.25) on the cosine schedule,
    with ddim(eta=1), the new part has 0.74, 0.62 and 0.54 of its variance after 20 steps of 1, 5 and 20 rounds, and
    0.94, 0.88 and 0.78 after 100 steps.

    Args:
      sampler: one whose step needs no past: ddpm, ddim, heun, dpm_solver_2, ... (not a multistep method, whose past
        would be of another image).
      mask: True where the data is known; broadcasts against known.
      known: data [batch, ...]; not read where mask is False.
      rounds: >= 1.

    Raises:
      ValueError: rounds is below 1, or the sampler has a memory.

    Source: Lugmayr et al. 2022 (RePaint), algorithm 1 (jumps of one step).

    >>> from jaxdiff.samplers.ddim import ddim
    >>> inpaint(ddim(eta=1.0), jnp.ones((1, 1), bool), jnp.zeros((2, 3)), rounds=4).nfe
    4
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if jax.tree.leaves(jax.eval_shape(sampler.init, known)):
        raise ValueError("inpaint takes a sampler without memory (ddpm, ddim, heun, dpm_solver_2, ...)")

    def step(
        keys: Array, denoise: Denoiser, x: Array, state: tuple, t: Array, s: Array, *, schedule: Schedule
    ) -> tuple[Array, tuple]:
        m_s = schedule(s)
        back = transition(m_s, schedule(t))

        def once(x_t: Array, index: Array) -> tuple[Array, None]:
            now = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, index), 3), out_axes=1)(keys)
            x_s = sampler.step(now[0], denoise, x_t, (), t, s, schedule=schedule)[0]
            x_s = jnp.where(mask, add_noise(known, normal_like(now[1], x_s), m_s), x_s)
            renoised = add_noise(x_s, normal_like(now[2], x_s), back)
            return jnp.where(index < rounds - 1, renoised, x_s).astype(x.dtype), None

        return jax.lax.scan(once, x, jnp.arange(rounds))[0], state

    return Sampler(lambda x_T: (), step, nfe=rounds * sampler.nfe)
