"""The contract of a conditioner: what a network is told beside x_t and t, and how to say nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

Cond = dict[str, jax.Array]
"""By name, each [batch, ...]: label, text, mask, image, ...; {} for nothing."""


class Conditioner(NamedTuple):
    """One kind of condition.

    Attributes:
      spec: {name: shape and dtype of one example} of `cond`.
      embed: (params, a batch of the data) -> cond; params are the conditioner's own.
      null: (params, number of examples) -> the cond that says nothing, which dropout in training and guidance both use.
      parse: (what the command line says, number of samples) -> a batch of what `embed` takes, NumPy.
      examples: what a default picture shows, in words of `parse`, a row each.
      tokenize: of a condition made of captions: texts -> the arrays that `embed` takes, by name, with a row a text.
        `cut` among them, bool, tells which texts had more tokens than fit; it is counted, and no part of batches.
      misfit: number of classes of the data -> what is wrong with it for this condition, "" for nothing.
      dropped: text -> what of it does not fit into the tokens, "" if all does.
      encoder: a module, cond -> what the network is told, by the names in its `says`; it is trained with the network.
      known: what it took from the data, JSON: kept with the run, and given as `known` to make the conditioner again.
    """

    spec: dict[str, jax.ShapeDtypeStruct]
    embed: Callable[[Any, dict[str, jax.Array]], Cond]
    null: Callable[[Any, int], Cond]
    parse: Callable[[Sequence[str], int], dict[str, np.ndarray]]
    examples: tuple[str, ...] = ()
    tokenize: Callable[[Sequence[str]], dict[str, np.ndarray]] | None = None
    misfit: Callable[[int], str] = lambda num_classes: ""
    dropped: Callable[[str], str] = lambda text: ""
    encoder: Any = None
    known: Mapping[str, Sequence[str]] = {}


def hidden(cond: Cond, null: Cond, hide: Bool[Array, " batch"]) -> Cond:
    """The cond with the examples where `hide` replaced by the null condition."""

    def choose(null: jax.Array, said: jax.Array) -> jax.Array:
        return jnp.where(hide.reshape(hide.shape + (1,) * (said.ndim - 1)), null, said)

    return jax.tree.map(choose, null, cond)


def with_augmentation(conditioner: Conditioner, size: int) -> Conditioner:
    """The conditioner with cond["augment"] beside what it says: of the batch where it is there, else zeros."""

    def embed(params: Any, batch: dict[str, jax.Array]) -> Cond:
        rows = len(next(iter(batch.values())))
        return {**conditioner.embed(params, batch), "augment": batch.get("augment", jnp.zeros((rows, size)))}

    def null(params: Any, num: int) -> Cond:
        return {**conditioner.null(params, num), "augment": jnp.zeros((num, size))}

    def parse(words: Sequence[str], num: int) -> dict[str, np.ndarray]:
        return {**conditioner.parse(words, num), "augment": np.zeros((num, size), np.float32)}

    spec = {**conditioner.spec, "augment": jax.ShapeDtypeStruct((size,), jnp.float32)}
    return conditioner._replace(spec=spec, embed=embed, null=null, parse=parse)


def nothing() -> Conditioner:
    """No condition: every sample is drawn from all the data."""

    def parse(words: Sequence[str], num: int) -> dict[str, Any]:
        del num
        if words:
            raise ValueError("the run has no classes")
        return {}

    return Conditioner({}, lambda params, batch: {}, lambda params, num: {}, parse)
