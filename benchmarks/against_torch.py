"""The DDPM CIFAR-10 U-Net, same weights, against diffusers on torch: forward, training step, 50-step DDIM, train.py.

    uv run --extra interop python -m benchmarks.against_torch TORCH_PYTHON [--pairs 7] [--compile]
        [--only forward step ddim train]

TORCH_PYTHON is a Python with torch and diffusers (scripts/make_interop_fixtures.py says how to make one). It runs in a
process of its own, idle while JAX works; the sides take turns, and what counts is the median of the ratios of
neighbouring turns: the machine may drift, but must be otherwise idle (torch's threads wait for each other). float32,
all cores, torch in channels_last; batch 8, DDIM batch 4. A step: forward, backward, clipping, AdamW (torch: fused) and
the average of the parameters. `train` is a step of the whole `train.py` (`turns.Job`, 16 steps and a checkpoint a
turn, from memory) against the same by hand in torch: DataLoader, flips, noising, a step, its loss read, a checkpoint.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, DDIM_BATCH, DDIM_STEPS, TRAIN_STEPS = 8, 4, 50, 16
CASES = ("forward", "step", "ddim", "train")


def torch_side(folder: str, compiled: bool) -> None:
    """Answers each case named on stdin with the seconds it took."""
    import numpy
    import torch
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from PIL import Image

    torch.manual_seed(0)
    net = UNet2DModel.from_pretrained(folder, subfolder="unet").to(memory_format=torch.channels_last)
    call = torch.compile(net) if compiled else net
    average = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def images(batch):
        return torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)

    x, times = images(BATCH), torch.randint(0, 1000, (BATCH,))

    def forward():
        with torch.no_grad():
            call(x, times)

    def step():
        noise = torch.randn_like(x)
        descend(x + noise, times, noise)

    def descend(noisy, times, noise):
        loss = torch.mean((call(noisy, times).sample - noise) ** 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(net.parameters()), 1e-4)
        return loss

    pixels = torch.tensor(numpy.stack([numpy.asarray(Image.open(f)) for f in sorted(Path(folder).glob("images/*"))]))
    noising = DDPMScheduler(num_train_timesteps=1000)

    def train():
        loader = torch.utils.data.DataLoader(pixels.permute(0, 3, 1, 2), BATCH, shuffle=True, drop_last=True)
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for batch in itertools.islice(batches, TRAIN_STEPS):
            batch = batch / 127.5 - 1
            flip = torch.rand(BATCH, 1, 1, 1) < 0.5
            batch = torch.where(flip, batch.flip(-1), batch).to(memory_format=torch.channels_last)
            noise, times = torch.randn_like(batch), torch.randint(0, 1000, (BATCH,))
            descend(noising.add_noise(batch, noise, times), times, noise).item()
        state = {"net": net.state_dict(), "average": average, "optimizer": optimizer.state_dict()}
        torch.save(state, Path(folder, "checkpoint.pt"))

    def ddim():
        scheduler = DDIMScheduler(num_train_timesteps=1000)
        scheduler.set_timesteps(DDIM_STEPS)
        sample = images(DDIM_BATCH)
        with torch.no_grad():
            for t in scheduler.timesteps:
                sample = scheduler.step(call(sample, t).sample, t, sample).prev_sample

    for line in sys.stdin:
        case = line.strip()
        spent = seconds({"forward": forward, "step": step, "train": train, "ddim": ddim}[case])
        print(json.dumps(spent / TRAIN_STEPS if case == "train" else spent), flush=True)


def jax_side(folder: str) -> dict:
    """{case: a function that runs it and returns the seconds it took}."""
    from dataclasses import replace

    import jax
    import jax.numpy as jnp

    import jaxdiff as jd
    from benchmarks.turns import Job
    from configs.cifar10 import config
    from jaxdiff.commands import use_compilation_cache
    from jaxdiff.interop import read_unet
    from jaxdiff.models.winograd import prepared
    from jaxdiff.objectives import Objective
    from jaxdiff.training import ema
    from jaxdiff.training.optimizer import make_optimizer
    from jaxdiff.training.state import init_state
    from jaxdiff.training.step import make_train_step

    found = read_unet(folder)
    net, params = found.network, jax.device_put(found.params)
    schedule = jd.schedules.linear(1000)
    key = jax.random.key(0)
    x, t = jax.random.normal(key, (BATCH, 32, 32, 3)), jnp.linspace(0.1, 1.0, BATCH)
    run = jax.jit(lambda params, x, t: net.apply({"params": params}, x, t))

    def loss(params, frozen, batch, keys):
        predict = lambda x_t, t, cond: net.apply({"params": params}, x_t, t)  # noqa: E731
        return jd.denoising_loss(keys, predict, batch["image"], schedule=schedule)

    optimizer = make_optimizer(1e-4)
    train = make_train_step(Objective(loss), optimizer, lambda average, p, step: ema.update(average, p, step, 0.9999))
    train = jax.jit(train, donate_argnums=0)
    state = [init_state(jax.tree.map(jnp.copy, params), optimizer)]
    batch = {"image": x, "row": jnp.arange(BATCH)}

    def step():
        state[0], metrics = train(state[0], batch, key)
        jax.block_until_ready((state[0], metrics))

    @jax.jit
    def draw(params, key):
        variables = prepared(params)
        denoise = jd.as_denoiser(lambda x_t, t, cond: net.apply(variables, x_t, t), schedule=schedule)
        times = jd.time_grid(schedule, DDIM_STEPS)
        keys = jd.sample_keys(key, DDIM_BATCH)
        return jd.sample(keys, denoise, jd.samplers.ddim(), shape=(32, 32, 3), times=times, schedule=schedule)

    data = replace(config.data, name="folder", path=f"{folder}/images")
    model = replace(config.model, dropout=0.0)
    ours = replace(config, data=data, model=model, train=replace(config.train, batch_size=BATCH))
    job = Job(ours, Path(folder, "run"), TRAIN_STEPS)

    def job_step():
        use_compilation_cache()  # each call starts anew and would compile anew; no case follows this one
        job()
        return job.spent[-1]["total"] / TRAIN_STEPS

    return {
        "forward": lambda: seconds(lambda: run(params, x, t).block_until_ready()),
        "step": lambda: seconds(step),
        "train": job_step,
        "ddim": lambda: seconds(lambda: draw(params, key).block_until_ready()),
    }


def export(folder: str) -> None:
    """Our network with random weights as a diffusers pipeline, and pictures, which both sides load."""
    import jax
    import jax.numpy as jnp

    import jaxdiff as jd
    from benchmarks.startup import pictures
    from jaxdiff.config import Model
    from jaxdiff.interop import export_pipeline
    from jaxdiff.models import UNet

    fields = vars(Model()) | {"out_channels": 3}
    init = jax.jit(UNet(**fields).init, compiler_options={"xla_backend_optimization_level": 0})
    params = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))["params"]
    export_pipeline(fields, params, (32, 32, 3), jd.schedules.linear(1000), "noise", Path(folder))
    pictures(Path(folder, "images"))


def seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    """Runs the pairs and prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("torch_python")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile on their side (minutes)")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    arguments = parser.parse_args()
    from statistics import median

    from benchmarks.turns import line, table

    with tempfile.TemporaryDirectory() as folder:
        export(folder)
        side = [arguments.torch_python, __file__, "--torch-side", folder, str(int(arguments.compile))]
        torch = subprocess.Popen(side, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ours = jax_side(folder)

        def theirs(case: str) -> float:
            print(case, file=torch.stdin, flush=True)
            return json.loads(torch.stdout.readline())

        head = ["case", "torch compiled s" if arguments.compile else "torch s", "jaxdiff s", "ratio"]
        print(table(head, []), flush=True)
        for case in arguments.only:
            first = f"{ours[case]():.1f}, {theirs(case):.1f}"
            turns = [(theirs(case), ours[case]()) for _ in range(arguments.pairs)]
            times = [f"{median(column):.3f}" for column in zip(*turns, strict=True)]
            cells = [case, *times, f"{median(mine / yours for yours, mine in turns):.3f}"]
            print(line(cells) + f"   first calls, torch's last: {first} s", flush=True)
        torch.stdin.close()
        torch.wait()


if __name__ == "__main__":
    if "--torch-side" in sys.argv:
        torch_side(sys.argv[2], bool(int(sys.argv[3])))
    else:
        main()
