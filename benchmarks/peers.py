"""Fifty DDIM steps by JAX libraries of PyPI around the same network, in turns; and of each the first call.

    JAX_PLATFORMS=cpu uv run python -m benchmarks.peers hackable-diffusion=PYTHON diffusionlab=PYTHON ... [--turns 7]

PYTHON is of an environment of its own with that library (`uv venv X; VIRTUAL_ENV=X uv pip install NAME`), since they
want other versions of JAX. Each side is a process, idle while others work. The network is plain JAX and the same for
all: five 3x3 convolutions of 64 channels on 8 images of 16x16; weights are random, schedules each library's own cosine
(diffusionlab: its only variance-preserving process), and what counts is time: a step beside a bare call of the network
in the same process. A library that does not run is left out with its error.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

STEPS, SHAPE, CHANNELS = 50, (8, 16, 16, 3), 64


def network() -> Callable[..., Any]:
    """net(x, t): x [..., h, w, c] with or without a batch, t a scalar or one a sample."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    generator = np.random.default_rng(0)
    widths = [(SHAPE[-1], CHANNELS), *[(CHANNELS, CHANNELS)] * 3, (CHANNELS, SHAPE[-1])]
    kernels = [jnp.asarray(0.05 * generator.standard_normal((3, 3, a, b)), jnp.float32) for a, b in widths]

    def net(x, t):
        single = x.ndim == 3
        h = x[None] if single else x
        h = h + jnp.sin(jnp.reshape(t, (-1, 1, 1, 1)).astype(jnp.float32))
        for kernel in kernels:
            h = jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            h = jax.nn.silu(h)
        return h[0] if single else h

    return net


def jaxdiff() -> Callable[..., Any]:
    import jax

    import jaxdiff as jd

    net, schedule = network(), jd.schedules.cosine()
    denoise = jd.as_denoiser(lambda x, t, cond: net(x, t), schedule=schedule)
    keys, times = jd.sample_keys(jax.random.key(0), SHAPE[0]), jd.time_grid(schedule, STEPS)
    return jax.jit(lambda x: jd.sample(keys, denoise, jd.samplers.ddim(), x_T=x, times=times, schedule=schedule))


def hackable_diffusion() -> Callable[..., Any]:
    import jax
    from hackable_diffusion.lib.corruption import gaussian, schedules
    from hackable_diffusion.lib.sampling import gaussian_step_sampler, sampling, time_scheduling

    net, process = network(), gaussian.GaussianProcess(schedule=schedules.CosineSchedule())
    stepper = gaussian_step_sampler.DDIMStep(corruption_process=process, stoch_coeff=0.0)
    run = sampling.DiffusionSampler(
        time_schedule=time_scheduling.UniformTimeSchedule(),
        stepper=stepper,
        num_steps=STEPS,
        store_trajectory=False,
    )

    def infer(time, xt, conditioning=None):
        return {"epsilon": net(xt, time)}

    return jax.jit(lambda x: run(infer, jax.random.key(0), x, None)[0].xt)


def diffusionlab() -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp
    from diffusionlab.dynamics import VariancePreservingProcess
    from diffusionlab.samplers import DDMSampler
    from diffusionlab.vector_fields import VectorFieldType

    sampler = DDMSampler(VariancePreservingProcess(), network(), VectorFieldType.EPS, use_stochastic_sampler=False)
    times = jnp.linspace(0.999, 0.001, STEPS + 1)
    noise = jnp.zeros((STEPS, *SHAPE[1:]))
    return jax.jit(jax.vmap(lambda x: sampler.sample(x, noise, times)))


def dewml() -> Callable[..., Any]:
    import jax
    from dew.diffusion.presets import Cosine, build_process
    from dew.sampling.sample import sample
    from dew.sampling.solvers.gaussian import DDIM

    net = network()

    class Model:
        def apply(self, params, x, t):
            return net(x, t)

    denoise = build_process(Cosine()).denoiser(Model(), {}, {})
    options = {"solver": DDIM(), "key": jax.random.key(0), "final_denoise": False}
    return jax.jit(lambda x: sample(denoise, x, STEPS + 1, **options))


