"""How cost grows with the work: batch, resolution, width, sampling steps, simulated devices; exponents beside expected.

    JAX_PLATFORMS=cpu uv run python -m benchmarks.scaling [--turns 5]

The network is the digits U-Net of configs/digits.py unless a row changes it. Sizes of a row take turns; an exponent is
fitted to the medians on logarithms. Devices are simulated on the same cores, so the same global batch should take the
same time on any number of them: what it takes more is the price of splitting, and no measure of real devices.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from benchmarks.turns import exponent, line, start, table, take_turns
from configs.digits import config
from jaxdiff.assembly.assemble import assemble
from jaxdiff.config import Config
from jaxdiff.data.description import Expected


def step(changed: Config, side: int = 8) -> Callable[[], None]:
    """A function that does one training step."""
    program = assemble(changed, Expected((side, side, 1), 10)).program
    rows = changed.train.batch_size
    image, label = np.zeros((rows, side, side, 1), np.uint8), np.zeros(rows, np.int32)
    batch = program.place([{"image": image, "label": label, "row": np.arange(rows, dtype=np.int32)}])
    state = [start(program)]

    def run() -> None:
        state[0], metrics = program.step(state[0], batch, program.keys["train"])
        jax.block_until_ready((state[0], metrics))

    return run


def with_batch(rows: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=rows))


def with_width(channels: int) -> Config:
    return dataclasses.replace(with_batch(16), model=dataclasses.replace(config.model, channels=channels))


def ddim(steps: int) -> Callable[[], None]:
    """A function that draws 16 images in so many steps."""
    model, schedule, shape = config.model.module(1), jd.schedules.cosine(), (16, 8, 8, 1)
    labels = jnp.zeros(16, jnp.int32)
    params = model.init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(16), labels)["params"]
    denoise = jd.as_denoiser(lambda x, t, c: model.apply({"params": params}, x, t, c), schedule=schedule, cond=labels)
    keys = jd.sample_keys(jax.random.key(0), 16)
    draw = jax.jit(lambda x, times: jd.sample(keys, denoise, SAMPLER, x_T=x, times=times, schedule=schedule))
    x, times = jnp.ones(shape), jd.time_grid(schedule, steps)
    return lambda: draw(x, times).block_until_ready()


SAMPLER = jd.samplers.ddim()
ROWS: dict[str, tuple[float, list[int], Callable[[int], Callable[[], None]]]] = {
    "batch": (1, [16, 32, 64], lambda n: step(with_batch(n))),
    "pixels a side": (2, [8, 16, 32], lambda n: step(with_batch(8), n)),
    "width": (2, [32, 64, 128], lambda n: step(with_width(n))),
    "sampling steps": (1, [10, 20, 40, 80], ddim),
}


def measure(expected: float, sizes: list[int], make: Callable[[int], Callable[[], None]], turns: int) -> list[object]:
    """Sizes, medians and exponents of a row."""
    took = take_turns({str(size): make(size) for size in sizes}, turns)
    seconds = [median(took[str(size)]) for size in sizes]
    times = " ".join(f"{x:.3f}" for x in seconds)
    return [" ".join(map(str, sizes)), times, f"{exponent(sizes, seconds):.2f}", expected]


def devices(counts: list[int], turns: int) -> list[object]:
    """The same for a step on simulated devices, each count in a process of its own, in turns."""
    took: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(max(2, turns // 2)):
        for count in counts:
            flags = f"--xla_force_host_platform_device_count={count}"
            command = [sys.executable, "-m", "benchmarks.scaling", "--one-step"]
            done = subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, check=True)
            took[count].append(json.loads(done.stdout.splitlines()[-1]))
    seconds = [min(took[count]) for count in counts]
    times = " ".join(f"{x:.3f}" for x in seconds)
    return [" ".join(map(str, counts)), times, f"{exponent(counts, seconds):.2f}", 0]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--one-step", action="store_true", help="the seconds of a step of 64 images, and nothing else")
    arguments = parser.parse_args()
    if arguments.one_step:
        print(min(take_turns({"step": step(with_batch(64))}, 5)["step"]))
        return
    print(table(["", "sizes", "seconds", "exponent", "expected"], []), flush=True)
    for name, row in ROWS.items():
        print(line([name, *measure(*row, arguments.turns)]), flush=True)
    print(line(["devices, simulated", *devices([1, 2, 4, 8], arguments.turns)]))


if __name__ == "__main__":
    main()
