"""`jaxdiff sample WORKDIR [--option value ...]`: samples of a run, or images of a text; sample.py is the same."""

import dataclasses
import json
from typing import Literal

import tyro

from jaxdiff.commands import use_compilation_cache
from jaxdiff.commands.parser import FileName, Processes, parse
from jaxdiff.config.arguments import take_members
from jaxdiff.config.files import load_plugins
from jaxdiff.errors import UserError, program
from jaxdiff.parallel import processes
from jaxdiff.schema import Options, decode
from jaxdiff.storage import fetched, place


@dataclasses.dataclass(frozen=True)
class SampleArguments(Processes):
    """Draw samples from a run with its EMA parameters, or images of texts from it or a Stable Diffusion folder."""

    workdir: tyro.conf.Positional[FileName] = ""
    """The run; or a diffusers folder (model_index.json, unet, ...), which needs --prompt; or hf://OWNER/NAME."""
    sampler: str | None = None
    """Sampling method; default: the run's own, and so for the next three."""
    sampler_options: Options = dataclasses.field(default_factory=dict)
    """Its options, such as --sampler-options.order 3."""
    steps: int | None = None
    """Sampling steps."""
    spacing: str | None = None
    """How the steps are spread over time: trailing, leading, linspace, quadratic, log_snr or karras."""
    spacing_options: Options = dataclasses.field(default_factory=dict)
    """Its options, such as --spacing-options.rho 5 of karras."""
    eta: float | None = None
    """Randomness, 0 to 1, of a method that has it."""
    guidance: float | None = None
    """Guidance scale; default of a Stable Diffusion folder 7.5."""
    guidance_rule: str | None = None
    """How the condition is exaggerated: cfg, interval, rescaled, apg, cfg_pp, cfg_zero_star or autoguidance."""
    guidance_options: Options = dataclasses.field(default_factory=dict)
    """Its options, such as --guidance-options.low 0.2."""
    threshold: str | None = None
    """How x_0 estimates are kept in range: none, static or dynamic."""
    threshold_options: Options = dataclasses.field(default_factory=dict)
    """Its options: limit, percentile."""
    like: FileName = ""
    """A PNG of sample.py to draw again, or in another way: what is given beside it counts, WORKDIR too."""
    seed: int = 0
    """Sample i depends on the seed and i alone."""
    num: int | None = None
    """How many; default one of each prompt, else 64, or 4 with --trajectory."""
    classes: tuple[str, ...] = ()
    """Classes to go through in turn, by number or name; default all."""
    batch_size: int | None = None
    """How many to draw at once; default 64, or 4 of a Stable Diffusion folder."""
    trajectory: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw the walk from noise to image instead: x_t and the x_0 estimate."""
    out: FileName = ""
    """FILE.png, .jpg, .webp (a grid), FILE.npz (arrays), a folder (single images); a trajectory: FILE.png or .gif."""
    format: Literal["png", "jpg", "webp"] | None = None
    """Of the single images in a folder; default png, which also holds how each was drawn."""
    scale: int | None = None
    """Enlarge images so many times, pixels as squares; default in a grid: to at least 32 pixels a side."""
    prompt: tuple[str, ...] = ()
    """Texts to make images of, of a run with diffusion.conditioner text or a Stable Diffusion folder."""
    prompts: FileName = ""
    """A file with such a text a line."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    init_image: FileName = ""
    """A picture of the model's size to start from."""
    strength: float = 0.75
    """With --init-image: how much of the walk is made, above 0 to 1; little stays near the picture."""
    mask: FileName = ""
    """With --init-image: a picture of the same size; white is drawn anew, black stays."""
    height: int | None = None
    """Pixels, of a Stable Diffusion folder; default the model's own."""
    width: int | None = None
    """Likewise."""
    lora: FileName = ""
    """FILE of a LoRA to add to a Stable Diffusion folder's weights; LCM's is drawn by --sampler lcm --guidance 1."""
    lora_scale: float = 1.0
    """How much of it."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What to compute in, of a Stable Diffusion folder; default float32 (norms, softmax, last layer always are)."""
    step: int | None = None
    """The checkpoint to draw with, of those kept; default the newest."""
    ema: float | None = None
    """Relative width of the average to draw with, e.g. 0.10, of a run with train.posthoc_ema; default: its own EMA."""
    best: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw with the best checkpoint, of a run with train.best, rather than the newest."""


def _drawn_by(picture: str) -> tuple[SampleArguments, int | None]:
    """The arguments that a picture was drawn by, and which of the samples it is alone, if it is no grid."""
    from jaxdiff import pictures

    text = pictures.text_of(place(picture)) or {}
    try:
        arguments = decode(SampleArguments, {**json.loads(text[pictures.SETTINGS]), "like": picture})
        return arguments, int(text["sample"]) if "sample" in text else None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"--like {picture} does not say how it was drawn; the PNGs of {program('sample')} do") from None


def run(argv: list[str]) -> tuple[int, str]:
    """Draws; the exit code and the line that says where the samples are."""
    argv = load_plugins(argv)[1]

    def parsed(like: SampleArguments) -> SampleArguments:
        default, rest = take_members(like, argv)
        return parse(SampleArguments, rest, program("sample"), default=default)

    arguments, only = parsed(SampleArguments()), None
    if arguments.like:
        default, only = _drawn_by(arguments.like)
        arguments = parsed(default)
    if not arguments.workdir:
        raise UserError("WORKDIR is missing: the folder of a run, or of a Stable Diffusion model; see --help")
    use_compilation_cache()

    def draw() -> tuple[int, str]:
        from jaxdiff.job import sampling as sampling_job

        settings = {name: value for name, value in vars(arguments).items() if name not in {"like", *vars(Processes())}}
        settings["workdir"] = fetched(arguments.workdir)
        for name in ("out", "init_image", "mask", "prompts", "lora"):
            settings[name] = place(settings[name]) if settings[name] else None
        return sampling_job.draw(sampling_job.Request(**settings, only=only))

    return processes.run(arguments.place(), program("sample"), draw)