def flaxdiff() -> Callable[..., Any]:
    import jax
    from flaxdiff.inputs import DiffusionInputConfig
    from flaxdiff.predictors import EpsilonPredictionTransform
    from flaxdiff.samplers.ddim import DDIMSampler
    from flaxdiff.schedulers import CosineNoiseScheduler
    from flaxdiff.utils import RandomMarkovState

    net = network()

    class Model:
        def apply(self, params, x, t):
            return net(x, t)

    config = DiffusionInputConfig(sample_data_key="image", sample_data_shape=SHAPE[1:], conditions=[])
    transform = EpsilonPredictionTransform()
    sampler = DDIMSampler(Model(), CosineNoiseScheduler(1000), transform, input_config=config)
    state = RandomMarkovState(jax.random.PRNGKey(0))
    options = {"num_samples": SHAPE[0], "resolution": SHAPE[1], "diffusion_steps": STEPS, "rngstate": state}
    return lambda x: sampler.generate_samples({}, priors=x, model_conditioning_inputs=(), **options)


SIDES = {
    "jaxdiff": jaxdiff,
    "hackable-diffusion": hackable_diffusion,
    "diffusionlab": diffusionlab,
    "dewml": dewml,
    "flaxdiff": flaxdiff,
}


def side(name: str) -> None:
    """Says what it is and how long the first call took, then answers each line with (seconds of sampling, of bare)."""
    import contextlib
    import importlib.metadata
    import os

    import jax
    import jax.numpy as jnp

    net = jax.jit(network())
    x, t = jnp.ones(SHAPE), jnp.full(SHAPE[0], 0.5)

    def bare():
        y = x
        for _ in range(STEPS):
            y = net(y, t)
        return y

    def seconds(action):
        began = time.perf_counter()
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            jax.block_until_ready(action())
        return time.perf_counter() - began

    draw = SIDES[name]()
    first = seconds(lambda: draw(x))
    seconds(bare)
    print(json.dumps([importlib.metadata.version(name), jax.__version__, first]), flush=True)
    for _ in sys.stdin:
        print(json.dumps([seconds(lambda: draw(x)), seconds(bare)]), flush=True)


def main() -> None:
    """Runs the turns and prints the table."""
    from benchmarks.turns import ratio, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="NAME=PYTHON")
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    pythons = {"jaxdiff": sys.executable} | dict(peer.split("=", 1) for peer in arguments.peers)
    running, about = {}, {}
    for name, python in pythons.items():
        command = [python, str(Path(__file__)), "--side", name]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if line := process.stdout.readline():
            running[name], about[name] = process, json.loads(line)
        else:
            said = process.stderr.read().splitlines()
            error = next((line for line in reversed(said) if "Error" in line), "no error was printed")
            print(f"{name} does not run: {error}", flush=True)
    took = {name: [] for name in running}
    for _ in range(arguments.turns):
        for name, process in running.items():
            print("go", file=process.stdin, flush=True)
            took[name].append(json.loads(process.stdout.readline()))
    rows = []
    for name, turns in took.items():
        drawn, bare = zip(*turns, strict=True)
        version, jax_version, first = about[name]
        added, against = ratio(drawn, bare) - 1, ratio(drawn, [turn[0] for turn in took["jaxdiff"]])
        cells = [f"{median(drawn) / STEPS * 1e3:.2f}", f"{added:+.1%}", f"{against:.2f}", f"{first:.1f}"]
        rows.append([name, version, jax_version, *cells])
    head = ["library", "version", "jax", "ms a step", "over bare calls", "to jaxdiff", "first call s"]
    print(table(head, rows))
    for process in running.values():
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    if "--side" in sys.argv:
        side(sys.argv[-1])
    else:
        main()
