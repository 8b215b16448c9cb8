"""The moving average of the parameters that samples are drawn with."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def decay_at(step: Int[Array, ""] | int, decay: float) -> Float[Array, ""]:
    """min(decay, (1 + step)/(10 + step)): a young average forgets the random start quickly.

    Args:
      step: steps done before this one, >= 0.
      decay: the limit, in [0, 1).

    >>> [round(float(decay_at(step, 0.99)), 3) for step in (0, 10, 10_000)]
    [0.1, 0.55, 0.99]
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(jnp.float32(decay), (1 + step) / (10 + step))


def update(ema_params: Any, params: Any, step: Int[Array, ""] | int, decay: float) -> Any:
    """ema + (1 - d)(params - ema), with d = decay_at(step, decay): where both agree, it changes no bit.

    Args:
      ema_params: the average so far.
      params: the parameters after this step, the same tree.
      step: steps done before this one, >= 0.
      decay: the limit, in [0, 1).

    Returns:
      The new average, the same tree.

    >>> import jax.numpy as jnp
    >>> round(float(update(jnp.zeros(()), jnp.ones(()), step=0, decay=0.999)), 6)
    0.9
    """
    weight = 1 - decay_at(step, decay)
    return jax.tree.map(lambda average, p: average + weight * (p - average), ema_params, params)
