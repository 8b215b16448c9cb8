"""What a run is: frozen dataclasses, and what makes them valid. Their files are read in config_files.py."""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, Literal

from jaxdiff import samplers
from jaxdiff.errors import UserError
from jaxdiff.schema import decode

Method = Literal[
    "ddpm",
    "ddim",
    "euler",
    "heun",
    "dpm_solver_1",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpmpp_2s",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "unipc",
    "deis",
    "plms",
    "lcm",
]


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images to learn from."""

    name: str = "digits"
    """digits, fashion_mnist, folder, or the name of a prepared TFDS data set."""
    path: str = ""
    """The folder it lies in; not needed for digits."""
    split: str = "train"
    """Which part of it."""
    flip: bool = False
    """Mirror images left to right at random."""
    resize: int | None = None
    """Bring images to this many pixels a side; None keeps their size, which must then be one for all."""
    on_error: Literal["stop", "substitute"] = "stop"
    """What a corrupt image does: stop the run with its name, or give its place to the next good one."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The U-Net, see jaxdiff.models.UNet."""

    patch: int = 1
    """Side of the squares of pixels that the network sees as one pixel each; 2 makes it four times cheaper."""
    channels: int = 128
    """Channels at full resolution, a multiple of 4."""
    channel_mults: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each level as multiples; each level has half the resolution of the one before."""
    blocks: int = 2
    """Residual blocks a level."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Heights, in pixels (with patch, in patches), at which there is self-attention."""
    head_dim: int | None = None
    """Channels an attention head; None for a single head."""
    num_heads: int | None = None
    """Attention heads at any width, in place of head_dim."""
    dropout: float = 0.0
    """Dropout rate in residual blocks."""
    num_classes: int = 0
    """Classes to condition on; 0 for an unconditional model."""
    time_injection: Literal["add", "scale_shift"] = "add"
    """How time enters: added (DDPM) or as scale and shift (ADM)."""
    resample: Literal["conv", "resblock"] = "conv"
    """Strided convolutions (DDPM) or resampling residual blocks (ADM)."""
    downsample_padding: Literal["end", "both"] = "end"
    """Padding of strided convolutions: after the image (DDPM) or around it (ADM)."""
    norm_groups: int | None = None
    """Groups of every GroupNorm; None for as many as divide the channels, up to 32 and no less than 4 wide."""
    norm_eps: float = 1e-6
    """Epsilon of every GroupNorm."""
    frequency_shift: Literal[1, 0] = 1
    """Time embedding's lowest frequency: 1 as DDPM, 0 as ADM."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What to compute in; parameters are float32."""
    remat: bool = False
    """Compute activations again in the backward pass rather than keep them."""
    winograd: bool = False
    """Convolve by Winograd's algorithm: quicker on CPUs, for nothing else."""


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The noise process and the loss."""

    schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid"] = "cosine"
    """Noise schedule."""
    num_steps: int = 1000
    """Steps T of the process; at most 10000, where float32 times are still exact."""
    zero_snr: bool = False
    """Rescale the schedule so that nothing of the image is left at t = 1."""
    prediction: Literal["noise", "x_0", "v"] = "noise"
    """What the network puts out."""
    weighting: Literal["simple", "min_snr"] = "simple"
    """Loss weights by noise level."""
    time_sampling: Literal["uniform", "loss_aware"] = "uniform"
    """Which times to train at: all alike, or those more often whose loss was large lately, at equal expectation."""
    class_dropout: float = 0.1
    """How often the class is hidden in training, which guidance needs."""


@dataclasses.dataclass(frozen=True)
class Consistency:
    """A run tuned for sampling in 1 to 4 steps with lcm, see jaxdiff.losses.consistency_loss."""

    start: str = ""
    """Workdir of the run to begin with, of the same network and process; none: learn to denoise."""
    teacher: bool = True
    """Distil that run; false: learn from the images alone."""
    halve_every: int = 400
    """Steps after which the gap between the two times is halved, from half of the way to the image on."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up."""

    learning_rate: float = 2e-4
    """Learning rate after warm-up."""
    warmup_steps: int = 1000
    """Steps over which it rises from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""


@dataclasses.dataclass(frozen=True)
class Train:
    """How long, in what portions, and what is left behind."""

    steps: int = 100_000
    """Optimiser steps in all."""
    batch_size: int = 128
    """Images a step, over all devices."""
    accumulate: int = 1
    """Parts the batch is computed in, one after another, to save memory."""
    steps_per_call: int = 1
    """Steps that a device does without asking the host again: spares small networks its time."""
    checkpoint_every: int = 5000
    """Steps between checkpoints."""
    keep: int = 3
    """Checkpoints kept."""
    log_every: int = 100
    """Steps between lines of metrics.jsonl."""
    sample_every: int = 5000
    """Steps between picture grids; 0 for none."""
    ema_decay: float = 0.9999
    """Decay of the parameters' moving average, which is what samples are drawn from."""
    posthoc_ema: tuple[float, ...] = ()
    """Relative widths of averages to track, e.g. 0.05 0.10; sample.py --ema then makes one of any width from them."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How pictures are drawn, while training and by default in sample.py."""

    sampler: Method = "ddim"
    """Sampling method, see jaxdiff.samplers."""
    steps: int = 50
    """Sampling steps."""
    eta: float | None = None
    """Randomness of a method that has it, 0 to 1; None is the method's own: 0 for ddim, 1 for the SDE methods."""
    variance: Literal["small", "large"] = "small"
    """Variance of a DDPM step: beta-tilde or beta."""
    guidance: float = 1.0
    """Classifier-free guidance scale: 1 is plain conditional sampling."""
    spacing: Literal["trailing", "leading", "linspace", "quadratic", "log_snr", "karras"] = "trailing"
    """How the steps are spread over time."""
    threshold: Literal["none", "static", "dynamic"] = "static"
    """Keep x_0 estimates in range: clipped, or clipped to a percentile and rescaled."""


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How the devices share the work."""

    mode: Literal["mesh", "pmap"] = "mesh"
    """One sharded program, or the same step under jax.pmap."""
    fsdp: int = 1
    """Devices over which parameters are split (mesh only)."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A run. Fields may be overridden on the command line by their dotted names."""

    seed: int = 0
    """Decides initial parameters, noise, order of the data and pictures."""
    workdir: str = ""
    """Where the run keeps everything; default runs/CONFIG."""
    data: Data = Data()
    model: Model = Model()
    diffusion: Diffusion = Diffusion()
    consistency: Consistency = Consistency()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    sampling: Sampling = Sampling()
    parallel: Parallel = Parallel()


