"""The latent consistency loss (LCM): a guided teacher distilled, for all guidance scales at once, by skipping steps.

For t and s = t - 1/`steps` of a grid, f the x_0 of the network that is told the scale w, and x_s one DDIM step from x_t
with the teacher guided by w:

    loss = mean of sqrt(|f(x_t, t, w) - stop_gradient f(x_s, s, w)|^2 + c^2) - c,   c = `huber`                     (1)

f(x, 0) = x holds by itself for every kind but "x_0". It is zero where f is the end of the guided teacher's walk over
the grid. Samples are drawn with `samplers.lcm`, the network told the scale by cond["guidance"].

Source: Luo et al. 2023 (LCM), eq. 14 and 15, algorithm 1; the scale here is their omega + 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdiff.denoisers import Denoiser, as_denoiser
from jaxdiff.keys import example_keys
from jaxdiff.losses.denoising import draw
from jaxdiff.losses.time_sampling import uniform, uniforms
from jaxdiff.process import add_noise
from jaxdiff.schedules import Schedule


def latent_consistency_loss(
    key: jax.Array,
    predict: Callable[..., jax.Array],
    x_0: Float[Array, "batch *shape"],
    *,
    schedule: Schedule,
    teacher: Callable[[jax.Array], Denoiser],
    prediction: str = "v",
    low: float = 1.0,
    high: float = 8.0,
    steps: int = 50,
    huber: float = 0.001,
    cond: Any = None,
) -> Float[Array, " batch"]:
    """Eq. (1) for each example, at a random time of the grid under a random scale.

    Args:
      key: one key, or one per example [batch].
      predict: (x_t, t [batch], cond with "guidance" [batch]) -> output of the kind `prediction`.
      x_0: data [batch, ...], usually latents.
      schedule: the noise schedule.
      teacher: scales [batch] -> the denoiser guided by them.
      prediction: any kind but "x_0", for which f(x, 0) = x would have to be learned.
      low: of the scales, which are uniform.
      high: likewise.
      steps: of the grid: 50 skips 20 of 1000.
      huber: c, where the square becomes a line.
      cond: passed to predict.

    Raises:
      ValueError: prediction "x_0".

    >>> from jaxdiff import schedules
    >>> still = lambda x_t, t, cond=None: jnp.zeros_like(x_t)
    >>> how = {"schedule": schedules.cosine(), "teacher": lambda w: as_denoiser(still, schedule=schedules.cosine())}
    >>> latent_consistency_loss(jax.random.key(0), still, jnp.ones((3, 4)), **how).shape
    (3,)
    """
    if prediction == "x_0":
        raise ValueError("a consistency function is x itself at t = 0, which prediction 'x_0' is not; use v or noise")
    keys, time_keys, scale_keys = jax.vmap(lambda k: jax.random.split(k, 3), out_axes=1)(
        example_keys(key, x_0.shape[0])
    )
    t = jnp.ceil(uniforms(time_keys) * steps) / steps
    s = t - 1.0 / steps
    scale = low + (high - low) * uniforms(scale_keys)
    drawn, m_s = draw(keys, x_0, schedule, uniform, t), schedule(s)
    x_s = add_noise(*teacher(scale)(drawn.x_t, t)[:2], m_s)
    cond = {**(cond or {}), "guidance": scale}
    f = as_denoiser(predict, schedule=schedule, prediction=prediction, cond=cond)
    goal = jax.lax.stop_gradient(jnp.where(m_s.like(x_0).sigma > 0, f(x_s, s).x_0, x_s))
    error = jnp.sqrt(jnp.square(f(drawn.x_t, t).x_0 - goal) + huber**2) - huber
    return jnp.mean(error, axis=tuple(range(1, x_0.ndim)))
