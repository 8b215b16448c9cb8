"""One session on an accelerator: right, reproducible, and how fast against torch on the same device.

    python -m benchmarks.accelerator [--out FOLDER] [--minutes 8] [--torch PYTHON] [--data FOLDER]
        [--parts forward images resume timings profile train] [--toy]

Works with jax 0.11.2 and later, fetches nothing, ends within its minutes, and leaves accelerator.json and
accelerator.md in the folder, written anew after each finding, so that a session cut short leaves what it had:

- forward: each kind of network against the CPU in float32: in float32, as the device does it (TF32 on GPUs), in bf16;
- images: the same from the same seed as on the CPU;
- resume: `train.py --verify-resume` on the device, of Fashion-MNIST, or of the digits where there is no --data;
- timings: a forward pass, a training step and 50 steps of DDIM in bf16: the U-Net of the config cifar10, DiT-B/2 at
  32x32x4, a U-Net of Stable Diffusion 1.5's size; in turns with torch, eager and compiled (accelerator_torch.py);
- profile: the ten kernels that take most of a training step;
- train: `--train-seconds` of a class-conditional U-Net on Fashion-MNIST (--data, its idx files) and its FID.

Utilisation (MFU) is the arithmetic of convolutions and products, a training step counted as three forward passes,
over the published peak in bf16. --toy is the same at sizes for a CPU, for tests.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory of the same device

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from benchmarks.turns import table
from configs.cifar10 import config as cifar10
from jaxdiff.models import Autoencoder, Classifier, DiT, Model, TextEncoder
from jaxdiff.models.winograd import prepared
from jaxdiff.objectives import Objective
from jaxdiff.plan import peak_flops
from jaxdiff.plan.flops import count_flops
from jaxdiff.training import ema
from jaxdiff.training.optimizer import make_optimizer
from jaxdiff.training.state import init_state
from jaxdiff.training.step import make_train_step

PARTS = ("forward", "images", "resume", "timings", "profile", "train")
BOUNDS = {"float32": 1e-4, "as the device does it": 1e-2, "bfloat16": 5e-2}  # of the norm of the CPU's output
SAME_IMAGES = 1e-3  # likewise, in float32
STEPS, TURNS, TURN_SECONDS = 50, 5, 0.25


class Report:
    """What was found, written anew after each finding.

    Args:
      folder: where the two files go.
      end: `time.monotonic()` at which all must be done.
    """

    def __init__(self, folder: Path, end: float):
        self.folder, self.end = folder, end
        self.found: dict[str, Any] = {}
        self._began = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def add(self, part: str, name: str, value: Any) -> None:
        """Notes a finding."""
        self.found.setdefault(part, {})[name] = value
        self.found["seconds"] = round(time.monotonic() - self._began, 1)
        (self.folder / "accelerator.json").write_text(json.dumps(self.found, indent=1) + "\n")
        (self.folder / "accelerator.md").write_text(page(self.found))
        print(f"{self.found['seconds']:6.1f} s  {part}, {name}: {json.dumps(value)[:400]}", flush=True)

    @contextlib.contextmanager
    def surviving(self, name: str):
        """What fails inside is noted, and the session goes on."""
        try:
            yield
        except Exception as error:
            self.add("failed", name, f"{type(error).__name__}: {error}"[:500])


def filled(shapes: Any, seed: int = 0) -> Any:
    """Arrays of these shapes in host memory: kernels of outputs about as large as inputs, none of them zero."""
    noise = np.random.default_rng(seed).standard_normal(2**20 + 7, np.float32)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        fan_in = np.prod(leaf.shape[-4:-1]) if leaf.ndim > 1 else 2500
        values = np.resize(noise, leaf.shape) / np.float32(np.sqrt(fan_in))
        return values + np.float32(path[-1].key == "scale")

    return jax.tree_util.tree_map_with_path(fill, shapes)


def toy_networks() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """{name: (dtype -> the module, its arguments)}: one of each kind, small."""
    normal = lambda *shape: np.random.default_rng(1).standard_normal(shape, np.float32)  # noqa: E731
    x, t, label = normal(4, 16, 16, 3), np.linspace(0.1, 1, 4, dtype=np.float32), {"label": np.arange(4)}
    ddpm = Model(channels=32, channel_mults=(1, 2), blocks=1, attention_resolutions=(8,), num_classes=10)
    adm = dataclasses.replace(ddpm, time_injection="scale_shift", resample="resblock", head_dim=16, patch=2)
    text = dataclasses.replace(ddpm, num_classes=0, attention_resolutions=(), attention_levels=(0, 1), num_heads=4)
    dit, many = DiT(width=64, depth=2, num_heads=4), DiT(width=256, depth=1, num_heads=4, patch=1)
    nets = {
        "U-Net, DDPM": (ddpm, (x, t, label)),
        "U-Net, ADM, patches": (dataclasses.replace(adm, attention_resolutions=(4,)), (x, t, label)),
        "U-Net with text": (text, (x, t, {"text": normal(4, 7, 24)})),
        "DiT": (dit, (x, t, {})),
        "DiT, 1024 tokens": (many, (normal(8, 32, 32, 4), np.linspace(0.1, 1, 8, dtype=np.float32), {})),
    }

    def module(options: Any, channels: int, dtype: str) -> Any:
        return dataclasses.replace(options, dtype=dtype).module(channels)

    found: dict[str, Any] = {
        name: (functools.partial(module, options, arguments[0].shape[-1]), arguments)
        for name, (options, arguments) in nets.items()
    }
    coder = lambda dtype: Autoencoder(channels=32, channel_mults=(1, 2), blocks=1, norm_groups=8, dtype=dtype)  # noqa: E731
    reader = lambda dtype: TextEncoder(100, 16, 64, 2, 4, 256, dtype=dtype)  # noqa: E731
    found["autoencoder"] = (coder, (x,))
    found["text encoder"] = (reader, (np.arange(64).reshape(4, 16),))
    found["classifier"] = (lambda dtype: Classifier(10), (normal(4, 28, 28, 1),))
    return found


def error(value: Any, reference: Any) -> float:
    """The norm of the difference over the reference's."""
    value, reference = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(y))]) for y in (value, reference)
    )
    return float(np.linalg.norm(value.astype(np.float64) - reference) / np.linalg.norm(reference.astype(np.float64)))


