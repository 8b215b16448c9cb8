"""From a config to the parts of a run: schedule, network, loss, sampler; and what only they can check."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdiff import losses, schedules
from jaxdiff.config import Config, Sampling
from jaxdiff.denoisers import Denoiser, as_denoiser, dynamic_threshold, static_threshold
from jaxdiff.errors import UserError
from jaxdiff.guidance import classifier_free
from jaxdiff.models import UNet, check
from jaxdiff.models.winograd import prepared
from jaxdiff.samplers import Sampler, Trajectory, by_name, sample, sample_keys
from jaxdiff.schedules import Schedule
from jaxdiff.times import time_grid
from jaxdiff.training import parallel, processes

SCHEDULES = {
    "linear": schedules.linear,
    "scaled_linear": schedules.scaled_linear,
    "cosine": schedules.cosine,
    "sigmoid": schedules.sigmoid,
}
_PLAIN = Sampling(threshold="none")
WEIGHTINGS = {"simple": None, "min_snr": losses.min_snr()}


def build_schedule(config: Config) -> Schedule:
    """The noise schedule of config.diffusion."""
    schedule = SCHEDULES[config.diffusion.schedule](config.diffusion.num_steps)
    return schedule.rescale_zero_snr() if config.diffusion.zero_snr else schedule


def build_model(config: Config, channels: int) -> UNet:
    """The network of config.model for images of so many channels."""
    return UNet(out_channels=channels, **vars(config.model))


def build_times(config: Config, sampling: Sampling, max_steps: int | None = None) -> np.ndarray:
    """The time grid of sampling, padded to max_steps; see `jaxdiff.time_grid`."""
    return time_grid(build_schedule(config), sampling.steps, sampling.spacing, max_steps=max_steps)


def check_run(config: Config, shape: tuple[int, int, int], num_classes: int, num_devices: int) -> None:
    """Refuses a config that does not fit the images or the devices.

    Args:
      config: a valid config.
      shape: of an image, (h, w, c).
      num_classes: of the data; 0 for none.
      num_devices: on which the run is to be.

    Raises:
      UserError: what is wrong and what would be right.
    """
    try:
        check(build_model(config, shape[-1]), shape)
    except ValueError as error:
        raise UserError(f"model.{error}") from None
    wanted = config.model.num_classes
    if wanted and wanted != num_classes:
        has = f"has {num_classes} classes" if num_classes else "has no classes"
        raise UserError(f"model.num_classes={wanted}, but {config.data.name} {has}; set it to {num_classes}")
    if num_devices % config.parallel.fsdp:
        raise UserError(f"parallel.fsdp={config.parallel.fsdp} must divide the {num_devices} devices")
    portion = num_devices * config.train.accumulate
    if config.train.batch_size % portion:
        raise UserError(
            f"train.batch_size={config.train.batch_size} must be a multiple of {portion} "
            f"({num_devices} devices times accumulate {config.train.accumulate})"
        )


def build_loss(
    config: Config, model: UNet, teacher: Any = None
) -> Callable[[Any, dict[str, Array], Array], Float[Array, " batch"]]:
    """(params, batch, keys [batch]) -> loss [batch]: what a training step minimises the mean of.

    The batch holds `image`, uint8 [batch, h, w, c], `label` and `step`, int32 [batch], and `t` where times are not
    the loss's own. Example i uses keys[i] alone: for dropout, for hiding its class, and for its time and noise.

    Args:
      config: the run; with consistency.start the loss is the consistency loss.
      model: the network.
      teacher: parameters to distil, a constant of the program; None: none.
    """
    schedule, num_classes = build_schedule(config), config.model.num_classes

    def loss(params: Any, batch: dict[str, Array], keys: Array) -> Float[Array, " batch"]:
        dropout_keys, class_keys, noise_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
        cond = None
        if num_classes:
            hide = jax.vmap(lambda key: jax.random.bernoulli(key, config.diffusion.class_dropout))(class_keys)
            cond = jnp.where(hide, num_classes, batch["label"])

        def predict(x_t: Array, t: Array, cond: Array | None) -> Any:
            keys = dropout_keys if config.model.dropout else None
            return model.apply({"params": params}, x_t, t, cond, dropout_keys=keys)

        x_0 = batch["image"].astype(jnp.float32) / 127.5 - 1.0
        common = {"schedule": schedule, "prediction": config.diffusion.prediction, "cond": cond}
        if not config.consistency.start:
            weighting = WEIGHTINGS[config.diffusion.weighting]
            return losses.denoising_loss(noise_keys, predict, x_0, weighting=weighting, t=batch.get("t"), **common)
        denoise = None if teacher is None else build_denoiser(config, _PLAIN, model, teacher, cond, 1.0)
        earlier = losses.narrowing(1 + batch["step"] // config.consistency.halve_every)
        return losses.consistency_loss(noise_keys, predict, x_0, earlier=earlier, teacher=denoise, **common)

    return loss


def build_denoiser(
    config: Config, sampling: Sampling, model: UNet, params: Any, labels: Array | None, guidance: Any
) -> Denoiser:
    """The denoiser that samples are drawn with: guided if the model has classes, then thresholded.

    Args:
      config: the run.
      sampling: how to sample; its guidance only says whether to guide (1: no).
      model: the network.
      params: its parameters, usually the EMA.
      labels: int32 [batch], or None if the model has no classes.
      guidance: the scale, which may be a traced value.
    """
    schedule = build_schedule(config)
    variables = prepared(params) if config.model.winograd else {"params": params}

    def denoiser(cond: Array | None) -> Denoiser:
        def predict(x_t: Array, t: Array, cond: Array | None) -> Any:
            return model.apply(variables, x_t, t, cond)

        return as_denoiser(predict, schedule=schedule, prediction=config.diffusion.prediction, cond=cond)

    denoise = denoiser(labels)
    if labels is not None and sampling.guidance != 1:
        denoise = classifier_free(denoise, denoiser(jnp.full_like(labels, config.model.num_classes)), guidance)
    if sampling.threshold == "static":
        return static_threshold(denoise, schedule=schedule)
    return dynamic_threshold(denoise, schedule=schedule) if sampling.threshold == "dynamic" else denoise


def build_sampler(sampling: Sampling, eta: Any) -> Sampler:
    """The sampling method; eta may be a traced value."""
    options = {"variance": sampling.variance} if sampling.sampler == "ddpm" else {}
    return by_name(sampling.sampler, **options, **({} if sampling.eta is None else {"eta": eta}))


def build_sample(
    config: Config,
    sampling: Sampling,
    model: UNet,
    shape: tuple[int, int, int],
    batch_size: int,
    mesh: Mesh,
    *,
    trajectory: bool = False,
) -> Callable[..., Any]:
    """(params, key, num, labels, first=0) -> samples first, first + 1, ...: [num, h, w, c] in NumPy.

    They are drawn batch_size at a time over all devices. Every process calls it, and gets all samples.

    Sample i depends on key and i alone (`jaxdiff.sample_keys`). One program draws every batch: a last, smaller one
    is drawn whole and cut. Steps, eta and guidance are values of that program and not part of it, so that another
    number of steps compiles nothing, and neither does another eta or guidance (but switching them on or off).

    Args:
      config: the run.
      sampling: how to sample.
      model: the network.
      shape: of an image, (h, w, c).
      batch_size: rounded up to a multiple of the devices.
      mesh: the devices.
      trajectory: return (samples, Trajectory) of one batch; its memory, and the program, grow with the steps.

    Returns:
      The function; `labels` is int32 [num], or None if the model has no classes.
    """
    schedule = build_schedule(config)
    times = build_times(config, sampling, None if trajectory else config.diffusion.num_steps)
    batch_size = -(-batch_size // mesh.size) * mesh.size
    rows = NamedSharding(mesh, P(mesh.axis_names))

    @jax.jit
    def run(params, key, start, labels, times, eta, guidance):
        keys = jax.lax.with_sharding_constraint(sample_keys(key, batch_size, start), rows)
        denoise = build_denoiser(config, sampling, model, params, labels, guidance)
        sampler = build_sampler(sampling, eta if sampling.eta else 0.0)
        return sample(keys, denoise, sampler, shape=shape, times=times, schedule=schedule, trajectory=trajectory)

    def draw(params: Any, key: Array, num: int, labels: np.ndarray | None, first: int = 0) -> Any:
        batches = []
        for start in range(0, num, batch_size):
            at = np.minimum(start + np.arange(batch_size), num - 1)
            portion = None if labels is None else parallel.put(labels[at].astype(np.int32), rows)
            values = (times, np.float32(sampling.eta or 0), np.float32(sampling.guidance))
            batches.append(whole(run(params, key, np.int32(first + start), portion, *values)))
        if trajectory:
            x, walk = batches[0]
            return x[:num], Trajectory(walk.x_t[:, :num], walk.x_0[:, :num])
        return np.concatenate(batches)[:num]

    return draw


def whole(tree: Any) -> Any:
    """Global arrays in NumPy, in every process."""
    if jax.process_count() > 1:
        processes.barrier_after_compiling("what makes the arrays")
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)
