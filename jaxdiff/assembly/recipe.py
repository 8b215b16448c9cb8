"""Parts of a config: the data, the recipe, what the objective is made of, the optimizer, the way to sample."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxdiff.augmentations import AUGMENTATIONS, Augmentation
from jaxdiff.codecs import CODECS
from jaxdiff.conditioning import with_augmentation
from jaxdiff.config import (
    Config,
    Data,
    Optimizer,
    Sampling,
    make_conditioner,
    make_schedule,
    member,
    times,
)
from jaxdiff.data.records import Numbering
from jaxdiff.data.sources import Source, open_dataset
from jaxdiff.denoisers import THRESHOLDS, Denoiser
from jaxdiff.diffusion import Guidance, Method, Recipe
from jaxdiff.errors import UserError
from jaxdiff.guidance import RULES
from jaxdiff.interop.latent import open_autoencoder
from jaxdiff.losses import TIME_SAMPLINGS, WEIGHTINGS
from jaxdiff.models import NetworkOptions
from jaxdiff.models.caption_encoder import Encoded
from jaxdiff.objectives import Setting
from jaxdiff.samplers import SAMPLERS, Sampler
from jaxdiff.schema import decoded
from jaxdiff.training.optimizer import LEARNING_RATES, OPTIMIZERS, make_learning_rate, make_optimizer, projected

PADDED_STEPS = 1000
"""Steps that one compiled sampling program serves on a continuous schedule; more of them compile another."""


def open_data(config: Config, numbering: Numbering = "natural", **changes: Any) -> Source:
    """The images of config.data, checked; fields of `Data` in changes take the place of its own.

    One without a caption counts as corrupt where the conditioner reads captions.

    Raises:
      UserError: see `open_dataset`.
    """
    data = dataclasses.replace(config.data, **changes)
    captioned = make_conditioner(config.diffusion, config.model.num_classes).tokenize is not None
    where = data.name, data.path, data.split, data.resize, data.on_error, data.background, data.allow_empty
    return open_dataset(*where, numbering, captioned)


def make_recipe(config: Config, image_shape: tuple[int, int, int], about: Mapping[str, Any] | None = None) -> Recipe:
    """The model of a config for images of a shape; `about` them, see `make_conditioner`.

    Raises:
      UserError: the network does not fit the images.
    """
    diffusion, model, objective = config.diffusion, config.model, config.objective
    codec = member(CODECS, diffusion, "codec", open_autoencoder=open_autoencoder)
    with user_errors("diffusion.codec: "):
        shape = codec.shape(image_shape)
    conditioner = make_conditioner(diffusion, model.num_classes, about)
    encoder = conditioner.encoder
    if (augmentation := make_augmentation(config.data, diffusion.codec)) is not None and augmentation.size:
        if encoder:
            raise UserError(f"data.augmentation={config.data.augmentation} cannot be told beside captions; use crop")
        conditioner = with_augmentation(conditioner, augmentation.size)
    with user_errors("model."):
        model.check(shape, [*(encoder.says if encoder else conditioner.spec), *objective.extra_cond])
    network = model.module(shape[-1] * (2 if objective.learned_variance else 1))
    network = Encoded(encoder, network) if encoder else network
    parts = make_schedule(diffusion), diffusion.prediction, network, conditioner, codec, shape
    frozen = {} if codec.params is None else {"codec": codec.params}
    how = {"extra_cond": objective.extra_cond, "frozen": frozen, "draws": model.draws}
    return Recipe(*parts, objective.learned_variance, **how)


def make_augmentation(data: Data, codec: str) -> Augmentation | None:
    """How training images are changed.

    Raises:
      UserError: an option that its member refuses, or a codec that has no pixels.
    """
    with user_errors("data.augmentation: "):
        made = member(AUGMENTATIONS, data, "augmentation")
    if made is not None and codec != "pixels":
        raise UserError(f"data.augmentation={data.augmentation} is of pixels; set it to none, or the codec to pixels")
    return made


def make_setting(config: Config, recipe: Recipe) -> Setting:
    """What the objective is made of.

    Raises:
      UserError: the time sampling or the weighting cannot go with the rest of the config.
    """
    diffusion = config.diffusion
    with user_errors():
        weighting = member(WEIGHTINGS, diffusion, "weighting")
        if diffusion.time_sampling == "loss_aware" and recipe.schedule.num_steps is None:
            raise ValueError("time sampling loss_aware is of a discrete schedule's steps; choose linear, cosine, ...")
        drawn = member(TIME_SAMPLINGS, diffusion, "time_sampling", num_steps=recipe.schedule.num_steps)
    augmentation = make_augmentation(config.data, diffusion.codec)
    how = diffusion.class_dropout, config.model.dropout > 0, config.train.batch_size, augmentation
    return Setting(recipe, weighting, drawn, *how)


def make_update(own: Optimizer, steps: int, model: NetworkOptions) -> tuple[Any, Callable[[Any], Any]]:
    """The optax transformation for so many steps of a network, and its learning rate of update n = 0, 1, ...

    Raises:
      UserError: a schedule that does not fit the steps of the run.
    """
    options = decoded(LEARNING_RATES, own.schedule, own.schedule_options)
    rate = {"learning_rate": own.learning_rate, "warmup_steps": own.warmup_steps, "steps": steps}
    rate |= {"schedule": own.schedule, "schedule_options": options}
    options = decoded(OPTIMIZERS, own.name, own.name_options)
    with user_errors("optimizer: "):
        optimizer = make_optimizer(
            **rate, weight_decay=own.weight_decay, clip_norm=own.clip_norm, name=own.name, options=options
        )
        if type(model).project is not NetworkOptions.project:
            optimizer = projected(optimizer, model.project)
        return optimizer, make_learning_rate(**rate)


def make_method(recipe: Recipe, sampling: Sampling, *, trajectory: bool = False) -> Method:
    """How samples of a recipe are drawn: everything of `sampling`.

    With trajectory the times are not padded, since every one of them is shown.

    Raises:
      UserError: an option that its member refuses, or a network that draws nothing.
    """
    if not recipe.draws:
        raise UserError("this run judges pictures by their texts, and draws none; give it to evaluate as --judge")
    schedule = recipe.schedule
    most = schedule.num_steps or -(-sampling.steps // PADDED_STEPS) * PADDED_STEPS
    options = decoded(SAMPLERS, sampling.sampler, sampling.sampler_options)
    if sampling.sampler == "ddpm":
        options = {"variance": sampling.variance, **options}

    def sampler(eta: Any) -> Sampler:
        return SAMPLERS.build(sampling.sampler, {**({} if sampling.eta is None else {"eta": eta}), **options})

    def threshold(denoise: Denoiser) -> Denoiser:
        return member(THRESHOLDS, sampling, "threshold", denoise, schedule=schedule)

    guidance = None
    if sampling.guidance != 1:
        rule = decoded(RULES, sampling.guidance_rule, sampling.guidance_options)
        guidance = Guidance(sampling.guidance, sampling.guidance_rule, rule)
    with user_errors("sampling: ", (ValueError, TypeError)):
        sampler(sampling.eta or 0.0)
        if guidance is not None:  # what it refuses is said before anything is drawn
            guidance.of(unseen, unseen, schedule)
        grid = times(schedule, sampling, None if trajectory else most)
        threshold(unseen)
    return Method(sampler, grid, sampling.eta or 0.0, guidance, threshold)


def unseen(*unused: Any) -> Any:
    """A denoiser to hand to what only wraps it, to hear what it refuses."""
    raise AssertionError("this denoiser is only handed around")


@contextlib.contextmanager
def user_errors(where: str = "", kinds: Any = ValueError) -> Iterator[None]:
    """What members refuse, as errors of the user, after where they are named."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{where}{error}") from None
