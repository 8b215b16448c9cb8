"""(b) Predicting the noise, the image or v, and (c) the cosine against the linear schedule: same budget, three seeds.

    uv run python -m benchmarks.experiments.predictions --data FOLDER

Every network is asked the same question afterwards: how far is its estimate of the noise from the noise, at each noise
level, on test images. (In units of the image that error is sigma/alpha times as large, whatever a network predicts.)
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.experiments import common
from jaxdiff import add_noise, as_denoiser
from jaxdiff.config import Sampling, make_schedule
from jaxdiff.data.sources import open_dataset

STEPS, SEEDS, IMAGES = 500, (0, 1, 2), 500
CELLS = [("cosine", "noise"), ("cosine", "x_0"), ("cosine", "v"), ("linear", "noise")]
LOG_SNR = np.array([8.0, 6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0, -8.0])


def noise_errors(run: common.Run, images: np.ndarray, labels: np.ndarray) -> list[float]:
    """The mean square of noise estimate minus noise, at each of LOG_SNR."""
    schedule, model = make_schedule(run.config.diffusion), run.config.model.module(1)
    x_0 = jnp.asarray(images, jnp.float32) / 127.5 - 1.0
    noise = jax.random.normal(jax.random.key(1), x_0.shape)

    @jax.jit
    def error(params: Any, t: jax.Array) -> jax.Array:
        predict = functools.partial(_predict, model, params)
        denoise = as_denoiser(predict, schedule=schedule, prediction=run.config.diffusion.prediction, cond=labels)
        return jnp.mean((denoise(add_noise(x_0, noise, schedule(t)), t).noise - noise) ** 2)

    return [float(error(run.params, schedule.time_of_log_snr(jnp.float32(level)))) for level in LOG_SNR]


def _predict(model: Any, params: Any, x_t: jax.Array, t: jax.Array, cond: jax.Array) -> Any:
    return model.apply({"params": params}, x_t, t, cond)


def main() -> None:
    place = common.start("predictions", __doc__)
    ruler = common.Ruler(place, 2000)
    test = open_dataset("fashion_mnist", place.data, "test").gather(np.arange(IMAGES))
    floor, found = ruler.floor(), {}
    for seed in SEEDS:  # a seed of every cell before the next seed
        for schedule, prediction in CELLS:
            config = common.change(
                common.base(place),
                seed=seed,
                diffusion={"schedule": schedule, "prediction": prediction},
                train={
                    "steps": STEPS,
                    "checkpoint_every": STEPS,
                    "sample_every": 0,
                    "ema_decay": 0.99,
                    "posthoc_ema": (),
                },
            )
            run = common.trained(place, f"{schedule}-{prediction}-{seed}", config)
            row = ruler.row(
                run, Sampling(sampler="ddim", steps=20), schedule=schedule, prediction=prediction, train_seed=seed
            )
            errors = noise_errors(run, test["image"], test["label"])
            found.setdefault((schedule, prediction), []).append((row, errors))
        if seed:
            write(place, floor, found)


def write(place: common.Place, floor: common.Row, found: dict) -> None:
    """Two tables in one file: quality, and the error by noise level; the plot is of the second."""
    head = ("schedule", "prediction", "FID", "recall", *(f"{level:g}" for level in LOG_SNR))
    lines, points, seeds = [], {}, 0
    for (schedule, prediction), runs in found.items():
        rows, errors = [row for row, _ in runs], np.array([errors for _, errors in runs])
        seeds = len(rows)
        fid = common.mean_and_spread([row["values"]["fid"] for row in rows])
        recall = common.mean_and_spread([row["values"]["recall"] for row in rows])
        lines.append(
            [schedule, prediction, fid, recall, *(common.mean_and_spread(errors[:, i]) for i in range(len(LOG_SNR)))]
        )
        snr = [float(np.exp(level / 2)) for level in LOG_SNR]
        points[f"{schedule}, {prediction}"] = list(zip(snr, errors.mean(axis=0).tolist(), strict=True))
    lines.append(["test images (floor)", "", f"{floor['values']['fid']:.4g}", f"{floor['values']['recall']:.4g}"])
    extra = (
        f"DDIM, 20 steps. {seeds} seeds of training, mean ± standard deviation, {STEPS} steps of 64 images each. "
        f"The columns after recall: mean square error of the noise estimate on {IMAGES} test images at this log-SNR."
    )
    common.write_table(place, head, lines, common.notes(found["cosine", "noise"][0][0], extra))
    common.write_json(
        place.out / "noise_errors.json",
        {f"{schedule} {prediction}": [errors for _, errors in runs] for (schedule, prediction), runs in found.items()}
        | {"log_snr": LOG_SNR.tolist()},
    )
    common.write_plot(place, points, None, "mean square error of the noise estimate", "alpha/sigma: clean on the right")


if __name__ == "__main__":
    common.command(main)
