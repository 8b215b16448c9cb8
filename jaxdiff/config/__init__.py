"""What a run is: frozen dataclasses, and what makes them valid. Their files are read in config/files.py."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np

from jaxdiff.augmentations import AUGMENTATIONS
from jaxdiff.codecs import CODECS
from jaxdiff.conditioning import CONDITIONERS, Conditioner
from jaxdiff.config.arguments import options_field
from jaxdiff.denoisers import THRESHOLDS
from jaxdiff.errors import UserError
from jaxdiff.evaluation.measure import METRICS
from jaxdiff.family import Family
from jaxdiff.guidance import RULES
from jaxdiff.losses import TIME_SAMPLINGS, WEIGHTINGS
from jaxdiff.models import Model, NetworkOptions
from jaxdiff.objectives import Denoising, ObjectiveOptions
from jaxdiff.process import PREDICTIONS
from jaxdiff.samplers import SAMPLERS
from jaxdiff.schedules import SCHEDULES, Schedule
from jaxdiff.schema import Between, Options, decode, decoded, encode, out_of_range
from jaxdiff.times import TIME_GRIDS, time_grid
from jaxdiff.training.hooks import parse_every
from jaxdiff.training.optimizer import LEARNING_RATES, OPTIMIZERS


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images to learn from."""

    name: str = "digits"
    """digits, fashion_mnist, folder, webdataset (tar shards), or the name of a prepared TFDS data set."""
    path: str = ""
    """The folder it lies in; not needed for digits."""
    split: str = "train"
    """Which part of it."""
    flip: bool = False
    """Mirror images left to right at random."""
    augmentation: str = "none"
    """How else they are changed, see jaxdiff.augmentations: none, crop or edm."""
    augmentation_options: Options = dataclasses.field(default_factory=dict)
    """Options of the augmentation, such as p of edm."""
    resize: Annotated[int | tuple[int, int] | None, Between(1, 4096)] = None
    """Bring images to this many pixels a side, or height and width; None keeps their size, then one for all."""
    on_error: Literal["stop", "substitute", "skip"] = "stop"
    """What corrupt images do: stop the run with their names, give their place to the next good one, or be left out."""
    background: str = "white"
    """Colour that transparent images are laid on: a name such as white, or #rrggbb."""
    allow_empty: bool = False
    """Let a class folder hold no images, and keep its number."""


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The noise process, and how a network is trained on it."""

    schedule: str = "cosine"
    """Noise schedule, see jaxdiff.schedules: linear, cosine, flow, edm, ..."""
    schedule_options: Options = dataclasses.field(default_factory=dict)
    """Options of the schedule, such as shift of flow."""
    num_steps: Annotated[int, Between(1, 10_000)] = 1000
    """Steps T of a schedule that is a table; at most 10000, where float32 times are still exact."""
    zero_snr: bool = False
    """Rescale such a schedule so that nothing of the image is left at t = 1."""
    prediction: str = "noise"
    """What the network puts out: noise, x_0, v, flow, score or edm, see jaxdiff.process."""
    weighting: str = "simple"
    """Loss weights by noise level, see jaxdiff.losses."""
    weighting_options: Options = dataclasses.field(default_factory=dict)
    """Options of the weighting, such as gamma of min_snr."""
    time_sampling: str = "uniform"
    """Which times to train at, see jaxdiff.losses: uniform, logit_normal, log_normal, loss_aware, ..."""
    time_sampling_options: Options = dataclasses.field(default_factory=dict)
    """Options of the time sampling, such as mean and std of logit_normal."""
    class_dropout: Annotated[float, Between(0, 1)] = 0.1
    """How often the condition is hidden in training, which guidance needs."""
    conditioner: str = "classes"
    """What the network is told, see jaxdiff.conditioning: classes, where the model has them, text, or nothing."""
    conditioner_options: Options = dataclasses.field(default_factory=dict)
    """Options of the conditioner, such as max_tokens of text."""
    codec: str = "pixels"
    """What of an image is diffused, see jaxdiff.codecs."""
    codec_options: Options = dataclasses.field(default_factory=dict)
    """Options of the codec."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How the parameters follow the gradient."""

    name: str = "adamw"
    """adamw, adam, lion, adafactor, muon or sgd, see jaxdiff.training.optimizer."""
    name_options: Options = dataclasses.field(default_factory=dict)
    """Options of the optimizer, such as b2 of adamw."""
    schedule: str = "constant"
    """The learning rate after warm-up: constant, cosine, linear, inverse_sqrt or wsd."""
    schedule_options: Options = dataclasses.field(default_factory=dict)
    """Options of that schedule, such as end of cosine."""
    learning_rate: Annotated[float, Between(1e-12, 10)] = 2e-4
    """Learning rate after warm-up."""
    warmup_steps: Annotated[int, Between(0, 10**9)] = 1000
    """Steps over which it rises from 0."""
    weight_decay: Annotated[float, Between(0, 10)] = 0.0
    """Decoupled weight decay."""
    clip_norm: Annotated[float, Between(1e-9, 1e9)] = 1.0
    """Gradients are scaled down to this global norm."""


