"""What train.py and the sampling loop add to bare calls of their compiled programs, and how long data are waited for.

    JAX_PLATFORMS=cpu uv run python -m benchmarks.overheads [--turns 3] [--steps 100] [--only memory grain sampling]

Training: `train.py digits` in turns (`turns.Job`: batches, logging, average, and every `steps` steps a checkpoint)
against as many calls of the same compiled step on one batch. `grain` is the same with the data decoded by Grain's
worker processes. Sampling: 50 steps of DDIM by `sample` against 50 calls of the compiled network, the digits
network on 16 images; its arithmetic (x_0, clipping, the update) is part of what it adds.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from benchmarks.turns import Job, ratio, start, table, take_turns
from configs.digits import config
from jaxdiff.assembly.assemble import assemble
from jaxdiff.commands import use_compilation_cache
from jaxdiff.data import sources
from jaxdiff.data.batches import Batches

CASES = ("memory", "grain", "sampling")
BATCH, DDIM_STEPS, DDIM_TURNS = 16, 50, 9


def training(turns: int, steps: int, workers: bool) -> list[object]:
    """A row: seconds a step bare and in train.py, their ratio, and the share of time that data were waited for."""
    before, sources.MEMORY_LIMIT = sources.MEMORY_LIMIT, 0 if workers else sources.MEMORY_LIMIT
    with tempfile.TemporaryDirectory() as folder:
        source = sources.open_dataset("digits")
        program = assemble(config, source).program
        state = [start(program)]
        batch = program.place([Batches(source, 0, config.train.batch_size)[0]])

        def bare(count=steps):
            for _ in range(count):
                state[0], metrics = program.step(state[0], batch, program.keys["train"])
            jax.block_until_ready((state[0], metrics))

        bare(1)
        job = Job(config, Path(folder, "run"), steps)
        took = take_turns({"bare": bare, "train.py": job}, turns, warm=False)
    sources.MEMORY_LIMIT = before
    whole = [turn["total"] for turn in job.spent]
    waited = sum(turn["data_wait"] for turn in job.spent) / sum(whole)
    each = [np.median(seconds) / steps for seconds in (took["bare"], whole)]
    where = "Grain workers" if workers else "memory"
    added = f"{ratio(whole, took['bare']) - 1:+.1%}"
    return [f"data from {where}", f"{each[0]:.4f}", f"{each[1]:.4f}", added, f"{waited:.2%}"]


def sampling() -> list[object]:
    """A row: seconds a step of bare calls and of `sample`, and their ratio."""
    model, schedule = config.model.module(1), jd.schedules.cosine()
    shape = (BATCH, 8, 8, 1)
    labels, t = jnp.zeros(BATCH, jnp.int32), jnp.full(BATCH, 0.5)
    params = model.init(jax.random.key(0), jnp.zeros(shape), t, labels)["params"]
    keys, x_T = jd.sample_keys(jax.random.key(0), BATCH), jax.random.normal(jax.random.key(1), shape)
    times = jd.time_grid(schedule, DDIM_STEPS)
    network = jax.jit(lambda params, x, t: model.apply({"params": params}, x, t, labels))

    @jax.jit
    def draw(params, x_T):
        predict = lambda x_t, t, cond: model.apply({"params": params}, x_t, t, cond)  # noqa: E731
        denoise = jd.as_denoiser(predict, schedule=schedule, cond=labels)
        return jd.sample(keys, denoise, jd.samplers.ddim(), times=times, schedule=schedule, x_T=x_T)

    def bare():
        x = x_T
        for _ in range(DDIM_STEPS):
            x = network(params, x, t)
        x.block_until_ready()

    took = take_turns({"bare": bare, "sample": lambda: draw(params, x_T).block_until_ready()}, DDIM_TURNS)
    each = [np.median(took[name]) / DDIM_STEPS for name in ("bare", "sample")]
    return ["sampling", f"{each[0]:.4f}", f"{each[1]:.4f}", f"{ratio(took['sample'], took['bare']) - 1:+.1%}", ""]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    arguments = parser.parse_args()
    use_compilation_cache()
    rows = []
    for case in arguments.only:
        rows.append(sampling() if case == "sampling" else training(arguments.turns, arguments.steps, case == "grain"))
    print(table(["", "bare s a step", "s a step", "added", "waiting for data"], rows))  # below what train.py says


if __name__ == "__main__":
    main()