def forward(report: Report, pool: ThreadPoolExecutor, toy: bool) -> None:
    """Part (b): each kind of network here and on the CPU."""
    cpu = jax.devices("cpu")[0]

    def compare(name: str, make: Any, arguments: tuple[Any, ...]) -> None:
        shapes = jax.eval_shape(make("float32").init, jax.random.key(0), *arguments)
        given = (filled(shapes), *arguments)

        def out(dtype: str, precision: str | None = "highest", device: Any = None) -> Any:
            with jax.default_matmul_precision(precision):
                placed = jax.device_put(given, device or jax.devices()[0])
                return jax.device_get(jax.jit(make(dtype).apply)(*placed))

        reference = out("float32", device=cpu)
        ways = {"float32": ("float32", "highest"), "as the device does it": ("float32", None)}
        ways |= {} if name == "classifier" else {"bfloat16": ("bfloat16", None)}
        found = {way: error(out(*how), reference) for way, how in ways.items()}
        good = all(found[way] <= BOUNDS[way] for way in found)
        report.add("forward", name, {way: float(f"{e:.2g}") for way, e in found.items()} | {"within bounds": good})

    def guarded(name: str, *rest: Any) -> None:
        with report.surviving(f"forward, {name}"):
            compare(name, *rest)

    chosen = {name: how for name, how in toy_networks().items() if not toy or name in ("DiT", "classifier")}
    list(pool.map(lambda item: guarded(item[0], *item[1]), chosen.items()))