@dataclasses.dataclass(frozen=True)
class Train:
    """How long, in what portions, and what is left behind."""

    steps: Annotated[int, Between(1, 10**9)] = 100_000
    """Optimiser steps in all."""
    batch_size: Annotated[int, Between(1, 1_000_000)] = 128
    """Images a step, over all devices."""
    accumulate: Annotated[int, Between(1, 100_000)] = 1
    """Parts the batch is computed in, one after another, to save memory."""
    steps_per_call: Annotated[int, Between(1, 10_000)] = 1
    """Steps that a device does without asking the host again: spares small networks its time."""
    checkpoint_every: Annotated[int | str, Between(1, 10**9)] = 5000
    """Steps between checkpoints, or a duration such as 10m."""
    keep: Annotated[int, Between(1, 10_000)] = 3
    """Checkpoints kept, the newest."""
    keep_every: Annotated[int, Between(0, 10**9)] = 0
    """Keep a checkpoint of every multiple of so many steps for good; 0 for none."""
    log_every: Annotated[int, Between(1, 10**9)] = 100
    """Steps between lines of metrics.jsonl."""
    loggers: tuple[str, ...] = ("jsonl", "tensorboard")
    """Where those lines go: jsonl, tensorboard, csv, wandb, mlflow."""
    sample_every: Annotated[int | str, Between(0, 10**9)] = 5000
    """Steps between picture grids, or a duration; 0 for none."""
    evaluate_every: Annotated[int | str, Between(0, 10**9)] = 0
    """Steps between evaluations, or a duration; 0 for none."""
    evaluate_metrics: tuple[str, ...] = ("validation_loss",)
    """What is measured then: validation_loss, and metrics of samples as of jaxdiff evaluate: fid, kid, ..."""
    evaluate_num: Annotated[int, Between(1, 10**7)] = 1000
    """Samples drawn for the metrics, and held-out images for the loss (at most)."""
    evaluate_features: str = ""
    """What fid and its like are measured in, as --features of jaxdiff evaluate."""
    evaluate_path: str = ""
    """Where the held-out images lie; default: the test split of the data."""
    best: str = ""
    """One of evaluate_metrics: the checkpoint where it was best is kept, in the workdir's folder best."""
    patience: Annotated[int, Between(0, 10**9)] = 0
    """Evaluations without a better one after which the run ends early; 0 for never."""
    ema_decay: Annotated[float, Between(0, 0.9999999)] = 0.9999
    """Decay of the parameters' moving average, which is what samples are drawn from."""
    posthoc_ema: tuple[float, ...] = ()
    """Relative widths of averages to track, e.g. 0.05 0.10; sample.py --ema then makes one of any width from them."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How pictures are drawn, while training and by default in sample.py."""

    sampler: str = "ddim"
    """Sampling method, see jaxdiff.samplers."""
    sampler_options: Options = dataclasses.field(default_factory=dict)
    """Options of the method, such as order of unipc."""
    steps: Annotated[int, Between(1, 10_000)] = 50
    """Sampling steps."""
    eta: Annotated[float | None, Between(0, 1)] = None
    """Randomness of a method that has it, 0 to 1; None is the method's own: 0 for ddim, 1 for the SDE methods."""
    variance: Literal["small", "large", "learned"] = "small"
    """Variance of a DDPM step: beta-tilde, beta, or what a network of the objective hybrid says."""
    guidance: Annotated[float, Between(0, 1000)] = 1.0
    """Guidance scale: 1 is plain conditional sampling."""
    guidance_rule: str = "cfg"
    """How the condition is exaggerated, see jaxdiff.guidance: cfg, interval, rescaled, apg, autoguidance, ..."""
    guidance_options: Options = dataclasses.field(default_factory=dict)
    """Options of the rule, such as low and high of interval."""
    spacing: str = "trailing"
    """How the steps are spread over time: trailing, leading, linspace, quadratic, log_snr or karras."""
    spacing_options: Options = dataclasses.field(default_factory=dict)
    """Options of the spacing, such as rho of karras."""
    threshold: str = "static"
    """Keep x_0 estimates in range: none, static (clipped) or dynamic (clipped to a percentile and rescaled)."""
    threshold_options: Options = dataclasses.field(default_factory=dict)
    """Options of the threshold: limit, percentile."""


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How the devices share the work."""

    mode: Literal["mesh", "pmap"] = "mesh"
    """One sharded program, or the same step under jax.pmap."""
    fsdp: Annotated[int, Between(1, 100_000)] = 1
    """Devices over which parameters are split (mesh only)."""
    tensor: Annotated[int, Between(1, 100_000)] = 1
    """Devices over which heads and MLPs of transformer blocks are split (mesh only)."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A run. Fields may be overridden on the command line by their dotted names."""

    seed: Annotated[int, Between(0, 2**32 - 1)] = 0
    """Decides initial parameters, noise, order of the data and pictures."""
    workdir: str = ""
    """Where the run keeps everything; default runs/CONFIG."""
    plugins: tuple[str, ...] = ()
    """Files of members of one's own that were named by --plugin; noted here, and never run from here."""
    init: str = ""
    """A run or an exported folder whose weights a new run begins with, as far as their shapes are those of its own."""
    init_weights: Literal["ema", "raw"] = "ema"
    """Which of its weights: the average, or those that were trained."""
    data: Data = Data()
    model: NetworkOptions = dataclasses.field(default_factory=Model)
    diffusion: Diffusion = Diffusion()
    objective: ObjectiveOptions = dataclasses.field(default_factory=Denoising)
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    sampling: Sampling = Sampling()
    parallel: Parallel = Parallel()


