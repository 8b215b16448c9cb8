"""A config becomes parts, once and here: recipe, objective's setting, method; and what only they can check."""

from collections.abc import Mapping
from typing import Any

from jaxdiff.augmentations import AUGMENTATIONS, Augmentation
from jaxdiff.codecs import CODECS
from jaxdiff.conditioning import with_augmentation
from jaxdiff.config import Config, Sampling, decoded, make_conditioner, make_schedule, times
from jaxdiff.data.records import Numbering
from jaxdiff.data.sources import Source, open_dataset
from jaxdiff.denoisers import THRESHOLDS, Denoiser
from jaxdiff.diffusion import Guidance, Method, Recipe
from jaxdiff.errors import UserError
from jaxdiff.guidance import RULES
from jaxdiff.interop.latent import open_autoencoder
from jaxdiff.losses import TIME_SAMPLINGS, WEIGHTINGS
from jaxdiff.models import DiT, NetworkOptions
from jaxdiff.models.caption_encoder import Encoded
from jaxdiff.objectives import Objective, Setting
from jaxdiff.samplers import SAMPLERS, Sampler
from jaxdiff.training.optimizer import LEARNING_RATES, OPTIMIZERS, make_learning_rate, make_optimizer, projected

PADDED_STEPS = 1000
"""Steps that one compiled sampling program serves on a continuous schedule; more of them compile another."""


def make_recipe(config: Config, image_shape: tuple[int, int, int], about: Mapping[str, Any] | None = None) -> Recipe:
    """The parts of a config for images of a shape; `about` them, see `make_conditioner`.

    Raises:
      UserError: the network does not fit the images.
    """
    diffusion, model = config.diffusion, config.model
    given = {"open_autoencoder": open_autoencoder}
    codec = CODECS.build(diffusion.codec, decoded(CODECS, diffusion.codec, diffusion.codec_options), **given)
    try:
        shape = codec.shape(image_shape)
    except ValueError as error:
        raise UserError(f"diffusion.codec: {error}") from None
    conditioner = make_conditioner(config, about)
    encoder = conditioner.encoder
    if (augmentation := make_augmentation(config)) is not None and augmentation.size:
        if encoder:
            raise UserError(f"data.augmentation={config.data.augmentation} cannot be told beside captions; use crop")
        conditioner = with_augmentation(conditioner, augmentation.size)
    try:
        model.check(shape, [*(encoder.says if encoder else conditioner.spec), *config.objective.extra_cond])
    except ValueError as error:
        raise UserError(f"model.{error}") from None
    learned = config.objective.learned_variance
    network = model.module(shape[-1] * (2 if learned else 1))
    network = Encoded(encoder, network) if encoder else network
    schedule = make_schedule(diffusion)
    extra = config.objective.extra_cond
    how = {"extra_cond": extra, "frozen": {} if codec.params is None else {"codec": codec.params}}
    return Recipe(schedule, diffusion.prediction, network, conditioner, codec, shape, learned, **how)


def make_augmentation(config: Config) -> Augmentation | None:
    """How training images are changed.

    Raises:
      UserError: an option that its member refuses, or a codec that has no pixels.
    """
    data = config.data
    try:
        options = decoded(AUGMENTATIONS, data.augmentation, data.augmentation_options)
        made = AUGMENTATIONS.build(data.augmentation, options)
    except ValueError as error:
        raise UserError(f"data.augmentation: {error}") from None
    if made is not None and config.diffusion.codec != "pixels":
        raise UserError(f"data.augmentation={data.augmentation} is of pixels; set it to none, or the codec to pixels")
    return made


def open_data(config: Config, numbering: Numbering = "natural") -> Source:
    """The images of config.data, checked; one without a caption counts as corrupt where the conditioner reads captions.

    Raises:
      UserError: see `open_dataset`.
    """
    data, captioned = config.data, make_conditioner(config).tokenize is not None
    where = data.name, data.path, data.split, data.resize, data.on_error, data.background, data.allow_empty
    return open_dataset(*where, numbering, captioned)


def check_data(config: Config, num_classes: int, num_devices: int) -> None:
    """Refuses a config that does not fit the data's classes or the devices.

    Raises:
      UserError: what is wrong and what would be right.
    """
    if wrong := make_conditioner(config).misfit(num_classes):
        raise UserError(wrong)
    if num_devices % config.parallel.fsdp:
        raise UserError(f"parallel.fsdp={config.parallel.fsdp} must divide the {num_devices} devices")
    tensor, heads = config.parallel.tensor, getattr(config.model, "num_heads", None)
    if tensor > 1 and (not isinstance(config.model, DiT) or config.model.num_heads % tensor):
        raise UserError(
            f"parallel.tensor={tensor} must divide the heads of a model dit; this one has {heads or 'none'}"
        )
    num_devices //= tensor
    unit = num_devices * config.train.accumulate
    if config.train.batch_size % unit:
        raise UserError(
            f"train.batch_size={config.train.batch_size} must be a multiple of {unit} "
            f"({num_devices} devices times accumulate {config.train.accumulate})"
        )


