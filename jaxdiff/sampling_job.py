"""Drawing samples from a finished or running run: its config.json says what the network is, its EMA draws."""

import dataclasses
import io
import time
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff import pictures
from jaxdiff.builders import build_model, build_sample, build_times, check_run
from jaxdiff.config import Config, Method, Sampling, validate
from jaxdiff.config_files import read_run
from jaxdiff.errors import UserError
from jaxdiff.places import Place, check_writable
from jaxdiff.training import processes
from jaxdiff.training.checkpoints import restore_with_meta
from jaxdiff.training.parallel import make_mesh
from jaxdiff.training.snapshots import reconstruct

SUFFIXES = {"": "a folder", ".png": "a grid", ".npz": "arrays", ".gif": "an animated trajectory"}
WALKS = 4  # samples in a trajectory, unless --num says otherwise


@dataclasses.dataclass(frozen=True)
class Request:
    """What sample.py was asked for; None is the run's own or the usual choice."""

    workdir: Place
    sampler: Method | None = None
    steps: int | None = None
    eta: float | None = None
    guidance: float | None = None
    seed: int = 0
    num: int | None = None
    classes: tuple[int, ...] = ()
    batch_size: int | None = None
    trajectory: bool = False
    out: Place | None = None
    prompt: str | None = None
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    ema: float | None = None
    dtype: Literal["float32", "bfloat16"] | None = None


def draw(request: Request) -> tuple[int, str]:
    """Draws samples and writes them; returns the exit code, and the line that says where they are.

    Raises:
      UserError: there is no run or checkpoint, or the request does not fit it; nothing was written.
    """
    processes.agree({name: str(value) for name, value in vars(request).items()})
    config = read_run(request.workdir)
    sampling = _sampling(config.sampling, request)
    validate(dataclasses.replace(config, sampling=sampling))
    num = request.num if request.num is not None else WALKS if request.trajectory else 64
    batch_size = 64 if request.batch_size is None else request.batch_size
    out = request.out or _default_out(request, sampling)
    _check_request(request, config)
    check_numbers(request, num, batch_size)
    check_out(out, (".png", ".gif") if request.trajectory else ("", ".png", ".npz"), num)

    mesh = make_mesh()
    state, meta = restore_with_meta(request.workdir, sharding=NamedSharding(mesh, PartitionSpec()))
    params = state.ema_params
    if request.ema is not None:
        params = reconstruct(
            request.workdir, state, config.train.posthoc_ema, request.ema, NamedSharding(mesh, PartitionSpec())
        )
    shape = _shape(config, meta)
    model = build_model(config, shape[-1])
    labels = None
    if config.model.num_classes:
        classes = request.classes or range(config.model.num_classes)
        labels = np.array(classes, np.int32)[np.arange(num) % len(classes)]
    portion = num if request.trajectory else min(num, batch_size)
    make = build_sample(config, sampling, model, shape, portion, mesh, trajectory=request.trajectory)
    start = time.perf_counter()
    drawn = make(params, jax.random.key(request.seed, impl="threefry2x32"), num, labels)
    seconds = time.perf_counter() - start

    if jax.process_index():
        return 0, ""
    if request.trajectory:
        _write_trajectory(out, drawn[1], build_times(config, sampling))
    else:
        write_images(out, pictures.to_uint8(drawn), labels, len(request.classes) or config.model.num_classes)
    how = f"{sampling.sampler}, {sampling.steps} steps, {seconds:.1f} s"
    return 0, f"{num} samples of step {int(state.step)} ({how}) in {out}"


def _sampling(base: Sampling, request: Request) -> Sampling:
    """The run's own way to sample, with what the request says instead."""
    asked = {name: getattr(request, name) for name in ("sampler", "steps", "eta", "guidance")}
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked.get("sampler", base.sampler) != base.sampler:  # eta and variance were the other sampler's
        base = dataclasses.replace(base, eta=None, variance="small")
    return dataclasses.replace(base, **asked)


