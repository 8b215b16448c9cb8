"""Drawing images for a text from a Stable Diffusion folder: what sample.py does when it is given one."""

import dataclasses
import inspect
import operator
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxdiff import pictures
from jaxdiff.builders import whole
from jaxdiff.denoisers import Denoiser, Prediction
from jaxdiff.errors import UserError
from jaxdiff.guidance import classifier_free
from jaxdiff.interop.pipeline import INDEX, Pipeline, read_pipeline
from jaxdiff.interop.schedulers import Scheduler
from jaxdiff.places import Place
from jaxdiff.samplers import METHODS, sample, sample_keys
from jaxdiff.samplers.base import normal_like
from jaxdiff.sampling_job import Request, check_numbers, check_out, write_images
from jaxdiff.training import processes
from jaxdiff.training.parallel import make_mesh

GUIDANCE, STEPS = 7.5, 50  # unless the request says otherwise, as in diffusers


def takes_prompt(folder: Place) -> bool:
    """Whether a folder is a pipeline's and not a run."""
    return (folder / INDEX).exists()


def draw(request: Request) -> tuple[int, str]:
    """Draws images and writes them; returns the exit code, and the line that says where they are.

    Raises:
      UserError: the folder is no pipeline that we have, or the request does not fit it; nothing was written.
    """
    processes.agree({name: str(value) for name, value in vars(request).items()})
    folder = request.workdir
    if request.prompt is None:
        raise UserError(f'{folder} makes images of a text: give --prompt "..."')
    if request.ema is not None:
        raise UserError(f"--ema is for runs; {folder} takes a prompt")
    if request.classes or request.trajectory:
        raise UserError(f"--{'classes' if request.classes else 'trajectory'} is for runs; {folder} takes a prompt")
    num = 1 if request.num is None else request.num
    batch_size = min(num, 4 if request.batch_size is None else request.batch_size)
    guidance = GUIDANCE if request.guidance is None else request.guidance
    if not 0 <= guidance <= 1000:
        raise UserError(f"--guidance {guidance} must lie in 0..1000")
    steps = STEPS if request.steps is None else request.steps
    check_numbers(request, num, batch_size)
    if request.out is not None:
        check_out(request.out, ("", ".png", ".npz"), num)

    mesh = make_mesh()
    pipeline = read_pipeline(folder, sharding=NamedSharding(mesh, P())).computing_in(request.dtype or "float32")
    scheduler = _chosen(pipeline.scheduler, request)
    times = padded_times(scheduler, steps)
    shape = pipeline.latent_shape(request.height, request.width)
    out = request.out or Path(f"samples_{scheduler.method}{steps}_seed{request.seed}.png")
    texts = [request.prompt, request.negative_prompt]
    tokens = pipeline.tokenizer(texts, pipeline.max_tokens)
    lost = [f"note: beyond {pipeline.max_tokens} tokens, and not used: {rest}" for rest in _dropped(pipeline, texts)]

    start = time.perf_counter()
    make = build_draw(pipeline, scheduler, shape, batch_size, mesh, guided=guidance != 1)
    images = make(jax.random.key(request.seed, impl="threefry2x32"), num, tokens, times, guidance)
    seconds = time.perf_counter() - start
    if jax.process_index():
        return 0, ""
    write_images(out, pictures.to_uint8(images))
    how = f"{scheduler.method}, {steps} steps, guidance {guidance:g}, {seconds:.1f} s"
    notes = [*lost, *(f"note: {note}" for note in pipeline.notes)]
    return 0, "\n".join([*notes, f"{num} samples of {folder} ({how}) in {out}"])


def _dropped(pipeline: Pipeline, texts: list[str]) -> list[str]:
    return [rest for text in texts if (rest := pipeline.tokenizer.dropped(text, pipeline.max_tokens))]


def _chosen(scheduler: Scheduler, request: Request) -> Scheduler:
    """The folder's own sampler, or the one asked for on the same schedule and times."""
    if request.sampler not in (None, scheduler.method):
        scheduler = dataclasses.replace(scheduler, method=request.sampler, options={})
    if request.eta is None:
        return scheduler
    if "eta" not in inspect.signature(METHODS[scheduler.method]).parameters or not 0 <= request.eta <= 1:
        raise UserError(f"--eta {request.eta} with {scheduler.method}: it must be 0 to 1, of a method that has it")
    return dataclasses.replace(scheduler, options={**scheduler.options, "eta": request.eta})


