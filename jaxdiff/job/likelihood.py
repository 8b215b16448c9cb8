"""Bits per dimension of a data set's images under a run's weights, spread over all devices."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdiff import schedules
from jaxdiff.denoisers import Denoiser, static_threshold
from jaxdiff.diffusion import Recipe, denoiser, whole
from jaxdiff.evaluation.likelihood import bound_bits, flow_bits
from jaxdiff.parallel import put
from jaxdiff.samplers import sample_keys


def build_bits(recipe: Recipe, kind: str, batch_size: int, mesh: Mesh) -> Callable[..., Float[np.ndarray, " n"]]:
    """(params, key, first, batch) -> bits per dimension of each image; image i's noise is that of (key, i).

    Every process calls it with the same images, and gets all numbers.

    Args:
      recipe: the model, of pixels.
      kind: of `scores.LIKELIHOODS`. The bound clips the estimate of x_0 to [-1, 1]; the flow is the model's own.
      batch_size: images at once, a multiple of the devices.
      mesh: the devices.

    Returns:
      The function; first is the number of the first image, the batch is the data's, NumPy.
    """
    schedule, rows = recipe.schedule, NamedSharding(mesh, P(mesh.axis_names))
    first = 1.0 / (schedule.num_steps or math.inf)  # the earliest time that the network was trained at
    if kind != "bpd" and schedule.num_steps is not None:
        schedule = schedules.interpolate(schedule)

    def plain(params: Any, frozen: Any, batch: dict[str, Array]) -> Denoiser:
        denoise = denoiser(recipe, params, recipe.embed(frozen, batch), schedule=schedule)
        return lambda x_t, t: denoise(x_t, jnp.maximum(t, first))

    @jax.jit
    def run(params, frozen, key, start, batch):
        keys = jax.lax.with_sharding_constraint(sample_keys(key, batch_size, start), rows)
        if kind == "bpd":
            denoise = static_threshold(plain(params, frozen, batch), schedule=schedule)
            return bound_bits(keys, denoise, batch["image"], schedule)

        def one(key, example):  # the solver takes each by itself
            alone, t_min = jax.tree.map(lambda x: x[None], example), max(1e-3, first)
            return flow_bits(key[None], plain(params, frozen, alone), alone["image"], schedule, t_min=t_min)[0]

        return jax.vmap(one)(keys, batch)

    def bits(params: Any, key: Array, first: int, batch: dict[str, np.ndarray]) -> Float[np.ndarray, " n"]:
        num = len(batch["image"])
        indices = np.minimum(np.arange(batch_size), num - 1)
        placed = jax.tree.map(lambda x: put(x[indices], rows), batch)
        return np.asarray(whole(run(params, recipe.frozen, key, np.int32(first), placed)))[:num]

    return bits
