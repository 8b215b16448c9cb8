"""The loss of progressive distillation: a student's one step is made two steps of its teacher.

With s the end of the student's step from t, and x_s where two DDIM steps of the teacher over the half of it end, the
student's goal is the pair whose one DDIM step ends there too:

    x_t = alpha_t x_0 + sigma_t noise,  x_s = alpha_s x_0 + sigma_s noise  =>
    x_0 = (sigma_t x_s - sigma_s x_t)/(alpha_s sigma_t - alpha_t sigma_s)                                          (1)

in whatever the network predicts. Its zero is a student that walks as its teacher does, in half as many steps.

Source: Salimans & Ho 2022 (Progressive Distillation), algorithm 2.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxdiff.denoisers import Denoiser
from jaxdiff.keys import example_keys
from jaxdiff.losses.denoising import draw, mean_square
from jaxdiff.losses.time_sampling import uniform, uniforms
from jaxdiff.losses.weightings import Weighting, output_weight
from jaxdiff.process import add_noise, from_x0_noise, network_inputs
from jaxdiff.schedules import Schedule


def progressive_loss(
    key: jax.Array,
    predict: Callable[..., jax.Array],
    x_0: Float[Array, "batch *shape"],
    *,
    schedule: Schedule,
    teacher: Denoiser,
    steps: ArrayLike,
    prediction: str = "v",
    weighting: Weighting | None = None,
    cond: Any = None,
) -> Float[Array, " batch"]:
    """w(t) mean |goal of eq. (1) - predict(x_t, t, cond)|^2 at a random one of the student's times.

    Args:
      key: one key, or one per example [batch].
      predict: (x_t, t [batch], cond) -> output of the kind `prediction`; called as `process.network_inputs` says.
      x_0: data [batch, ...], usually in [-1, 1].
      schedule: the noise schedule.
      teacher: a denoiser that walks in twice as many steps, with its guidance if any.
      steps: of the student, at the times (steps, ..., 2, 1)/steps; it may be traced.
      prediction: what predict puts out; "noise" and "score" where there is signal at t = 1.
      weighting: of this package; `truncated_snr` is the paper's.
      cond: passed to predict.

    >>> from jaxdiff import schedules
    >>> from jaxdiff.denoisers import Prediction
    >>> cosine, still = schedules.cosine(), lambda x_t, t, cond: jnp.zeros_like(x_t)
    >>> v_0 = lambda x, t: Prediction(cosine(t).like(x).alpha * x, cosine(t).like(x).sigma * x)
    >>> loss = progressive_loss(jax.random.key(0), still, jnp.ones((3, 4)), schedule=cosine, teacher=v_0, steps=512)
    >>> bool(jnp.all(loss < 1e-4))  # v = 0 in small steps and large: x scarcely moves
    True
    """
    keys, time_keys = jax.vmap(jax.random.split, out_axes=1)(example_keys(key, x_0.shape[0]))
    steps = jnp.asarray(steps, jnp.result_type(float))
    t = jnp.ceil(uniforms(time_keys) * steps) / steps
    s = t - 1.0 / steps
    drawn, middle = draw(keys, x_0, schedule, uniform, t), t - 0.5 / steps
    m_t, m_s = drawn.m.like(x_0), schedule(s).like(x_0)
    x = add_noise(*teacher(drawn.x_t, t)[:2], schedule(middle))
    x = add_noise(*teacher(x, middle)[:2], schedule(s))
    scale = m_s.alpha * m_t.sigma - m_t.alpha * m_s.sigma
    goal = (m_t.sigma * x - m_s.sigma * drawn.x_t) / scale
    noise = (m_s.alpha * drawn.x_t - m_t.alpha * x) / scale
    output = predict(*network_inputs(prediction, drawn.x_t, t, drawn.m), cond)
    loss = mean_square(jax.lax.stop_gradient(from_x0_noise(prediction, goal, noise, drawn.m)) - output)
    return loss if weighting is None else output_weight(prediction, weighting, drawn.m) * loss
