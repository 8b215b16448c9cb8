"""A Stable Diffusion folder as a recipe and its own way to sample."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdiff.codecs import latents
from jaxdiff.conditioning import Cond, frozen_text
from jaxdiff.diffusion import Recipe
from jaxdiff.errors import UserError
from jaxdiff.interop import scheduler_steps
from jaxdiff.interop.pipeline import Pipeline
from jaxdiff.interop.schedulers import Scheduler
from jaxdiff.samplers import METHODS


class _Told(NamedTuple):
    """Their network, which is told the time as their scheduler tells it."""

    network: Any
    config: Mapping[str, Any]

    def apply(self, variables: Any, x_t: jax.Array, t: jax.Array, cond: Cond, dropout_keys: None = None) -> Any:
        """As `network.apply`."""
        del dropout_keys
        return self.network.apply(variables, x_t, scheduler_steps.seen(self.config, t), cond)


def recipe_of(pipeline: Pipeline, shape: tuple[int, int, int]) -> Recipe:
    """The recipe of a pipeline for latents of a shape: schedule, U-Net, text encoder, autoencoder.

    Args:
      pipeline: the networks.
      shape: of a latent, (h, w, c); see `Pipeline.latent_shape`.
    """
    scheduler, vae = pipeline.scheduler, pipeline.vae.network
    codec = latents(vae, 2 ** (len(vae.channel_mults) - 1), shape[-1], pipeline.scale)
    encoder, tokenizer = pipeline.text.network, pipeline.tokenizer
    most = pipeline.max_tokens
    tokenize = lambda texts: tokenizer(list(texts), most)  # noqa: E731
    conditioner = frozen_text(encoder, tokenize, encoder.features, lambda text: tokenizer.dropped(text, most))
    return Recipe(
        scheduler.walk,
        scheduler.prediction,
        _Told(pipeline.unet.network, scheduler.config),
        conditioner,
        codec,
        shape,
        frozen={"codec": pipeline.vae.params, "conditioner": pipeline.text.params},
        extra_cond=("guidance",) if pipeline.unet.config["time_cond_proj_dim"] else (),
    )


def chosen(scheduler: Scheduler, method: str | None, options: Mapping[str, Any], eta: float | None) -> Scheduler:
    """The folder's own sampler, or the one asked for on the same schedule and times.

    Raises:
      UserError: eta out of range, or of a method that has none.
    """
    if method not in (None, scheduler.method):
        config = scheduler.config
        if method == "lcm":  # the grid that all were distilled on, as diffusers' LCMScheduler has it of any config
            config = {**config, "original_inference_steps": 50}
        scheduler = dataclasses.replace(scheduler, method=method, options=dict(options), config=config)
    elif options:
        scheduler = dataclasses.replace(scheduler, options={**scheduler.options, **options})
    if eta is None:
        return scheduler
    if "eta" not in inspect.signature(METHODS[scheduler.method]).parameters or not 0 <= eta <= 1:
        raise UserError(f"--eta {eta} with {scheduler.method}: it must be 0 to 1, of a method that has it")
    return dataclasses.replace(scheduler, options={**scheduler.options, "eta": eta})


def padded_times(scheduler: Scheduler, steps: int) -> np.ndarray:
    """The scheduler's times, padded: another number of steps compiles nothing."""
    try:
        times = scheduler.times(steps)
    except ValueError as error:
        raise UserError(f"--steps {steps}: {error}") from None
    return np.pad(times, (0, scheduler.config["num_train_timesteps"] + 1 - len(times)), mode="edge")