def _default_out(request: Request, sampling: Sampling) -> Place:
    kind = "walk" if request.trajectory else "samples"
    return request.workdir / "samples" / f"{kind}_{sampling.sampler}{sampling.steps}_seed{request.seed}.png"


def _check_request(request: Request, config: Config) -> None:
    """Refuses what does not fit the run, before anything is read or compiled."""
    num_classes = config.model.num_classes
    for option, value in (
        ("prompt", request.prompt),
        ("negative-prompt", request.negative_prompt or None),
        ("height", request.height),
        ("width", request.width),
        ("dtype", request.dtype),
    ):
        if value is not None:
            raise UserError(f"--{option}: {request.workdir} is a run, which takes no prompt and has one size and dtype")
    if request.classes and not num_classes:
        raise UserError(f"--classes: the run in {request.workdir} has no classes")
    outside = [label for label in request.classes if not 0 <= label < num_classes]
    if outside:
        raise UserError(f"--classes {outside[0]} is not a class of this run; they are 0..{num_classes - 1}")


def check_numbers(request: Request, num: int, batch_size: int) -> None:
    """Refuses numbers with which nothing can be drawn."""
    if num < 1 or batch_size < 1:
        raise UserError(f"--num {num} and --batch-size {batch_size} must be at least 1")
    if not 0 <= request.seed < 2**32:
        raise UserError(f"--seed {request.seed} must lie in 0..{2**32 - 1}")


def check_out(out: Place, legal: tuple[str, ...], num: int) -> None:
    """Refuses a place where num samples cannot be written, before they are drawn."""
    if out.suffix not in legal:
        kinds = ", ".join(f"{suffix or 'no suffix'} ({SUFFIXES[suffix]})" for suffix in legal)
        raise UserError(f"--out {out} must end in one of: {kinds}")
    if out.suffix == "" and out.exists():
        ours = {name for name, _ in _names(num, None)}
        others = sorted(p.name for p in out.iterdir() if p.name not in ours) if out.is_dir() else [out.name]
        if others:
            raise UserError(f"--out {out} holds other files ({others[0]}); choose an empty or new folder")
    if jax.process_index() == 0:
        check_writable(out if out.suffix else out / _names(1, None)[0][0], "--out")


def _shape(config: Config, meta: dict[str, Any]) -> tuple[int, int, int]:
    """The shape of the images the run was trained on, from its checkpoint."""
    shape = meta.get("shape")
    if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int and 0 < n <= 4096 for n in shape)):
        raise UserError("the checkpoint does not say what shape its images have; it is not one of train.py")
    h, w, c = shape
    check_run(config, (h, w, c), config.model.num_classes, config.train.batch_size)
    return h, w, c


def _names(num: int, images: Any) -> list[tuple[str, Any]]:
    return [(f"{i:06}.png", None if images is None else images[i]) for i in range(num)]


def write_images(out: Place, images: np.ndarray, labels: np.ndarray | None = None, classes: int = 0) -> None:
    """A grid with a class a row, a folder of single images, or arrays."""
    if out.suffix == ".png":
        rows = min(classes, len(images)) or round(len(images) ** 0.5)
        pictures.write_png(out, pictures.grid(images, rows))
    elif out.suffix == ".npz":
        buffer = io.BytesIO()
        if labels is None:
            np.savez_compressed(buffer, images=images)
        else:
            np.savez_compressed(buffer, images=images, labels=labels)
        pictures.write_whole(out, buffer.getvalue())
    else:
        for name, image in _names(len(images), images):
            pictures.write_png(out / name, image)


def _write_trajectory(out: Place, walk: Any, times: np.ndarray) -> None:
    if out.suffix == ".gif":
        pictures.write_trajectory_gif(out, walk.x_t, walk.x_0, times)
    else:
        pictures.write_png(out, pictures.trajectory_sheet(walk.x_t, walk.x_0, times))
