"""What serving any number of steps with one program costs: padded times against a program made for that number.

    JAX_PLATFORMS=cpu uv run python -m benchmarks.step_time

Both run 50 steps of DDIM with the U-Net of configs/digits.py on 16 images: one through `sample` with times padded to
1000 steps, the other a plain `jax.lax.scan` of 50 steps without a branch. They take turns, and the figure is the median
of the ratios of neighbours, so that a machine that others use as well slows both.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from configs.digits import config

STEPS, PADDED, BATCH, TURNS = 50, 1000, 16, 15


def rows() -> list[dict]:
    """The ratios of TURNS turns, padded over plain."""
    with jax.enable_x64(False):
        model, schedule = config.model.module(1), jd.schedules.cosine()
        shape = (BATCH, 8, 8, 1)
        labels = jnp.zeros(BATCH, jnp.int32) if config.model.num_classes else None
        params = model.init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(BATCH), labels)["params"]
        keys, x_T = jd.sample_keys(jax.random.key(0), BATCH), jax.random.normal(jax.random.key(1), shape)
        sampler = jd.samplers.ddim()

        def predict(x_t, t, cond):
            return model.apply({"params": params}, x_t, t, cond)

        denoise = jd.as_denoiser(predict, schedule=schedule, cond=labels)

        @jax.jit
        def padded(times, x_T):
            return jd.sample(keys, denoise, sampler, times=times, schedule=schedule, x_T=x_T)

        @jax.jit
        def plain(times, x_T):
            def body(x, pair):
                return sampler.step(keys, denoise, x, (), *pair, schedule=schedule)[0], None

            return jax.lax.scan(body, x_T, (times[:-1], times[1:]))[0]

        runs = {
            "plain": (plain, jd.time_grid(schedule, STEPS)),
            "padded": (padded, jd.time_grid(schedule, STEPS, max_steps=PADDED)),
        }
        ends = [np.asarray(run(times, x_T)) for run, times in runs.values()]
        np.testing.assert_allclose(*ends, atol=1e-3)

        def seconds(name):
            run, times = runs[name]
            began = time.perf_counter()
            run(times, x_T).block_until_ready()
            return time.perf_counter() - began

        ratios = []
        for turn in range(TURNS):  # who comes first alternates
            first, second = ("plain", "padded") if turn % 2 else ("padded", "plain")
            took = {first: seconds(first), second: seconds(second)}
            ratios.append(took["padded"] / took["plain"])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return [
        {"turns": TURNS, "ratio": round(float(middle), 3), "low": round(float(low), 3), "high": round(float(high), 3)}
    ]


if __name__ == "__main__":
    print(rows()[0])