def images(report: Report) -> None:
    """Part (b): 50 steps of DDIM here and on the CPU, from the same seed."""
    make, (x, _, cond) = toy_networks()["U-Net, DDPM"]
    net, schedule = make("float32"), jd.schedules.cosine()
    params = filled(jax.eval_shape(net.init, jax.random.key(0), x, x[:, 0, 0, 0], cond))["params"]

    def draw(params: Any, label: Any) -> Any:
        predict = lambda x_t, t, cond: net.apply({"params": params}, x_t, t, cond)  # noqa: E731
        denoise = jd.as_denoiser(predict, schedule=schedule, cond={"label": label}, prediction="v")
        times, keys = jd.time_grid(schedule, STEPS), jd.sample_keys(jax.random.key(3), 4)
        return jd.sample(keys, denoise, jd.samplers.ddim(), shape=(16, 16, 3), times=times, schedule=schedule)

    def out(device: Any, precision: str | None) -> Any:
        with jax.default_matmul_precision(precision), jax.default_device(device):
            return jax.device_get(jax.jit(draw)(*jax.device_put((params, cond["label"]), device)))

    here, reference = jax.devices()[0], out(jax.devices("cpu")[0], "highest")
    found = {
        "float32": error(out(here, "highest"), reference),
        "as the device does it": error(out(here, None), reference),
    }
    again = out(here, None).tobytes() == out(here, None).tobytes()
    report.add("images", "same seed", found | {"bound": SAME_IMAGES, "within bound": found["float32"] <= SAME_IMAGES})
    report.add("images", "twice the same bits on the device", again)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network to be timed.

    Attributes:
      title: of it.
      options: ours.
      shape: of one x.
      text: tokens and width of its condition, () for none.
      batches: of a forward pass, a training step, sampling.
      kind: of torch's.
      theirs: options of torch's.
    """

    title: str
    options: Any
    shape: tuple[int, int, int]
    text: tuple[int, ...]
    batches: dict[str, int]
    kind: str
    theirs: dict[str, Any]

    def network(self) -> dict[str, Any]:
        """As the torch side wants it."""
        own = {"kind": self.kind, "options": self.theirs, "text": self.text, "batches": self.batches}
        return own | {"x": (self.shape[0], self.shape[-1]), "steps": STEPS}


def cases(toy: bool) -> dict[str, Case]:
    """The networks, the most wanted first."""
    width, heads, depth = (64, 4, 2) if toy else (768, 12, 12)
    side, small = (8, 8) if toy else (32, 64)
    dit = DiT(patch=2, width=width, depth=depth, num_heads=heads, dtype="bfloat16")
    their_dit = {"side": side, "channels": 4, "patch": 2, "width": width, "depth": depth, "heads": heads}
    model = dataclasses.replace(cifar10.model, dropout=0.0, dtype="bfloat16", channels=32 if toy else 128)
    if toy:
        model = dataclasses.replace(model, channel_mults=(1, 2), attention_resolutions=(4,), blocks=1)
    widths = [model.channels * mult for mult in model.channel_mults]
    attends = [side >> level in model.attention_resolutions for level in range(len(widths))]
    their_unet = {
        "sample_size": side,
        "block_out_channels": widths,
        "layers_per_block": model.blocks,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "norm_num_groups": 8 if toy else 32,
    }
    sd_widths, sd_heads = ((32, 64), 4) if toy else ((320, 640, 1280, 1280), 8)
    levels, text = len(sd_widths), (7, 24) if toy else (77, 768)
    sd = Model(
        channels=sd_widths[0],
        channel_mults=tuple(width // sd_widths[0] for width in sd_widths),
        blocks=1 if toy else 2,
        attention_resolutions=(),
        attention_levels=tuple(range(levels - 1)),
        num_heads=sd_heads,
        downsample_padding="both",
        norm_groups=8 if toy else 32,
        norm_eps=1e-5,
        frequency_shift=0,
        dtype="bfloat16",
    )
    their_sd = {
        "sample_size": small,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": sd_widths,
        "layers_per_block": sd.blocks,
        "down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
        "cross_attention_dim": text[1],
        "attention_head_dim": sd_heads,  # diffusers' name for the number of heads
        "norm_num_groups": sd.norm_groups,
    }

    def batches(forward: int, step: int, sample: int) -> dict[str, int]:
        return (
            dict.fromkeys(("forward", "step", "sample"), 2) if toy else dict(forward=forward, step=step, sample=sample)
        )

    return {
        "DiT-B/2": Case("DiT-B/2, 32x32x4", dit, (side, side, 4), (), batches(256, 256, 64), "dit", their_dit),
        "cifar10": Case(
            "cifar10, 32x32x3", model, (side, side, 3), (), batches(128, 128, 64), "UNet2DModel", their_unet
        ),
        "SD-1.5": Case(
            "SD-1.5's size, 64x64x4", sd, (small, small, 4), text, batches(8, 4, 4), "UNet2DConditionModel", their_sd
        ),
    }


class Ours:
    """A case in jaxdiff: its three programs, compiled side by side, in the background.

    Attributes:
      forward_flops: of one example's forward pass.
      compile_seconds: of each program.
    """

    def __init__(self, case: Case, pool: ThreadPoolExecutor):
        net = case.options.module(case.shape[-1])
        schedule = jd.schedules.linear(1000)
        optimizer = make_optimizer(1e-4)
        tell = lambda number: {"text": jnp.ones((number, *case.text))} if case.text else {}  # noqa: E731
        noise = lambda number: jax.random.normal(jax.random.key(1), (number, *case.shape))  # noqa: E731

        def run(params, x, t, cond):
            return net.apply({"params": params}, x, t, cond)

        def loss(params, frozen, batch, keys):
            predict = lambda x_t, t, cond: net.apply({"params": params}, x_t, t, cond)  # noqa: E731
            return jd.denoising_loss(
                keys, predict, batch["image"], schedule=schedule, cond={name: batch[name] for name in tell(1)}
            )

        def draw(params, key, cond):
            variables = prepared(params)
            predict = lambda x_t, t, cond: net.apply(variables, x_t, t, cond)  # noqa: E731
            denoise = jd.as_denoiser(predict, schedule=schedule, cond=cond)
            times, keys = jd.time_grid(schedule, STEPS), jd.sample_keys(key, case.batches["sample"])
            return jd.sample(keys, denoise, jd.samplers.ddim(), shape=case.shape, times=times, schedule=schedule)

        key, counts = jax.random.key(0), case.batches
        shapes = jax.eval_shape(net.init, key, jnp.zeros((1, *case.shape)), jnp.zeros(1), tell(1))["params"]
        params = filled(shapes)
        zeros = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda p: init_state(p, optimizer), params)
        )
        self._state: Any = jax.device_put(dataclasses.replace(zeros, params=params, ema_params=params))
        self._params = jax.device_put(params)
        step = make_train_step(Objective(loss), optimizer, lambda average, p, i: ema.update(average, p, i, 0.9999))
        batch = {"image": noise(counts["step"]), "row": jnp.arange(counts["step"]), **tell(counts["step"])}
        x, t = noise(counts["forward"]), jnp.linspace(0.1, 1.0, counts["forward"])
        self._arguments: dict[str, tuple[Any, ...]] = {
            "forward": (x, t, tell(counts["forward"])),
            "step": (batch, key),
            "sample": (key, tell(counts["sample"])),
        }
        self._programs: dict[str, Any] = {}
        self.compile_seconds: dict[str, float] = {}
        programs = {"step": jax.jit(step, donate_argnums=0), "sample": jax.jit(draw), "forward": jax.jit(run)}

        def compile_one(what: str) -> None:
            began = time.monotonic()
            first = self._state if what == "step" else self._params
            self._programs[what] = programs[what].lower(first, *self._arguments[what]).compile()
            self.compile_seconds[what] = round(time.monotonic() - began, 1)

        self._compiling = [pool.submit(compile_one, what) for what in programs]
        self.forward_flops = count_flops(run, shapes, x, t, tell(counts["forward"])) / counts["forward"]

    def compiled(self) -> bool:
        """Whether all are."""
        return all(future.done() for future in self._compiling)

    def wait(self, limit: float) -> None:
        """Until all are compiled."""
        for future in self._compiling:
            future.result(limit)

    def seconds(self, what: str, calls: int) -> float:
        """A call, the mean of that many in a row."""
        began, out = time.perf_counter(), None
        for _ in range(calls):
            if what == "step":
                self._state, out = self._programs[what](self._state, *self._arguments[what])
            else:
                out = self._programs[what](self._params, *self._arguments[what])
        jax.block_until_ready((out, self._state.step))
        return (time.perf_counter() - began) / calls

    def free(self) -> None:
        """Lets go of what it holds on the device."""
        self._programs, self._arguments, self._state, self._params = {}, {}, None, None

    def flops(self, what: str, batch: int) -> float:
        """Of a call."""
        return {"forward": 1, "step": 3, "sample": STEPS}[what] * batch * self.forward_flops


class Theirs:
    """The torch side's process; a question that it does not answer in time, or fails at, is None."""

    def __init__(self, python: str, report: Report, case: str):
        self._report, self._answers, self._case = report, queue.Queue(), case
        command = [python, Path(__file__).with_name("accelerator_torch.py")]
        log = (report.folder / f"torch-{case.replace('/', '')}.log").open("w")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        threading.Thread(target=self._read, daemon=True).start()
        self.alive = True

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._answers.put(json.loads(line))
        self._answers.put({"error": "the torch side ended"})

    def ask(self, **question: Any) -> None:
        """Sends a question; its answer is to be fetched before the next."""
        with contextlib.suppress(OSError):
            print(json.dumps(question), file=self._process.stdin, flush=True)

    def answer(self, about: str, limit: float | None = None) -> Any:
        """The answer to the question asked."""
        try:
            reply = self._answers.get(timeout=max(1.0, min(limit or 1e9, self._report.left)))
        except queue.Empty:
            reply = {"error": "no answer in time"}
        if "error" in reply:
            self._report.add("failed", f"torch, {self._case}, {about}", reply["error"])
            self.alive = self.alive and reply["error"] not in ("no answer in time", "the torch side ended")
        return reply.get("answer")

    def seconds(self, compiled: bool, what: str, calls: int) -> float:
        """A call, the mean of that many in a row."""
        self.ask(do="time", compiled=compiled, what=what, calls=calls)
        return self.answer(what) or float("nan")

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()


