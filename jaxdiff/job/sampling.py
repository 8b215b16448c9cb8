"""Drawing samples, from a run or from a Stable Diffusion folder alike."""

import dataclasses
import difflib
import io
import json
import mimetypes
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff import pictures
from jaxdiff.assembly.recipe import make_method, unseen
from jaxdiff.conditioning import Conditioner
from jaxdiff.config import Sampling, validate
from jaxdiff.data.decoding import decode_image, open_image
from jaxdiff.denoisers import THRESHOLDS
from jaxdiff.diffusion import Guidance, Method, Recipe, make_draw, strength_times
from jaxdiff.errors import UserError, program
from jaxdiff.guidance import RULES
from jaxdiff.interop.lora import read_lora
from jaxdiff.interop.pipeline import INDEX, read_pipeline
from jaxdiff.interop.stable_diffusion import chosen, padded_times, recipe_of
from jaxdiff.job.drawing import draw_batches
from jaxdiff.job.trained import load, with_sampling
from jaxdiff.job.weak_model import weak_params
from jaxdiff.keys import purpose_key
from jaxdiff.parallel import make_mesh, processes
from jaxdiff.samplers import SAMPLERS
from jaxdiff.schema import Options, decoded
from jaxdiff.storage import Place, check_writable
from jaxdiff.times import time_grid

SUFFIXES = {"": "a folder", **dict.fromkeys(pictures.FORMATS, "a grid")}
SUFFIXES |= {".npz": "arrays", ".gif": "an animated trajectory"}
WALKS = 4  # samples in a trajectory, unless --num says otherwise
GUIDANCE, STEPS = 7.5, 50  # of a Stable Diffusion folder, unless the request says otherwise, as in diffusers


@dataclasses.dataclass(frozen=True)
class Request:
    """What sample.py was asked for; None is the run's own or the usual choice."""

    workdir: Place
    sampler: str | None = None
    sampler_options: Options = dataclasses.field(default_factory=dict)
    steps: int | None = None
    eta: float | None = None
    guidance: float | None = None
    guidance_rule: str | None = None
    guidance_options: Options = dataclasses.field(default_factory=dict)
    spacing: str | None = None
    spacing_options: Options = dataclasses.field(default_factory=dict)
    threshold: str | None = None
    threshold_options: Options = dataclasses.field(default_factory=dict)
    seed: int = 0
    num: int | None = None
    classes: tuple[str, ...] = ()
    batch_size: int | None = None
    trajectory: bool = False
    out: Place | None = None
    format: Literal["png", "jpg", "webp"] | None = None
    scale: int | None = None
    prompt: tuple[str, ...] = ()
    prompts: Place | None = None
    negative_prompt: str = ""
    init_image: Place | None = None
    strength: float = 0.75
    mask: Place | None = None
    height: int | None = None
    width: int | None = None
    lora: Place | None = None
    lora_scale: float = 1.0
    ema: float | None = None
    best: bool = False
    step: int | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    only: int | None = None  # of the samples, the one to be written


class Opened(NamedTuple):
    """What samples are drawn from: a run, or a Stable Diffusion folder.

    Attributes:
      recipe: the model.
      params: of its network.
      method: how to draw.
      batch: what the samples are of, NumPy [num, ...].
      away: what guidance goes away from; None: the null cond.
      weak: parameters of autoguidance's worse model, if any.
      request: with the model's own settings where it had none.
      what: the model in the closing line, such as "step 500".
      name: of the default file.
      how: sampler and steps, for the closing line.
      class_names: by number; () where there are none.
      notes: lines to print.
      rows: of a grid; 0 for about a square.
      texts: of samples 0, 1, ... in turn, to be written under them; () for none.
    """

    recipe: Recipe
    params: Any
    method: Method
    batch: dict[str, np.ndarray]
    away: dict[str, np.ndarray] | None
    weak: Any
    request: Request
    what: str
    name: Place
    how: str
    class_names: Sequence[str]
    notes: tuple[str, ...]
    rows: int
    texts: tuple[str, ...] = ()

    def grid_rows(self, num: int) -> int:
        """Rows of a grid of num samples."""
        return min(self.rows, num) or round(num**0.5)

    def titles(self, num: int) -> tuple[str, ...]:
        """What stands in a grid of num samples under each row or under each picture."""
        texts = self.texts if len(self.texts) > 1 else ()
        return texts if self.rows or not texts else tuple(texts[i % len(texts)] for i in range(num))

    def about(self, i: int) -> dict[str, str]:
        """What the PNG of sample i alone says: which it is, and of what."""
        of, label = {"sample": str(i)}, int(self.batch["label"][i]) if "label" in self.batch else None
        of |= {} if label is None else {"class": self.class_names[label] if self.class_names else str(label)}
        return of | ({"prompt": self.texts[i % len(self.texts)]} if self.texts else {})