def make_objective(config: Config, recipe: Recipe) -> Objective:
    """What a training step minimises.

    Raises:
      UserError: the objective cannot go with the rest of the config.
    """
    try:
        return config.objective.make(make_setting(config, recipe))
    except ValueError as error:
        raise UserError(str(error)) from None


def make_setting(config: Config, recipe: Recipe) -> Setting:
    """What the objective is made of.

    Raises:
      UserError: the time sampling or the weighting cannot go with the rest of the config.
    """
    diffusion = config.diffusion
    try:
        weighting = WEIGHTINGS.build(
            diffusion.weighting, decoded(WEIGHTINGS, diffusion.weighting, diffusion.weighting_options)
        )
        options = decoded(TIME_SAMPLINGS, diffusion.time_sampling, diffusion.time_sampling_options)
        if diffusion.time_sampling == "loss_aware" and recipe.schedule.num_steps is None:
            raise ValueError("time sampling loss_aware is of a discrete schedule's steps; choose linear, cosine, ...")
        drawn = TIME_SAMPLINGS.build(diffusion.time_sampling, options, num_steps=recipe.schedule.num_steps)
        dropout, made = config.model.dropout > 0, make_augmentation(config)
        return Setting(recipe, weighting, drawn, diffusion.class_dropout, dropout, config.train.batch_size, made)
    except ValueError as error:
        raise UserError(str(error)) from None


def optimizer_of(config: Config) -> Any:
    """The optax transformation of config.optimizer.

    Raises:
      UserError: a schedule that does not fit the steps of the run.
    """
    own = config.optimizer
    options = decoded(OPTIMIZERS, own.name, own.name_options)
    how = {"weight_decay": own.weight_decay, "clip_norm": own.clip_norm, "name": own.name, "options": options}
    try:
        optimizer = make_optimizer(**how, **_rate(config))
        has_own = type(config.model).project is not NetworkOptions.project
        return projected(optimizer, config.model.project) if has_own else optimizer
    except ValueError as error:
        raise UserError(f"optimizer: {error}") from None


def learning_rate_of(config: Config) -> Any:
    """The learning rate of update n = 0, 1, ...: warm-up, then its schedule over the steps of the run."""
    return make_learning_rate(**_rate(config))


def _rate(config: Config) -> dict[str, Any]:
    own = config.optimizer
    options = decoded(LEARNING_RATES, own.schedule, own.schedule_options)
    rate = {"learning_rate": own.learning_rate, "warmup_steps": own.warmup_steps}
    return rate | {"schedule": own.schedule, "schedule_options": options, "steps": config.train.steps}


def make_method(config: Config, sampling: Sampling, *, trajectory: bool = False) -> Method:
    """How samples are drawn: everything of `sampling`, on the run's schedule.

    With trajectory the times are not padded, since every one of them is shown.

    Raises:
      UserError: an option that its member refuses, or a network that draws nothing.
    """
    if not config.model.draws:
        raise UserError("this run judges pictures by their texts, and draws none; give it to evaluate as --judge")
    schedule = make_schedule(config.diffusion)
    most = schedule.num_steps or -(-sampling.steps // PADDED_STEPS) * PADDED_STEPS
    options = decoded(SAMPLERS, sampling.sampler, sampling.sampler_options)
    if sampling.sampler == "ddpm":
        options = {"variance": sampling.variance, **options}

    def sampler(eta: Any) -> Sampler:
        return SAMPLERS.build(sampling.sampler, {**({} if sampling.eta is None else {"eta": eta}), **options})

    limits = decoded(THRESHOLDS, sampling.threshold, sampling.threshold_options)

    def threshold(denoise: Denoiser) -> Denoiser:
        return THRESHOLDS.build(sampling.threshold, limits, denoise, schedule=schedule)

    guidance = None
    if sampling.guidance != 1:
        rule = decoded(RULES, sampling.guidance_rule, sampling.guidance_options)
        guidance = Guidance(sampling.guidance, sampling.guidance_rule, rule)
    try:
        sampler(sampling.eta or 0.0)
        if guidance is not None:  # what it refuses is said before anything is drawn
            guidance.of(unseen, unseen, schedule)
        grid = times(config, sampling, None if trajectory else most)
        threshold(unseen)
    except (ValueError, TypeError) as error:
        raise UserError(f"sampling: {error}") from None
    return Method(sampler, grid, sampling.eta or 0.0, guidance, threshold)


def unseen(*unused: Any) -> Any:
    """A denoiser to hand to what only wraps it, to hear what it refuses."""
    raise AssertionError("this denoiser is only handed around")