_RANGES = {  # dotted name: lowest, highest
    "seed": (0, 2**32 - 1),
    "data.resize": (1, 4096),
    "model.patch": (1, 64),
    "model.channels": (4, 8192),
    "model.blocks": (1, 64),
    "model.head_dim": (1, 8192),
    "model.num_heads": (1, 8192),
    "model.norm_groups": (1, 8192),
    "model.norm_eps": (1e-12, 0.1),
    "model.dropout": (0, 0.99),
    "model.num_classes": (0, 1_000_000),
    "diffusion.num_steps": (1, 10_000),
    "diffusion.class_dropout": (0, 1),
    "consistency.halve_every": (1, 10**9),
    "optimizer.learning_rate": (1e-12, 10),
    "optimizer.warmup_steps": (0, 10**9),
    "optimizer.weight_decay": (0, 10),
    "optimizer.clip_norm": (1e-9, 1e9),
    "train.steps": (1, 10**9),
    "train.batch_size": (1, 1_000_000),
    "train.accumulate": (1, 100_000),
    "train.steps_per_call": (1, 10_000),
    "train.checkpoint_every": (1, 10**9),
    "train.keep": (1, 10_000),
    "train.log_every": (1, 10**9),
    "train.sample_every": (0, 10**9),
    "train.ema_decay": (0, 0.9999999),
    "sampling.steps": (1, 10_000),
    "sampling.eta": (0, 1),
    "sampling.guidance": (0, 1000),
    "parallel.fsdp": (1, 100_000),
}