def timings(
    report: Report,
    pool: ThreadPoolExecutor,
    python: str,
    wanted: list[str],
    toy: bool,
    profile: bool,
    others: Callable[[], None],
) -> None:
    """Parts (c) and (d): all is compiled side by side, then timed network after network; others: waits for the rest.

    A compilation that is not done by then goes on and slows what is timed: rows say so.
    """
    found = {name: case for name, case in cases(toy).items() if name in wanted}
    torch: dict[str, Theirs] = {}
    for name, case in found.items():
        torch[name] = Theirs(python, report, name)
        for compiled in (False, True):
            torch[name].ask(do="prepare", compiled=compiled, network=case.network(), whats=list(case.batches))
    try:
        ours = {name: Ours(case, pool) for name, case in found.items()}
        timing = len(found) * (1 if toy else 15)  # seconds that are to be left then
        for name in found:
            with report.surviving(f"compiling, {name}"):
                ours[name].wait(max(1.0, report.left - timing))
                report.add("compiling s", name, ours[name].compile_seconds)
        others()
        sides: dict[str, dict[str, Any]] = {}
        for name in found:
            sides[name] = {"jaxdiff": ours[name].seconds}
            for compiled in (False, True):
                side = f"torch {'compiled' if compiled else 'eager'}"
                took = torch[name].answer(side, report.left - timing) if torch[name].alive else None
                if took is not None:
                    report.add("first calls s", f"{name}, {side}", {what: round(s, 1) for what, s in took.items()})
                    sides[name][side] = functools.partial(torch[name].seconds, compiled)
            if not torch[name].alive:  # it still computes, and would slow the others
                torch[name].close()
                sides[name] = {"jaxdiff": ours[name].seconds}
        for name, case in found.items():
            with report.surviving(f"timings, {name}"):
                for what in case.batches:
                    ours[name].seconds(what, 1)
                    row = in_turns(sides[name], ours[name], what, case, toy)
                    row |= {} if all(side.compiled() for side in ours.values()) else {"beside compiling": True}
                    report.add("timings", f"{name}, {what}", row)
                if profile:
                    report.add("profile", f"{name}, step", top_kernels(ours[name]))
            torch[name].close()
            ours[name].free()
            del sides[name]
    finally:
        for side in torch.values():
            side.close()