def padded_times(scheduler: Scheduler, steps: int) -> np.ndarray:
    """The scheduler's times, padded: another number of steps compiles nothing."""
    try:
        times = scheduler.times(steps)
    except ValueError as error:
        raise UserError(f"--steps {steps}: {error}") from None
    return np.pad(times, (0, scheduler.config["num_train_timesteps"] + 1 - len(times)), mode="edge")


def build_draw(
    pipeline: Pipeline, scheduler: Scheduler, shape: tuple[int, int, int], batch_size: int, mesh: Mesh, *, guided: bool
) -> Callable[..., np.ndarray]:
    """(key, num, tokens, times, guidance) -> images [num, h, w, c] in about [-1, 1], NumPy.

    Image i depends on key and i alone. As diffusers does, the walk starts from unit noise, also where the first of
    the times is below 1 (Euler's from a little less, see `Scheduler.start`).

    Args:
      pipeline: the networks.
      scheduler: its own, or another on the same schedule.
      shape: of a latent, (h, w, c).
      batch_size: images drawn at once, rounded up to a multiple of the devices.
      mesh: the devices.
      guided: whether there is a guidance scale other than 1, which costs twice the network evaluations.

    Returns:
      The function; tokens are int32 [2, n], of the text and of what guidance leads away from.
    """
    batch_size = -(-batch_size // mesh.size) * mesh.size
    rows = NamedSharding(mesh, P(mesh.axis_names))
    params = {"unet": pipeline.unet.params, "vae": {"decoder": pipeline.vae.params["decoder"]}}
    encode = jax.jit(lambda params, tokens: pipeline.text.network.apply({"params": params}, tokens))

    @jax.jit
    def run(params, key, start, texts, times, guidance):
        keys = jax.lax.with_sharding_constraint(sample_keys(key, batch_size, start), rows)
        start_keys, step_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        x_T = scheduler.start(times[0]) * normal_like(start_keys, jnp.zeros((batch_size, *shape)))
        denoise = build_denoiser(pipeline, scheduler, params["unet"], texts, guidance if guided else None)
        schedule = scheduler.walk
        z = sample(step_keys, denoise, scheduler.sampler(), times=times, schedule=schedule, x_T=x_T)
        return pipeline.vae.network.apply({"params": params["vae"]}, z / pipeline.scale, method="decode")

    def draw(key: Array, num: int, tokens: np.ndarray, times: np.ndarray, guidance: float) -> np.ndarray:
        texts = encode(pipeline.text.params, tokens)
        batches = []
        for start in range(0, num, batch_size):
            batches.append(whole(run(params, key, np.int32(start), texts, times, np.float32(guidance))))
        return np.concatenate(batches)[:num]

    return draw


def build_denoiser(
    pipeline: Pipeline, scheduler: Scheduler, params: Any, texts: Array, guidance: ArrayLike | None
) -> Denoiser:
    """The U-Net under embedded texts as a denoiser of latents, thresholded as the scheduler says.

    Args:
      pipeline: the networks.
      scheduler: noise schedule, prediction and threshold.
      params: the U-Net's.
      texts: [2, tokens, features], of the text and of what guidance leads away from.
      guidance: the scale, or None to leave the second text out.
    """

    def denoiser(texts: Array) -> Denoiser:
        """Of len(texts) rows an image, side by side, one under each text."""

        def predict(x_t: Array, t: Array, cond: Any) -> Array:
            text = jnp.tile(cond, (len(x_t) // len(cond), 1, 1))
            return pipeline.unet.network.apply({"params": params}, x_t, t, {"text": text})

        return scheduler.denoiser(predict, texts)

    if guidance is None:
        return scheduler.threshold(denoiser(texts[:1]))

    def guided(x_t: Array, t: ArrayLike) -> Prediction:
        both = denoiser(texts)(jnp.repeat(x_t, 2, axis=0), t)  # one call of the network for both
        towards, away = (jax.tree.map(operator.itemgetter(slice(i, None, 2)), both) for i in (0, 1))
        return classifier_free(lambda *_: towards, lambda *_: away, guidance)(x_t, t)

    return scheduler.threshold(guided)