def validate(config: Config) -> Config:
    """Refuses what cannot work, before anything is compiled or written; returns the config.

    What depends on the images or the machine is checked in `jaxdiff.assembly.recipe`.

    Raises:
      UserError: what is wrong and what would be right, all of it in one line.

    >>> validate(Config(sampling=Sampling(guidance=2.0)))
    Traceback (most recent call last):
    ...
    jaxdiff.errors.UserError: sampling.guidance=2.0 needs a condition: set model.num_classes, or guidance to 1
    """
    decode(Config, encode(config))  # the types, which Python itself does not check
    problems = [*out_of_range(config), *_problems(config)]
    if problems:
        raise UserError("; ".join(problems))
    return config


def member(family: Family, group: Any, field: str, /, *args: Any, **given: Any) -> Any:
    """The member that a field of a group of the config names, with its options; see `Family.build`.

    Raises:
      ValueError: what cannot be, and what could.
    """
    name = getattr(group, field)
    return family.build(name, decoded(family, name, getattr(group, options_field(field))), *args, **given)


def make_schedule(diffusion: Diffusion) -> Schedule:
    """The noise schedule.

    Raises:
      ValueError: what cannot be, and what could.
    """
    schedule = member(SCHEDULES, diffusion, "schedule", num_steps=diffusion.num_steps)
    if not diffusion.zero_snr:
        return schedule
    if schedule.num_steps is None:
        raise ValueError(f"zero_snr is for schedules that are tables; {diffusion.schedule} has none")
    return schedule.rescale_zero_snr()


