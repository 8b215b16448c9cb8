"""AdamW with clipped gradients and a linear warm-up (Loshchilov and Hutter 2019, Algorithm 2)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def make_optimizer(
    learning_rate: float, warmup_steps: int = 0, weight_decay: float = 0.0, clip_norm: float = 1.0
) -> optax.GradientTransformation:
    """Clip the global norm, then AdamW; update n = 0, 1, ... uses learning_rate min(1, (n+1)/warmup_steps).

    n counts applied updates: a batch that the NaN guard skips does not move the schedule, nor does the number of
    devices. Decay acts on matrices and kernels alone, not on biases, norms or other vectors.

    Args:
      learning_rate: the rate after warm-up, > 0.
      warmup_steps: updates until the full rate, >= 0; the first update already moves.
      weight_decay: decoupled decay, >= 0, multiplied by the rate.
      clip_norm: largest global norm of the gradient, > 0 (inf: no clipping).

    Returns:
      An optax transformation whose state depends on the parameters' structure alone.

    Raises:
      ValueError: an argument is outside its range.

    >>> import jax.numpy as jnp
    >>> optimizer = make_optimizer(0.1, warmup_steps=2)
    >>> params = {"w": jnp.zeros(1)}
    >>> updates, _ = optimizer.update({"w": jnp.ones(1)}, optimizer.init(params), params)
    >>> round(float(updates["w"][0]), 6)
    -0.05
    """
    for name, value, legal in (
        ("learning_rate", learning_rate, learning_rate > 0),
        ("warmup_steps", warmup_steps, warmup_steps >= 0),
        ("weight_decay", weight_decay, weight_decay >= 0),
        ("clip_norm", clip_norm, clip_norm > 0),
    ):
        if not legal:
            bound = "> 0" if name in ("learning_rate", "clip_norm") else ">= 0"
            raise ValueError(f"{name}={value} is out of range; it must be {bound}")

    def rate(count: ArrayLike) -> jax.Array:
        return learning_rate * jnp.minimum(1.0, (jnp.asarray(count) + 1) / max(warmup_steps, 1))

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(rate, weight_decay=weight_decay, mask=decayed),
    )