def in_turns(sides: dict[str, Any], ours: Ours, what: str, case: Case, toy: bool) -> dict[str, Any]:
    """A row of the table: medians over turns, utilisation, and medians of the ratios of neighbours."""
    peak, flops = peak_flops(jax.devices()[0].device_kind), ours.flops(what, case.batches[what])
    calls = {side: max(1, int(TURN_SECONDS / seconds(what, 1))) for side, seconds in sides.items()}
    took: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(1 if toy else TURNS):
        for side in list(sides) if turn % 2 else reversed(sides):
            took[side].append(sides[side](what, calls[side]))
    row: dict[str, Any] = {"batch": case.batches[what], "flops": flops}
    row |= {f"{side} ms": float(f"{1e3 * median(times):.4g}") for side, times in took.items()}
    if peak:
        row |= {f"{side} MFU": round(flops / median(times) / peak, 3) for side, times in took.items()}
    for side in list(sides)[1:]:
        row[f"to {side}"] = round(median(a / b for a, b in zip(took["jaxdiff"], took[side], strict=True)), 3)
    return row


def top_kernels(ours: Ours, calls: int = 3) -> dict[str, Any]:
    """Part (d): {kernel: ms a training step} of the ten largest, and their sum over all kernels."""
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        jax.profiler.start_trace(folder, profiler_options=options)
        ours.seconds("step", calls)
        jax.profiler.stop_trace()
        trace = jax.profiler.ProfileData.from_file(str(next(Path(folder).rglob("*.xplane.pb"))))
        took: collections.Counter[str] = collections.Counter()
        for plane in trace.planes:
            if not plane.name.startswith(("/device:GPU", "/device:TPU", "/host:CPU")):
                continue
            for line in plane.lines:
                if line.name.startswith(("Stream", "XLA Ops", "tf_XLA")):
                    if line.name == "XLA Ops" and "GPU" in plane.name:
                        continue  # the same once more
                    for event in line.events:
                        took[event.name[:90]] += event.duration_ns / 1e6 / calls
    whole = sum(took.values())
    return {"all kernels ms": round(whole, 2)} | {name: round(ms, 3) for name, ms in took.most_common(10)}


