"""(e) Pixel by pixel against all at once: bits per dimension, seconds an image, and how both ways grow with the side.

    uv run python -m benchmarks.experiments.autoregressive --data FOLDER

The seconds are CPU time, measured on passes of untrained networks (training does not change them) and multiplied by
their number: one a pixel for the PixelCNN, as many as steps for diffusion.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.experiments import common
from benchmarks.experiments.pixelcnn import PixelCNN, bits, draw
from jaxdiff import as_denoiser, pictures, sample_keys, static_threshold
from jaxdiff.config import make_schedule
from jaxdiff.data.batches import Batches
from jaxdiff.data.sources import Source, open_dataset
from jaxdiff.evaluation.extractors import nest
from jaxdiff.evaluation.likelihood import bound_bits
from jaxdiff.interop import names, safetensors

TRAIN_STEPS, BATCH, RATE = 600, 64, 2e-3
SIDES, STEPS, TIMED = (14, 28, 56), 20, 8
BOUND_IMAGES = 100


def train(place: common.Place, model: PixelCNN, source: Source) -> Any:
    """Parameters of the PixelCNN, from its file if they are there."""
    path = place.runs / "pixelcnn.safetensors"
    if path.exists():
        return nest({name: jnp.asarray(value) for name, value in safetensors.read(path).items()})
    params = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jnp.zeros(1, jnp.int32))["params"]
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, TRAIN_STEPS))

    @jax.jit
    def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(lambda p: bits(model, p, images, labels).mean())(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    with Batches(source, 0, BATCH, flip=False).iterate(0) as batches:
        for i in range(TRAIN_STEPS):
            batch = next(batches)
            params, state, value = step(params, state, batch["image"], batch["label"])
            if i % 100 == 0:
                print(f"pixelcnn: step {i} of {TRAIN_STEPS}, {float(value):.3f} bits/dim", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.write(path, {name: np.asarray(value) for name, value in names.leaf_paths(params)}, {})
    return params


def pixelcnn_bits(model: PixelCNN, params: Any, test: dict[str, np.ndarray]) -> np.ndarray:
    """Of every test image."""
    measure = jax.jit(lambda images, labels: bits(model, params, images, labels))
    parts = np.split(np.arange(len(test["image"])), len(test["image"]) // 200)
    return np.concatenate([measure(test["image"][part], test["label"][part]) for part in parts])


def diffusion_bits(run: common.Run, test: dict[str, np.ndarray]) -> np.ndarray:
    """The variational bound of the first BOUND_IMAGES test images: 1000 passes an image."""
    schedule, model = make_schedule(run.config.diffusion), run.config.model.module(1)
    images, labels = (jnp.asarray(test[name][:BOUND_IMAGES]) for name in ("image", "label"))

    def predict(x_t: jax.Array, t: jax.Array, cond: jax.Array) -> Any:
        return model.apply({"params": run.params}, x_t, t, cond)

    plain = as_denoiser(predict, schedule=schedule, prediction=run.config.diffusion.prediction, cond=labels)
    denoise = static_threshold(plain, schedule=schedule)
    keys = sample_keys(jax.random.key(0), BOUND_IMAGES)
    return np.asarray(jax.jit(lambda: bound_bits(keys, denoise, images, schedule))())


def cpu_seconds(function: Any, *arguments: Any) -> float:
    """CPU time of a call, compiled before."""
    jax.block_until_ready(function(*arguments))
    began = time.process_time()
    jax.block_until_ready(function(*arguments))
    return time.process_time() - began


def growth(place: common.Place, model: PixelCNN) -> list[list[Any]]:
    """A row a side: passes and CPU seconds an image of both, batches of TIMED images, the U-Net on patches of 2."""
    config = common.change(common.base(place), model={"patch": 2})
    unet, labels, rows = config.model.module(1), jnp.arange(TIMED) % 10, []
    for side in SIDES:
        x = jnp.zeros((TIMED, side, side, 1))
        pixel_params = model.init(jax.random.key(0), x, labels)["params"]
        params = unet.init(jax.random.key(0), x, jnp.zeros(TIMED), labels)["params"]
        timed = 20  # pixels of one timing
        one = jax.jit(lambda p, k, side=side, timed=timed: draw(model, p, k, labels, side, timed))
        pixel = cpu_seconds(one, pixel_params, jax.random.key(1)) / timed / TIMED
        forward = jax.jit(lambda p, x: unet.apply({"params": p}, x, jnp.full(TIMED, 0.5), labels))
        step = STEPS * cpu_seconds(forward, params, x) / TIMED
        rows.append([f"{side}x{side}", side**2, pixel * side**2, STEPS, step, f"{pixel * side**2 / step:.0f}"])
    return rows


def main() -> None:
    place, model = common.start("autoregressive", __doc__), PixelCNN()
    source, held_out = (open_dataset("fashion_mnist", place.data, split) for split in ("train", "test"))
    test = held_out.gather(np.arange(len(held_out)))
    params = train(place, model, source)
    run = common.base_run(place)
    exact, bound = pixelcnn_bits(model, params, test), diffusion_bits(run, test)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    unet = sum(leaf.size for leaf in jax.tree.leaves(run.params))
    same = exact[:BOUND_IMAGES]
    error = np.std(bound - same, ddof=1) / np.sqrt(BOUND_IMAGES)
    found = {
        "pixelcnn": {"parameters": count, "bits": float(exact.mean()), "bits_same_images": float(same.mean())},
        "diffusion": {"parameters": unet, "bits_at_most": float(bound.mean())},
        "standard_error_of_difference": float(error),
        "growth": growth(place, model),
    }
    common.write_json(place.out / "results.json", found)
    head = ("images", "PixelCNN: passes", "CPU s an image", "diffusion: steps", "CPU s an image", "ratio")
    notes = (
        f"Bits per dimension of the first {BOUND_IMAGES} test images at 28x28: PixelCNN {same.mean():.3f}, "
        f"exact; diffusion at most {bound.mean():.3f}, by the variational bound (standard error of the difference "
        f"{error:.3f}). PixelCNN on all {len(exact)}: {exact.mean():.3f}. It has {count:,} parameters, trained for "
        f"{TRAIN_STEPS} steps of {BATCH} images; the U-Net has {unet:,}, and {run.step} steps. Seconds: batches of "
        f"{TIMED}, the U-Net on patches of 2x2 pixels at every side."
    )
    common.write_table(place, head, found["growth"], notes)
    grid = jax.jit(lambda key: draw(model, params, key, jnp.arange(40) % 10, 28, 784))(jax.random.key(0))
    pictures.write_png(place.out / "samples.png", pictures.grid(pictures.to_uint8(np.asarray(grid)), 10))
    points = {
        "PixelCNN": [(float(side), row[2]) for side, row in zip(SIDES, found["growth"], strict=True)],
        f"diffusion, {STEPS} steps": [(float(side), row[4]) for side, row in zip(SIDES, found["growth"], strict=True)],
    }
    common.write_plot(place, points, None, "CPU seconds an image", "side of the image in pixels")


if __name__ == "__main__":
    common.command(main)