def draw(request: Request) -> tuple[int, str]:
    """Draws samples and writes them; returns the exit code, and the lines that say where they are.

    Raises:
      UserError: there is no run or checkpoint, or the request does not fit it; nothing was written.
    """
    processes.agree({name: str(value) for name, value in vars(request).items()})
    is_pipeline = (request.workdir / INDEX).exists()
    request = dataclasses.replace(request, prompt=_prompts(request), prompts=None)
    usual = len(request.prompt) or (WALKS if request.trajectory else 64)
    num = usual if request.num is None else request.num
    batch_size = request.batch_size if request.batch_size is not None else 4 if is_pipeline else 64
    check_numbers(request, num, batch_size)
    if request.out is not None:
        check_out(request, request.out, num)
    mesh = make_mesh()
    opened = (open_pipeline if is_pipeline else open_run)(request, num, NamedSharding(mesh, PartitionSpec()))
    recipe, method = opened.recipe, opened.method
    out = request.out or opened.name
    check_out(request, out, num)
    shape = recipe.codec.image_shape(recipe.shape)
    if request.only is not None and ending(out) not in pictures.FORMATS:
        raise UserError(f"--out {out}: what --like names is one picture; give FILE.png, .jpg or .webp")
    if request.only is None and opened.titles(num) and request.scale is None and ending(out) in pictures.FORMATS:
        request = dataclasses.replace(request, scale=pictures.enlargement(shape, titled=True))
    if not request.trajectory and (suffix := ending(out)) != ".npz":
        rows = opened.grid_rows(num) if suffix and request.only is None else 0
        pictures.check_size(suffix or f".{request.format or 'png'}", num, rows, shape, request.scale)
    given: dict[str, Any] = {}
    if request.init_image is not None:
        given, method = _given(request, opened, num)
    elif request.mask is not None:
        raise UserError("--mask says which part of --init-image is drawn anew: give the image too")

    size = num if request.trajectory else min(batch_size, 1 << (num - 1).bit_length())  # few programs for all numbers
    size = -(-size // mesh.size) * mesh.size
    make = make_draw(recipe, method, size, mesh, trajectory=request.trajectory)
    key = purpose_key(request.seed, "sample")
    conditions = opened.batch, opened.away, given

    def batch(i: int, like: Method = method) -> Any:
        rows = slice(i * size, min(num, (i + 1) * size))
        batch, away, given = jax.tree.map(lambda x: x[rows], conditions)
        how = {"away": away, "weak": opened.weak, "like": like, **given}
        return make(opened.params, key, rows.stop - rows.start, batch, rows.start, **how)

    steps = int(np.count_nonzero(np.diff(method.times)))
    once = method._replace(times=np.append(method.times[:1], np.repeat(method.times[-1:], len(method.times) - 1)))
    start, only = time.perf_counter(), request.only
    batches = range(-(-num // size)) if only is None else [only // size]
    drawn, stopped = draw_batches(batch, batches, steps, None if request.trajectory else lambda: batch(0, once))
    how = f"{opened.how}, {time.perf_counter() - start:.1f} s"
    count = min(num, len(drawn) * size) if only is None else num
    if jax.process_index() == 0 and drawn:
        text = _said(dataclasses.replace(opened.request, num=count, batch_size=batch_size, scale=request.scale))
        text |= {} if only is None else opened.about(only)
        out = out if request.out else pictures.vacant(out, text)
        if request.trajectory:
            _write_trajectory(out, drawn[0][1], method.times[: steps + 1], text)
        else:
            images = np.concatenate(drawn) if only is None else drawn[0][[only % size]]
            write_images(request, out, pictures.to_uint8(images), text, opened)
    if stopped:
        where = f"after {count} of {num} samples, which are in {out}" if count else "before the first samples were done"
        print(f"{program('sample')}: stopped {where}", file=sys.stderr, flush=True)
        os._exit(75)  # XLA is still at work
    if jax.process_index():
        return 0, ""
    notes = [f"note: {note}" for note in opened.notes]
    what = f"{num} samples" if only is None else f"sample {only}"
    return 0, "\n".join([*notes, f"{what} of {opened.what} ({how}) in {out}"])


def open_run(request: Request, num: int, sharding: NamedSharding) -> Opened:
    """A run as what samples are drawn from: its config.json says what the network is, its EMA draws.

    Raises:
      UserError: there is no run, or the request does not fit it.
    """
    model = load(request.workdir, step=request.step, ema=request.ema, best=request.best, sharding=sharding)
    values = {field.name: getattr(request, field.name, None) for field in dataclasses.fields(Sampling)}
    overrides = {name: value for name, value in values.items() if value is not None}
    sampling = with_sampling(model.config.sampling, overrides)
    validate(dataclasses.replace(model.config, sampling=sampling))
    recipe, conditioner = model.recipe, model.recipe.conditioner
    reads_text = conditioner.tokenize is not None
    foreign = ("height", "width", "dtype", "lora", *(("classes",) if reads_text else ("prompt", "negative_prompt")))
    for option in foreign:
        if getattr(request, option):
            named, takes = option.replace("_", "-"), "--prompt, no classes," if reads_text else "no prompt"
            raise UserError(f"--{named}: {request.workdir} is a run, which takes {takes} and has one size and dtype")
    texts, away, notes = request.prompt, None, ()
    if reads_text:
        texts = texts or conditioner.examples
        batch, away, notes = _told(texts, request.negative_prompt, conditioner, num)
        if request.negative_prompt and sampling.guidance == 1:
            raise UserError("--negative-prompt is what guidance leads away from; give --guidance too, such as 4")
    else:
        batch = _parsed(lambda: conditioner.parse(request.classes, num), "--classes")
    method = make_method(recipe, sampling, trajectory=request.trajectory)
    weak = weak_params(sampling, request.workdir, model.state, sharding)
    rows = len(request.classes or texts or conditioner.examples)
    rows = 0 if reads_text and num <= rows else rows
    how = f"{sampling.sampler}, {sampling.steps} steps"
    name = request.workdir / "samples" / _file_name(request, f"{sampling.sampler}{sampling.steps}")
    what = f"step {model.step}"
    own = {name: value for name, value in vars(sampling).items() if hasattr(request, name)}
    step = None if model.state is None else model.step  # an exported folder has one
    request = dataclasses.replace(request, **own, step=step, prompt=texts if reads_text else ())
    drawn = (recipe, model.params, method, batch, away, weak, request)
    return Opened(*drawn, what, name, how, model.class_names, notes, rows, texts)


def open_pipeline(request: Request, num: int, sharding: NamedSharding) -> Opened:
    """A Stable Diffusion folder as what images of a text are drawn from.

    Raises:
      UserError: the folder is no pipeline that we have, or the request does not fit it.
    """
    folder = request.workdir
    if not request.prompt:
        raise UserError(f'{folder} makes images of a text: give --prompt "..."')
    if request.classes or request.ema is not None:
        raise UserError(f"--{'classes' if request.classes else 'ema'} is for runs; {folder} takes a prompt")
    guidance = GUIDANCE if request.guidance is None else request.guidance
    if not 0 <= guidance <= 1000:
        raise UserError(f"--guidance {guidance} must lie in 0..1000")
    if request.guidance_rule == "autoguidance":
        raise UserError(f"--guidance-rule autoguidance is for runs; {folder} has no worse model")
    steps = STEPS if request.steps is None else request.steps
    lora = read_lora(Path(request.lora), request.lora_scale) if request.lora else None
    pipeline = read_pipeline(folder, sharding=sharding, lora=lora).computing_in(request.dtype or "float32")
    method = request.sampler or pipeline.scheduler.method
    try:
        options = decoded(SAMPLERS, method, request.sampler_options)
        scheduler = chosen(pipeline.scheduler, method, options, request.eta)
        walk, threshold = scheduler.walk, scheduler.threshold
        name = request.guidance_rule or "cfg"
        rule = Guidance(guidance, name, decoded(RULES, name, request.guidance_options))
        if request.spacing is None:
            times = padded_times(scheduler, steps)
        else:
            padded = {"max_steps": scheduler.schedule.num_steps, **request.spacing_options}
            times = time_grid(scheduler.schedule, steps, request.spacing, **padded)
        if request.threshold is not None:
            kind, limits = request.threshold, decoded(THRESHOLDS, request.threshold, request.threshold_options)
            threshold = lambda denoise: THRESHOLDS.build(kind, limits, denoise, schedule=walk)  # noqa: E731
        scheduler.sampler()
        for made in (lambda: rule.of(unseen, unseen, walk), lambda: threshold(unseen)):
            made()  # what they refuse is said before anything is drawn
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None
    recipe = recipe_of(pipeline, pipeline.latent_shape(request.height, request.width))
    if request.trajectory:
        times = times[: int(np.count_nonzero(np.diff(times))) + 1]
    method = Method(
        lambda eta: scheduler.sampler(), times, 0.0, rule if guidance != 1 else None, threshold, scheduler.start
    )
    batch, away, notes = _told(request.prompt, request.negative_prompt, recipe.conditioner, num)
    name = Path(_file_name(request, f"{scheduler.method}{steps}"))
    how = f"{scheduler.method}, {steps} steps, guidance {guidance:g}"
    own = {"sampler": scheduler.method, "sampler_options": dict(scheduler.options), "steps": steps}
    request = dataclasses.replace(request, **own, guidance=guidance)
    rows = len(request.prompt) if num > len(request.prompt) > 1 else 0
    drawn = (recipe, pipeline.unet.params, method, batch, away, None, request)
    return Opened(*drawn, str(folder), name, how, (), (*notes, *pipeline.notes), rows, request.prompt)


def _prompts(request: Request) -> tuple[str, ...]:
    """The texts of --prompt, and the lines of the file --prompts.

    Raises:
      UserError: the file cannot be read, or has no text.
    """
    if request.prompts is None:
        return request.prompt
    try:
        lines = request.prompts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {request.prompts} cannot be read as a text, a prompt a line: {error}") from None
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise UserError(f"--prompts {request.prompts} has no text; write a prompt a line")
    return request.prompt + texts


def _told(
    texts: Sequence[str], negative: str, conditioner: Conditioner, num: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[str, ...]]:
    """What num samples are of, what guidance goes away from, and what of the texts is too long to be read."""
    batch = _parsed(lambda: conditioner.parse(texts, num), "--prompt")
    most = next(iter(conditioner.spec.values())).shape[0]
    lost = [rest for text in (*texts, negative) if (rest := conditioner.dropped(text))]
    notes = tuple(f"beyond {most} tokens, and not used: {rest}" for rest in lost)
    return batch, conditioner.parse([negative], num), notes


def _parsed[T](parse: Callable[[], T], option: str) -> T:
    try:
        return parse()
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None


def _given(request: Request, opened: Opened, num: int) -> tuple[dict[str, Any], Method]:
    """The images that samples start from, and where the walk to them begins.

    Raises:
      UserError: an image or a mask of another size, or a strength that is none.
    """
    assert request.init_image is not None
    h, w, c = opened.recipe.codec.image_shape(opened.recipe.shape)
    image = _read_image(request.init_image, c)
    if image.shape[:2] != (h, w):
        raise UserError(f"--init-image {request.init_image} is {image.shape[1]}x{image.shape[0]}; it must be {w}x{h}")
    given: dict[str, Any] = {"images": np.repeat(image[None], num, axis=0)}
    strength = request.strength
    if request.mask is not None:
        mask = _read_image(request.mask, 1)
        if mask.shape[:2] != (h, w):
            raise UserError(f"--mask {request.mask} is {mask.shape[1]}x{mask.shape[0]}; it must be {w}x{h}")
        given["mask"] = np.repeat(mask[None] < 128, num, axis=0)  # white is drawn anew, black stays
    if not 0 < strength <= 1:
        raise UserError(f"--strength {strength} must lie in 0..1, above 0: 1 draws anew, little stays near the image")
    return given, opened.method._replace(times=strength_times(opened.method.times, strength))


def _read_image(path: Place, channels: int) -> np.ndarray:
    """A picture as a data set's would be read: upright, transparent parts on white."""
    try:
        file = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read as a picture: {error.strerror}") from None
    return decode_image(open_image(file, str(path)), str(path), channels)


def _said(request: Request) -> dict[str, str]:
    """What a PNG says of itself: each setting in words, and all of them as JSON, for --like."""
    usual = Request(request.workdir)
    settings = {name: value for name, value in vars(request).items() if name not in ("out", "format", "only")}
    settings = {name: value for name, value in settings.items() if value != getattr(usual, name) or name == "seed"}
    words = {name: str(value) for name, value in settings.items()} | {"run": str(request.workdir)}
    words |= {name: "\n".join(settings[name]) for name in ("prompt", "classes") if name in settings}
    paths = {
        name: str(getattr(request, name))
        for name in ("workdir", "init_image", "mask", "lora")
        if getattr(request, name)
    }
    return words | {pictures.SETTINGS: json.dumps({**settings, **paths})}


def _file_name(request: Request, how: str) -> str:
    """Of the default file: what was asked for; `pictures.vacant` tells the rest apart."""
    numbers = {"eta": request.eta, "guidance": request.guidance, "ema": request.ema}
    parts = ["walk" if request.trajectory else "samples"]
    parts += [slug(text) for text in (" ".join(request.prompt), " ".join(request.classes)) if text]
    parts += [how, *(f"{name}{value:g}" for name, value in numbers.items() if value is not None)]
    return "_".join([*parts, f"seed{request.seed}.{request.format or 'png'}"])


def slug(text: str) -> str:
    """Words as part of a file's name.

    >>> slug("A horse, on the moon!")
    'a-horse-on-the-moon'
    """
    return re.sub(r"\W+", "-", text.lower())[:40].strip("-")


def check_numbers(request: Request, num: int, batch_size: int) -> None:
    """Refuses numbers with which nothing can be drawn."""
    if num < 1 or batch_size < 1:
        raise UserError(f"--num {num} and --batch-size {batch_size} must be at least 1")
    if not 0 <= request.seed < 2**32:
        raise UserError(f"--seed {request.seed} must lie in 0..{2**32 - 1}")


def ending(out: Place) -> str:
    """The ending that says what is to be written, in small letters; "" of a folder, such as w_1.5.

    >>> from pathlib import Path
    >>> [ending(Path(name)) for name in ("x.PNG", "w_1.5", "many", "x.pgn", "x.txt")]
    ['.png', '', '', '.pgn', '.txt']
    """
    suffix = out.suffix.lower()
    is_file = suffix in mimetypes.MimeTypes().types_map[True] or difflib.get_close_matches(suffix, SUFFIXES)
    return suffix if is_file else ""


def check_out(request: Request, out: Place, num: int) -> None:
    """Refuses a place where num samples cannot be written, before they are drawn."""
    legal = (".png", ".gif") if request.trajectory else ("", *pictures.FORMATS, ".npz")
    suffix = ending(out)
    if suffix not in legal:
        kinds = ", ".join(f"{suffix or 'no suffix'} ({SUFFIXES[suffix]})" for suffix in legal)
        raise UserError(f"--out {out} must end in one of: {kinds}")
    if request.scale is not None and (request.trajectory or suffix == ".npz" or not 1 <= request.scale <= 64):
        raise UserError(f"--scale {request.scale} must lie in 1..64, and enlarges pictures: no arrays, no trajectory")
    if request.format and request.out and suffix:
        raise UserError(f"--format is for a folder of single images; --out {out} says what it is by its ending")
    if suffix == "" and out.exists():
        ours = {_name(request, i) for i in range(num)}
        others = sorted(p.name for p in out.iterdir() if p.name not in ours) if out.is_dir() else [out.name]
        if others:
            raise UserError(f"--out {out} holds other files ({others[0]}); choose an empty or new folder")
    if jax.process_index() == 0:
        check_writable(out if suffix else out / _name(request, 0), "--out")


def _name(request: Request, i: int) -> str:
    return f"{i:06}.{request.format or 'png'}"


def write_images(request: Request, out: Place, images: np.ndarray, text: dict[str, str], opened: Opened) -> None:
    """A grid with a class or text a row, a single image, a folder of them, or arrays.

    Args:
      request: how large and in which format.
      out: by its ending, see SUFFIXES.
      images: uint8 [n, h, w, c].
      text: what PNGs say of themselves.
      opened: what the images are of.
    """
    suffix, n, texts = ending(out), len(images), opened.texts
    if request.only is not None:
        pictures.write_picture(out, pictures.enlarged(images, request.scale or 1)[0], text)
    elif suffix in pictures.FORMATS:
        grid = pictures.grid(images, opened.grid_rows(n), request.scale, opened.titles(n))
        pictures.write_picture(out, grid, text)
    elif suffix == ".npz":
        labels, names = opened.batch.get("label"), opened.class_names
        arrays: dict[str, Any] = {"images": images} if labels is None else {"images": images, "labels": labels[:n]}
        arrays |= {"class_names": np.array(names)} if labels is not None and names else {}
        arrays |= {"prompts": np.array(texts)[np.arange(n) % len(texts)]} if texts else {}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        pictures.write_whole(out, buffer.getvalue())
    else:
        images = pictures.enlarged(images, request.scale or 1)
        for i, image in enumerate(images):
            pictures.write_picture(out / _name(request, i), image, text | opened.about(i))


def _write_trajectory(out: Place, walk: Any, times: np.ndarray, text: dict[str, str]) -> None:
    if ending(out) == ".gif":
        pictures.write_trajectory_gif(out, walk.x_t, walk.x_0, times)
    else:
        pictures.write_picture(out, pictures.trajectory_sheet(walk.x_t, walk.x_0, times), text)