def ceilings(report: Report, toy: bool) -> None:
    """A large product in bf16 and a large copy: what the device does at best."""
    n = 256 if toy else 8192
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in (0, 1))
    big = jax.random.normal(jax.random.key(2), (16, n, n), jnp.bfloat16)
    product, copy = jax.jit(lambda a, b: a @ b), jax.jit(lambda x: -x, donate_argnums=0)

    def seconds(step: Any, x: Any, calls: int = 20) -> float:
        x = jax.block_until_ready(step(x))
        began = time.perf_counter()
        for _ in range(calls):
            x = step(x)
        jax.block_until_ready(x)
        return (time.perf_counter() - began) / calls

    b = b / n**0.5  # so that products of products stay finite
    report.add("device", "product bf16 TFLOP/s", round(2 * n**3 / seconds(lambda x: product(x, b), a) / 1e12, 3))
    report.add("device", "copy GB/s, read and written", round(2 * big.nbytes / seconds(copy, big) / 1e9, 1))


TRAINED = (
    "--model.patch 2 --model.channels 128 --model.channel-mults 1 2 --model.blocks 2 --model.attention-resolutions 7 "
    "--model.dtype bfloat16 --train.batch-size 256 --train.steps 1000000 --train.checkpoint-every 1000000 "
    "--train.log-every 100 --train.sample-every 0 --train.posthoc-ema"
).split()