def make_conditioner(diffusion: Diffusion, num_classes: int, about: Mapping[str, Any] | None = None) -> Conditioner:
    """What makes cond of a batch.

    Args:
      diffusion: names it.
      num_classes: of the network.
      about: what is known of the data: names of the classes, captions, or known, see `Conditioner`.

    Raises:
      ValueError: what cannot be, and what could.
    """
    return member(CONDITIONERS, diffusion, "conditioner", num_classes=num_classes, **(about or {}))


def times(schedule: Schedule, sampling: Sampling, max_steps: int | None = None) -> np.ndarray:
    """The time grid of sampling, padded to max_steps; see `jaxdiff.time_grid`."""
    options = decoded(TIME_GRIDS, sampling.spacing, sampling.spacing_options)
    return time_grid(schedule, sampling.steps, sampling.spacing, max_steps=max_steps, **options)


_FAMILIES: tuple[tuple[str, str, Family], ...] = (  # group, field, family; its options are in FIELD_options
    ("data", "augmentation", AUGMENTATIONS),
    ("diffusion", "weighting", WEIGHTINGS),
    ("diffusion", "time_sampling", TIME_SAMPLINGS),
    ("diffusion", "codec", CODECS),
    ("optimizer", "name", OPTIMIZERS),
    ("optimizer", "schedule", LEARNING_RATES),
    ("sampling", "sampler", SAMPLERS),
    ("sampling", "guidance_rule", RULES),
    ("sampling", "threshold", THRESHOLDS),
)


