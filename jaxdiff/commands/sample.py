"""`jaxdiff sample WORKDIR [--option value ...]`: samples of a run, or images of a text; sample.py is the same."""

import dataclasses
from typing import Literal, get_args

import tyro

from jaxdiff.commands import use_compilation_cache
from jaxdiff.commands.parser import FileName, Processes, parse
from jaxdiff.config import Method
from jaxdiff.errors import UserError, program
from jaxdiff.places import place
from jaxdiff.training import processes


@dataclasses.dataclass(frozen=True)
class SampleArguments(Processes):
    """Draw samples from a run with its EMA parameters, or images of a text from a Stable Diffusion folder."""

    workdir: tyro.conf.Positional[FileName]
    """The run; or, with --prompt, a diffusers folder (model_index.json, unet, vae, text_encoder, ...)."""
    sampler: str | None = None
    """Sampling method; default: the run's own, and so for the next three."""
    steps: int | None = None
    """Sampling steps."""
    eta: float | None = None
    """Randomness, 0 to 1, of a method that has it."""
    guidance: float | None = None
    """Classifier-free guidance scale; default with --prompt 7.5."""
    seed: int = 0
    """Sample i depends on the seed and i alone."""
    num: int | None = None
    """How many; default 64, or 4 with --trajectory, 1 with --prompt."""
    classes: tuple[int, ...] = ()
    """Classes to go through in turn; default all."""
    batch_size: int | None = None
    """How many to draw at once; default 64, or 4 with --prompt."""
    trajectory: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw the walk from noise to image instead: x_t and the x_0 estimate."""
    out: FileName = ""
    """FILE.png (a grid), FILE.npz (arrays), a folder (single PNGs); with --trajectory FILE.png or FILE.gif."""
    prompt: str | None = None
    """A text to make images of."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    height: int | None = None
    """Pixels, with --prompt; default the model's own."""
    width: int | None = None
    """Likewise."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What to compute in, with --prompt; default float32 (norms, softmax and the last layer always are)."""
    ema: float | None = None
    """Relative width of the average to draw with, e.g. 0.10, of a run with train.posthoc_ema; default: its own EMA."""


def run(argv: list[str]) -> tuple[int, str]:
    """Draws; the exit code and the line that says where the samples are."""
    arguments = parse(SampleArguments, argv, program("sample"))
    methods = get_args(Method)
    if arguments.sampler is not None and arguments.sampler not in methods:
        raise UserError(f"unknown sampler {arguments.sampler!r}; choose one of {', '.join(methods)}")
    use_compilation_cache()

    def draw() -> tuple[int, str]:
        from jaxdiff import prompt_job, sampling_job

        asked = {name: value for name, value in vars(arguments).items() if name not in vars(Processes())}
        asked |= {"workdir": place(arguments.workdir), "out": place(arguments.out) if arguments.out else None}
        job = prompt_job if prompt_job.takes_prompt(asked["workdir"]) else sampling_job
        return job.draw(sampling_job.Request(**asked))

    return processes.run(arguments.place(), program("sample"), draw)