def jaxdiff(*arguments: Any, **how: Any) -> subprocess.Popen:
    """The command, in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "jaxdiff", *map(str, arguments)], text=True, **how)


DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def start_resume(data: str, toy: bool) -> dict[str, subprocess.Popen]:
    """Part (b): a run in two pieces against one in one piece, each in a process of its own, by the flags of XLA."""
    run = ("fashion_mnist_small", "--data.path", data) if data else ("digits",)
    small, how = ("--model.channels", 8) if toy else (), {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    ways = {"no flags": os.environ} | ({} if toy else {DETERMINISTIC: {**os.environ, "XLA_FLAGS": DETERMINISTIC}})
    return {way: jaxdiff("train", *run, *small, "--verify-resume", 4, env=env, **how) for way, env in ways.items()}


def end_resume(report: Report, started: dict[str, subprocess.Popen]) -> None:
    """Waits for them, within reason."""
    for way, process in started.items():
        try:
            said = process.communicate(timeout=max(1.0, min(report.left, 80)))[0].splitlines()
            report.add("resume", way, {"exit code": process.returncode, "said": said[-1] if said else ""})
        except subprocess.TimeoutExpired:
            process.kill()
            report.add("failed", f"resume, {way}", "no answer in time")


def train(report: Report, data: str, seconds: float) -> None:
    """Part (e): a training of so many seconds, start and compilation included, and its FID."""
    with tempfile.TemporaryDirectory() as folder:
        run, log = Path(folder, "run"), (report.folder / "train.log").open("w")
        trained = jaxdiff(
            "train", "fashion_mnist", "--data.path", data, "--workdir", run, *TRAINED, stdout=log, stderr=log
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            trained.wait(seconds)
        trained.send_signal(signal.SIGTERM)  # it saves, and ends
        trained.wait(60)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last = {name: lines[-1].get(name) for name in ("step", "loss", "images_per_s", "mfu", "seconds")}
        report.add("train", "training", {"seconds asked for": seconds, "exit code": trained.returncode} | last)
        options = ("--data-path", data, "--sampler", "unipc", "--steps", "10", "--metrics", "fid", "--batch-size", 1000)
        measured = jaxdiff("evaluate", run, *options, stdout=subprocess.PIPE, stderr=log)
        try:
            report.add("train", "evaluation", (measured.communicate(timeout=report.left - 5)[0] or "").splitlines())
        except subprocess.TimeoutExpired:
            measured.kill()
            report.add("failed", "evaluation", "no time left")


def page(found: dict[str, Any]) -> str:
    """The tables, in Markdown."""
    tables = []
    for part, rows in found.items():
        if not isinstance(rows, dict):
            continue
        named = {name: row if isinstance(row, dict) else {"": row} for name, row in rows.items()}
        if part == "profile":
            named = {f"{name}: {kernel}": {"ms": ms} for name, row in named.items() for kernel, ms in row.items()}
        heads = list(dict.fromkeys(head for row in named.values() for head in row if head != "flops"))
        cells = [[name, *(row.get(head, "") for head in heads)] for name, row in named.items()]
        tables.append(f"## {part}\n\n{table([part, *heads], cells)}\n")
    return "\n".join(tables)


def main() -> int:
    """Runs the parts; 1 where one failed or is out of bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("accelerator"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--torch", default=sys.executable, help="a Python with torch and diffusers")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cases", nargs="+", choices=list(cases(True)), default=list(cases(True)))
    parser.add_argument("--data", default="", help="folder of Fashion-MNIST's idx files; none: no training")
    parser.add_argument("--train-seconds", type=float, default=90.0)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    report = Report(arguments.out, time.monotonic() + 60 * arguments.minutes)
    pool = ThreadPoolExecutor(16)
    device = jax.devices()[0]
    report.add("device", "kind", f"{device.platform}, {device.device_kind}")
    report.add("device", "versions", f"jax {jax.__version__}, Python {sys.version.split()[0]}")
    resume = start_resume(arguments.data, arguments.toy) if "resume" in arguments.parts else {}
    with report.surviving("ceilings"):
        ceilings(report, arguments.toy)
    if "forward" in arguments.parts:
        forward(report, pool, arguments.toy)
    if "images" in arguments.parts:
        with report.surviving("images"):
            images(report)
    others = functools.partial(end_resume, report, resume)
    if "timings" in arguments.parts:
        profile = "profile" in arguments.parts
        timings(report, pool, arguments.torch, arguments.cases, arguments.toy, profile, others)
    else:
        others()
    if "train" in arguments.parts and arguments.data and report.left > 90:
        with report.surviving("train"):
            train(report, arguments.data, min(arguments.train_seconds, report.left - 60))
    print(page(report.found))
    verdicts = [row.get("within bounds", True) for row in report.found.get("forward", {}).values()]
    return int("failed" in report.found or not all(verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
