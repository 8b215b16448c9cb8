"""Plans in words and as JSON, for --dry-run."""

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxdiff.assembly.assemble import assemble
from jaxdiff.assembly.training_program import Program
from jaxdiff.config import Config, times
from jaxdiff.diffusion import Recipe
from jaxdiff.errors import UserError
from jaxdiff.interop.export import refuse_unmapped
from jaxdiff.plan.compiling import Compiled
from jaxdiff.plan.memory import step_memory
from jaxdiff.plan.planning import Change, Plan, step_flops
from jaxdiff.schema import encode
from jaxdiff.training.logs import DAY, clock_time

_MEASURED = 1e12  # FLOP of a step up to which it is done on a CPU to be timed: half a minute on two cores


def describe(config: Config) -> dict[str, Any]:
    """What a config's data are and what its run will cost, for --dry-run: the step is compiled and timed."""
    run = assemble(config)
    source, program = run.source, run.program
    compiled = program.lower().compile()
    flops, memory = step_flops(program), step_memory(compiled)
    timed = flops <= _MEASURED or jax.default_backend() != "cpu"
    step_s = _step_seconds(program, compiled, config.train.steps_per_call) if timed else None
    return {
        "images": len(source),
        "shape": source.shape,
        "num_classes": source.num_classes,
        **source.about._asdict(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params)),
        "flops": flops,
        "memory": {**memory._asdict(), "total": memory.total},
        "devices": jax.device_count(),
        "platform": jax.devices()[0].platform,
        "times": [round(float(t), 6) for t in times(run.recipe.schedule, config.sampling)],
        "not_in_diffusers": _not_in_diffusers(run.recipe),
        "step_seconds": step_s,
        "seconds": step_s and step_s * config.train.steps,
    }


def _not_in_diffusers(recipe: Recipe) -> str:
    """Why `jaxdiff convert --to diffusers` will refuse the run; "" where it will not."""
    try:
        refuse_unmapped(recipe)
    except UserError as error:
        return str(error)
    return ""


def _step_seconds(program: Program, compiled: Any, count: int) -> float:
    """Seconds of a step, of the second call, or of the first where that took long."""
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in program.batch.items()}
    state, placed, step = program.new_state(), program.place([batch] * count), program.compiled(compiled)
    for _ in range(2):  # the first also loads the program
        began = time.perf_counter()
        state, metrics = step(state, placed, program.keys["train"])
        jax.block_until_ready(metrics)
        seconds = (time.perf_counter() - began) / count
        if seconds > 10:
            break
    return seconds


def description(config: Config, facts: dict[str, Any]) -> str:
    """`describe` in words."""
    steps, flops, seconds, classes = config.train.steps, facts["flops"], facts["seconds"], facts["num_classes"]
    mebibytes = [f"{size / 2**20:.1f}" for size in facts["memory"].values()]
    if seconds is None:
        took = f"not measured: a step is {flops / 1e12:.1f} TFLOP, too many for a CPU"
    else:
        took = f"about {clock_time(seconds)}: {steps} steps, each {facts['step_seconds']:.3g} s here"
        took += "; that is MORE THAN A DAY: take a GPU, a smaller network or fewer steps" * (seconds > DAY)
    return "\n".join(
        (
            f"data        {facts['images']} images of {facts['shape']}, {classes} classes"
            + (", not used: model.num_classes=0" if classes and not config.model.num_classes else ""),
            *([f"classes     {', '.join(facts['class_names'])}"] if facts["class_names"] else []),
            *(f"note        {note}" for note in facts["notes"]),
            *(f"left out    {line}" for line in facts["left_out"]),
            f"parameters  {facts['parameters']:,}",
            f"a step      {flops / 1e9:.2f} GFLOP, {flops / config.train.batch_size / 1e6:.1f} MFLOP an image",
            f"time        {took}",
            "memory      {} MiB of arguments + {} outputs + {} temporaries = {} a device".format(*mebibytes),
            f"devices     {facts['devices']} {facts['platform']}",
            f"export      {facts['not_in_diffusers'] or 'to diffusers, too: jaxdiff convert --to diffusers'}",
            f"time grid   {config.sampling.steps} steps, {config.sampling.spacing}: "
            + " ".join(f"{t:.3f}" for t in facts["times"]),
        )
    )


def plan_text(plan: Plan) -> str:
    """A plan in a dozen lines."""
    per_chip = plan.devices // plan.chips
    device = "chip" if per_chip == 1 else f"device ({per_chip} a chip)"
    compiled = plan.compiled
    rows = [
        (plan.topology, _where(plan)),
        ("step", f"{plan.batch_size} images, {plan.batch_size / plan.chips:g} a chip; {_flops(plan)}"),
        ("memory", f"{_fit(compiled)} a {device}"),
        ("", _parts(compiled, plan.state_bytes)),
        ("sends", _sends(compiled)),
        *_estimate(plan),
        *_largest(plan),
        *((f"with {change.setting}", _change(plan, change)) for change in plan.changes),
        ("compiled", f"in {compiled.seconds:.0f} s by {compiled.compiler}; StableHLO {compiled.stablehlo[:16]}"),
    ]
    if not compiled.fits:
        rows.append(("to make it fit", _advice(plan)))
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:{width}}{words}" for name, words in rows if words)


