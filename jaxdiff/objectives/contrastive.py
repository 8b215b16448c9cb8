"""Contrastive: of all texts of a batch a picture's own is to score highest, and of all pictures a text's own.

With scores S = <f(image_i), g(text_j)> exp(s), see `jaxdiff.models.two_towers`, the loss of pair i is

    l_i = -log softmax(S)_ii / 2 - log softmax(S^T)_ii / 2                                                (1)

where pairs j of the very same text as i count for nothing. The batch is what one device has at a time: under pmap, or
with train.accumulate, a part of it.

Source: Radford et al. 2021 (CLIP), figure 3.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdiff.objectives.base import Batch, Objective, ObjectiveOptions, Setting, seen


@dataclasses.dataclass(frozen=True)
class Contrastive(ObjectiveOptions):
    """Pictures find their texts, see jaxdiff.objectives.contrastive."""

    draws: ClassVar[bool] = False

    def make(self, setting: Setting) -> Objective:
        """The objective."""
        if setting.hide:
            raise ValueError("objective contrastive hides no text: set diffusion.class_dropout to 0")

        def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> jax.Array:
            s = seen(setting, params, frozen, batch, keys)
            pairs = s.predict(s.x_0, jnp.zeros(len(s.x_0)), s.cond)
            tokens = batch["tokens"]
            return contrastive_loss(pairs, (tokens[:, None] == tokens[None]).all(-1))

        return Objective(loss)


def contrastive_loss(
    pairs: Float[Array, "batch 2 features"], same: Bool[Array, "batch batch"]
) -> Float[Array, " batch"]:
    """Equation (1).

    Args:
      pairs: f and g of each pair, whose products are the scores.
      same: which have one text.

    >>> pairs = jnp.stack([jnp.eye(2), jnp.eye(2)], 1)
    >>> [round(float(l), 4) for l in contrastive_loss(pairs, jnp.eye(2, dtype=bool))]  # log(1 + 1/e)
    [0.3133, 0.3133]
    """
    scores = pairs[:, 0] @ pairs[:, 1].T
    own = jnp.eye(len(scores), dtype=bool)
    scores = jnp.where(same & ~own, -jnp.inf, scores)
    return (jax.nn.logsumexp(scores, 0) + jax.nn.logsumexp(scores, 1)) / 2 - jnp.diagonal(scores)