def validate(config: Config) -> Config:
    """Refuses what cannot work, before anything is compiled or written; returns the config.

    What depends on the images or the machine is checked in `jaxdiff.builders.check_run`.

    Raises:
      UserError: what is wrong and what would be right, all of it in one line.

    >>> validate(Config(sampling=Sampling(guidance=2.0)))
    Traceback (most recent call last):
    ...
    jaxdiff.errors.UserError: sampling.guidance=2.0 needs classes: set model.num_classes, or guidance to 1
    """
    decode(Config, dataclasses.asdict(config))  # the types, which Python itself does not check
    problems = list(_problems(config))
    if problems:
        raise UserError("; ".join(problems))
    return config


def _problems(config: Config) -> Iterator[str]:
    fields = flat(config)
    for name, (low, high) in _RANGES.items():
        value = fields[name]
        if value is not None and not low <= value <= high:
            yield f"{name}={value} must lie in {low}..{high}"
    mults = config.model.channel_mults
    if not 1 <= len(mults) <= 10 or not all(1 <= m <= 64 for m in mults):
        yield f"model.channel_mults={mults} must be 1 to 10 numbers in 1..64"
    diffusion, sampling, train = config.diffusion, config.sampling, config.train
    smallest = {"linear": 21, "scaled_linear": 13}.get(diffusion.schedule, 2 if diffusion.zero_snr else 1)
    if diffusion.num_steps < smallest:
        yield (
            f"diffusion.num_steps={diffusion.num_steps} makes a beta of the {diffusion.schedule} schedule "
            f"reach 1; use {smallest} or more, or the cosine schedule"
        )
    if diffusion.zero_snr and diffusion.prediction == "noise":
        yield (
            "diffusion.zero_snr leaves no signal at t = 1, where prediction 'noise' divides by 0; "
            "set diffusion.prediction to v or x_0"
        )
    if config.consistency.start and diffusion.time_sampling != "uniform":
        yield "consistency.start draws times in its own way; leave diffusion.time_sampling at uniform"
    if config.consistency.start and diffusion.prediction == "x_0":
        yield "consistency.start needs diffusion.prediction v or noise: with 'x_0' a clean image does not stay as it is"
    if sampling.steps > diffusion.num_steps:
        yield f"sampling.steps={sampling.steps} exceeds the process; use at most {diffusion.num_steps}"
    random = [name for name, make in samplers.METHODS.items() if "eta" in inspect.signature(make).parameters]
    if sampling.eta is not None and sampling.sampler not in random:
        yield f"sampling.eta={sampling.eta} means nothing to {sampling.sampler}, only to {', '.join(random)}"
    if sampling.variance == "large" and sampling.sampler != "ddpm":
        yield f"sampling.variance 'large' means nothing to {sampling.sampler}; use ddpm, or variance small"
    if sampling.variance == "large" and sampling.spacing == "leading":
        yield (
            "sampling.variance 'large' needs a grid from t = 1, and 'leading' starts below it; "
            "set sampling.spacing to trailing, or variance to small"
        )
    if sampling.guidance != 1 and not config.model.num_classes:
        yield f"sampling.guidance={sampling.guidance} needs classes: set model.num_classes, or guidance to 1"
    elif sampling.guidance != 1 and not diffusion.class_dropout:
        yield f"sampling.guidance={sampling.guidance} needs diffusion.class_dropout above 0 (0.1 is usual)"
    if not all(0 < width <= 0.2886 for width in train.posthoc_ema):
        yield f"train.posthoc_ema={train.posthoc_ema} must be relative widths in 0..0.2886; 0.05 and 0.10 are usual"
    if train.batch_size % train.accumulate:
        yield f"train.batch_size={train.batch_size} must be a multiple of train.accumulate={train.accumulate}"
    if config.parallel.mode == "pmap" and config.parallel.fsdp != 1:
        yield f"parallel.fsdp={config.parallel.fsdp} needs parallel.mode mesh"


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of every field.

    >>> flat(Config())["train.batch_size"]
    128
    """
    out = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_group = dataclasses.is_dataclass(value)
        out |= flat(value, f"{prefix}{field.name}.") if is_group else {prefix + field.name: value}
    return out