def plans_json(config: Config, plans: Sequence[Plan]) -> str:
    """The config and its plans: fields of Plan by name, nested as they are."""
    entries = [_tree(dataclasses.asdict(plan)) for plan in plans]
    return json.dumps({"config": encode(config), "plans": entries}, indent=2) + "\n"


def _tree(value: Any) -> Any:
    """asdict's tree with named tuples as dicts too."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _tree(entry) for key, entry in value.items()}
    return [_tree(entry) for entry in value] if isinstance(value, tuple | list) else value


def _where(plan: Plan) -> str:
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    counts = ((plan.chips, "chip"), (plan.hosts, "host"), (plan.slices, "slice"))
    return ", ".join(f"{n} {word}{'s' * (n > 1)}" for n, word in counts) + f"; mesh {mesh}"


def _flops(plan: Plan) -> str:
    again = plan.flops / plan.model_flops - 1
    recomputed = f", {again:.0%} of it recomputed" if again > 0.005 else ""
    return f"{plan.flops / 1e12:.4g} TFLOP counted in the program{recomputed}"


def _fit(compiled: Compiled) -> str:
    peak, available = _bytes(compiled.peak), _bytes(compiled.available)
    if compiled.fits:
        return f"fits: {peak} of {available} ({compiled.peak / compiled.available:.0%})"
    return f"DOES NOT FIT: {peak} wanted, {available} there, {_bytes(compiled.peak - compiled.available)} too much"


def _parts(compiled: Compiled, state: int) -> str:
    held = f"of the state {_bytes(state)}"
    if not compiled.arguments:
        return held
    parts = ((name, getattr(compiled, name)) for name in ("arguments", "outputs", "temporaries", "code"))
    return ", ".join(f"{name} {_bytes(size)}" for name, size in parts) + f"; {held}"


def _sends(compiled: Compiled) -> str:
    return "; ".join(f"{c.count} {c.kind} of {c.group}, {_bytes(c.bytes)}" for c in compiled.collectives)


def _estimate(plan: Plan) -> list[tuple[str, str]]:
    if plan.estimate is None:
        return []
    e = plan.estimate
    times = f"arithmetic {_ms(e.compute)}, memory {_ms(e.memory)}, collectives {_ms(e.collectives)}"
    bound = f"a step takes {_ms(e.step)} or more, so at most {e.images:,.0f} images/s, MFU {e.mfu:.0%}"
    note = "; links between slices not counted" if plan.slices > 1 else ""
    return [("estimate", bound), ("", f"(a roofline from published peaks, nothing measured: {times}{note})")]


def _largest(plan: Plan) -> list[tuple[str, str]]:
    if plan.largest is None:
        return []
    largest, chips = plan.largest, plan.chips
    if not largest.fits:
        return [("largest batch", f"none: {largest.too_large / chips:g} a chip does not fit")]  # pyright: ignore
    fits = f"{largest.fits} fits, {largest.fits / chips:g} a chip ({_bytes(largest.peak)} a device)"
    beyond = f"; {largest.too_large / chips:g} a chip does not" if largest.too_large else ""
    return [("largest batch", f"{fits}{beyond}; {largest.compilations} compilations")]


def _change(plan: Plan, change: Change) -> str:
    sent, now = _sent(change.compiled), _sent(plan.compiled)
    sends = f", sends {_bytes(sent)} for {_bytes(now)}" if change.compiled.arguments and now else ""
    return f"{_fit(change.compiled)}, {change.flops / plan.flops - 1:+.0%} arithmetic{sends}"


def _sent(compiled: Compiled) -> int:
    return int(sum(collective.sent for collective in compiled.collectives))


def _advice(plan: Plan) -> str:
    """What would help, from what was compiled; else what usually does."""
    settings = []
    if plan.largest is not None and plan.largest.fits:
        settings.append(f"train.batch_size={plan.largest.fits}")
    settings += [change.setting for change in plan.changes if change.compiled.fits]
    if settings:
        return " or ".join(settings) + " (compiled: each fits)"
    rest = plan.compiled.available - plan.state_bytes
    if rest < 0:
        return (
            f"the state alone is too large; raise parallel.fsdp to {-(-plan.state_bytes // plan.compiled.available)}+"
        )
    return "lower train.batch_size, raise train.accumulate, set model.remat=True, or raise parallel.fsdp"


def _bytes(size: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size:.0f} B"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
