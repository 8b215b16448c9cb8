"""Bits per dimension of a data set's images under a run's weights, spread over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdiff import schedules
from jaxdiff.builders import build_model, build_schedule, whole
from jaxdiff.config import Config
from jaxdiff.denoisers import Denoiser, as_denoiser, static_threshold
from jaxdiff.evaluation.likelihood import bound_bits, flow_bits
from jaxdiff.samplers import sample_keys
from jaxdiff.training.parallel import put


def build_bits(
    config: Config, kind: str, shape: tuple[int, int, int], batch_size: int, mesh: Mesh
) -> Callable[..., Float[np.ndarray, " n"]]:
    """(params, key, first, images, labels) -> bits per dimension of each image; image i's noise is that of (key, i).

    Every process calls it with the same images, and gets all numbers.

    Args:
      config: the run.
      kind: of `scores.LIKELIHOODS`. The bound clips the estimate of x_0 to [-1, 1]; the flow is the model's own.
      shape: of an image, (h, w, c).
      batch_size: images at once, a multiple of the devices.
      mesh: the devices.

    Returns:
      The function; first is the number of the first image, labels are int32 or None if the model has no classes.
    """
    discrete = build_schedule(config)
    schedule = discrete if kind == "bpd" else schedules.interpolate(discrete)
    model, rows = build_model(config, shape[-1]), NamedSharding(mesh, P(mesh.axis_names))

    def denoiser(params: Any, labels: Array | None) -> Denoiser:
        def predict(x_t: Array, t: Array, cond: Array | None) -> Any:
            return model.apply({"params": params}, x_t, t, cond)

        return as_denoiser(predict, schedule=schedule, prediction=config.diffusion.prediction, cond=labels)

    @jax.jit
    def run(params, key, start, images, labels):
        keys = jax.lax.with_sharding_constraint(sample_keys(key, batch_size, start), rows)
        if kind == "bpd":
            denoise = static_threshold(denoiser(params, labels), schedule=schedule)
            return bound_bits(keys, denoise, images, schedule)

        def one(key, image, label):  # the solver takes each by itself
            alone = None if label is None else label[None]
            return flow_bits(key[None], denoiser(params, alone), image[None], schedule)[0]

        return jax.vmap(one)(keys, images, labels)

    def bits(
        params: Any, key: Array, first: int, images: np.ndarray, labels: np.ndarray | None
    ) -> Float[np.ndarray, " n"]:
        at = np.minimum(np.arange(batch_size), len(images) - 1)
        placed = put(images[at], rows), None if labels is None else put(labels[at].astype(np.int32), rows)
        return np.asarray(whole(run(params, key, np.int32(first), *placed)))[: len(images)]

    return bits
