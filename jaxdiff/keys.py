"""The key tree of a run: one fold of its seed for each purpose, and one key for each example below it.

    key(seed) -> fold_in(., purpose) -> [fold_in(., step)] -> fold_in(., example) -> what is drawn

so that no two purposes share a key, whatever their steps and examples.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

PURPOSES = ("init", "train", "pictures", "sample", "bits", "validation")
"""What keys are for: a purpose's place is its fold, so new ones come last."""


def purpose_key(seed: int, purpose: str) -> Key[Array, ""]:
    """The key of a purpose: threefry, since another implementation makes noise depend on the batch.

    Args:
      seed: of the run, or of the command.
      purpose: one of `PURPOSES`.

    Raises:
      ValueError: unknown purpose (the choices are listed).

    >>> bool(purpose_key(0, "sample") == purpose_key(0, "train"))
    False
    """
    if purpose not in PURPOSES:
        raise ValueError(f"unknown purpose {purpose!r}; choose one of {', '.join(PURPOSES)}")
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), PURPOSES.index(purpose))


def example_keys(key: jax.Array, examples: int | Int[Array, " batch"]) -> Key[Array, " batch"]:
    """One key an example: fold_in(key, i), which depends on i alone and not on how many there are or where.

    Args:
      key: one key, or keys that are one per example already, which stay as they are.
      examples: how many, for 0, 1, ...; or the number of each, [batch], such as its row in the global batch.

    Raises:
      ValueError: no keys, or a wrong number of them.

    >>> key = jax.random.key(0)
    >>> bool(jnp.array_equal(example_keys(key, 4)[2:], example_keys(key, jnp.arange(2, 4))))
    True
    """
    key = typed(key)
    numbers = jnp.arange(examples) if isinstance(examples, int) else examples
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
    if key.shape != numbers.shape:
        raise ValueError(f"key must be one key or {len(numbers)} of them, one per example; got shape {key.shape}")
    return key


def typed(key: jax.Array) -> jax.Array:
    """Keys as jax.random.key makes them, also of those of jax.random.PRNGKey, [..., 2], with the same numbers.

    Raises:
      ValueError: an array of something else.

    >>> typed(jax.random.PRNGKey(0)) == jax.random.key(0), typed(jax.random.split(jax.random.PRNGKey(0), 3)).shape
    (Array(True, dtype=bool), (3,))
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if key.dtype != jnp.uint32 or key.shape[-1:] != (2,):
        raise ValueError(f"keys are made by jax.random.key; got an array {key.shape} of {key.dtype}")
    return jax.random.wrap_key_data(key, impl="threefry2x32")