def _problems(config: Config) -> Iterator[str]:
    diffusion, sampling, train = config.diffusion, config.sampling, config.train
    for group, field, family in _FAMILIES:
        part = getattr(config, group)
        try:
            decoded(family, getattr(part, field), getattr(part, options_field(field)))
        except ValueError as error:
            yield f"{group}.{field}: {error}"
    conditioner = schedule = None
    try:
        conditioner = make_conditioner(diffusion, config.model.num_classes)
    except ValueError as error:
        yield f"diffusion.conditioner: {error}"
    try:
        schedule = make_schedule(diffusion)
    except (ValueError, TypeError) as error:
        yield f"diffusion.schedule: {error}"
    if diffusion.prediction not in PREDICTIONS:
        yield f"unknown diffusion.prediction {diffusion.prediction!r}; choose one of {', '.join(PREDICTIONS)}"
    elif diffusion.zero_snr and PREDICTIONS[diffusion.prediction].needs_signal:
        yield (
            f"diffusion.zero_snr leaves no signal at t = 1, where prediction {diffusion.prediction!r} divides by 0; "
            "set diffusion.prediction to v or x_0"
        )
    if schedule is not None:
        yield from _sampling_problems(config, schedule)
    if config.model.draws != config.objective.draws:
        right = "the objective contrastive" if config.objective.draws else "a model of kind two_towers"
        yield f"a judge of pictures and texts, and what draws, are trained apart: this one needs {right}"
    elif not config.model.draws and train.evaluate_every not in (0, "0"):
        yield "train.evaluate_every: a model of kind two_towers draws nothing; leave it at 0"
    if sampling.guidance != 1 and sampling.guidance_rule != "autoguidance":
        if conditioner is not None and not conditioner.spec:
            yield f"sampling.guidance={sampling.guidance} needs a condition: set model.num_classes, or guidance to 1"
        elif not diffusion.class_dropout:
            yield f"sampling.guidance={sampling.guidance} needs diffusion.class_dropout above 0 (0.1 is usual)"
    legal = ["validation_loss", *METRICS.members]
    if unknown := [name for name in train.evaluate_metrics if name not in legal]:
        yield f"train.evaluate_metrics: {unknown[0]!r} is not one of {', '.join(legal)}"
    if train.best and (train.best not in train.evaluate_metrics or train.evaluate_every in (0, "0")):
        yield f"train.best={train.best} must be one of train.evaluate_metrics, measured by train.evaluate_every"
    if train.patience and not train.best:
        yield f"train.patience={train.patience} is of the metric that train.best names; name one"
    for name in ("checkpoint_every", "sample_every", "evaluate_every"):
        try:
            parse_every(getattr(train, name))
        except ValueError as error:
            yield f"train.{name}: {error}"
    if not all(0 < width <= 0.2886 for width in train.posthoc_ema):
        yield f"train.posthoc_ema={train.posthoc_ema} must be relative widths in 0..0.2886; 0.05 and 0.10 are usual"
    if train.posthoc_ema and not str(train.checkpoint_every).strip().isdecimal():
        yield (
            f"train.posthoc_ema keeps its averages at steps that are the same in every run; set "
            f"train.checkpoint_every to a number of steps, not {train.checkpoint_every}"
        )
    if train.batch_size % train.accumulate:
        yield f"train.batch_size={train.batch_size} must be a multiple of train.accumulate={train.accumulate}"
    for name in ("fsdp", "tensor"):
        if config.parallel.mode == "pmap" and getattr(config.parallel, name) != 1:
            yield f"parallel.{name}={getattr(config.parallel, name)} needs parallel.mode mesh"


def _sampling_problems(config: Config, schedule: Schedule) -> Iterator[str]:
    """What of the sampling does not fit the schedule."""
    sampling = config.sampling
    if schedule.num_steps is not None and sampling.steps > schedule.num_steps:
        yield f"sampling.steps={sampling.steps} exceeds the process; use at most {schedule.num_steps}"
        return
    try:
        times(schedule, sampling)
    except (ValueError, TypeError) as error:
        yield f"sampling.spacing: {error}"
    random = [name for name in SAMPLERS.members if "eta" in SAMPLERS.options(name)]
    if sampling.eta is not None and sampling.sampler not in random:
        yield f"sampling.eta={sampling.eta} means nothing to {sampling.sampler}, only to {', '.join(random)}"
    if sampling.sampler == "mean_flow":
        if "r" not in config.objective.extra_cond:
            yield "sampling.sampler mean_flow needs a network of two times: train --objective mean_flow or shortcut"
        elif sampling.guidance != 1:
            yield f"sampling.guidance={sampling.guidance}: mean_flow's is trained in (objective.guidance); set it to 1"
    if sampling.variance != "small" and sampling.sampler != "ddpm":
        named = f"sampling.variance {sampling.variance!r}"
        yield f"{named} means nothing to {sampling.sampler}; use ddpm, or variance small"
    if sampling.variance == "learned" and not config.objective.learned_variance:
        yield "sampling.variance 'learned' needs a network that learns it: train with --objective hybrid"
    if sampling.variance == "large" and sampling.spacing == "leading":
        yield (
            "sampling.variance 'large' needs a grid from t = 1, and 'leading' starts below it; "
            "set sampling.spacing to trailing, or variance to small"
        )


def flat(config: Any) -> dict[str, Any]:
    """{dotted name: value} of every field, options among them.

    >>> flat(Config())["train.batch_size"], flat(Config())["model.kind"]
    (128, 'unet')
    """
    return dict(_flatten(encode(config), ""))


def _flatten(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
