"""Makes docs/plan.md: cifar10, imagenet64 and imagenet256_sit on 4, 64 and 256 v5e chips, the same work a chip.

    uv run --extra tpu python scripts/make_plan_page.py --minutes 60

Plans are kept as docs/plans/*.json and made where missing, some 6 minutes of one core for each compilation of cifar10,
13 for imagenet64, 2 for imagenet256_sit; what is not there when the time is over stands in the page as such, and the
next run goes on.
Delete the JSON to plan anew.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RUNS = {
    "cifar10": ("32", "--model.dtype", "bfloat16"),
    "imagenet64": ("8",),
    "imagenet256_sit": ("1",),
}  # images a chip, options
TOPOLOGIES = ("v5e:2x2", "v5e:8x8", "v5e:16x16")
CHANGED = ("cifar10", "v5e:2x2")  # planned with other settings too
CHANGES = {"": (), "remat": ("--model.remat", "True"), "fsdp": ("--parallel.fsdp", "4")}
HEAD = """# What training will take

The train step of three configs, compiled for v5e slices on a machine without a TPU (`scripts/make_plan_page.py`; the
records are in `docs/plans/`). Work a chip is the same on 4, 64 and 256 chips. Memory and collectives are what the
compiler made; FLOPs are counted in the program; **step, images/s and MFU are bounds from published peaks (a roofline),
not measurements**: a real step is slower. `cifar10` is planned in bfloat16 (`--model.dtype bfloat16`); gradients are
then summed over chips mostly in bfloat16 too, as the bytes show: 2.1 a parameter. The rows of `imagenet64` are of its
network before it learned a variance (295,900,035 parameters, now 295,905,222). `imagenet256_sit` has its paper's batch
on 256 chips, encodes images in the step, and splits parameters over 4 chips.

| {} |
|{}|
"""
SETTINGS = """
## Other settings

`{} --model.dtype bfloat16` on {}, 32 images a chip, each line a compilation:

| | GiB a chip | arithmetic | results of collectives on a chip |
|---|---|---|---|
"""
TAIL = """
## By hand

    uv run --extra tpu train.py cifar10 --model.dtype bfloat16 --dry-run --topology v5e:8x8 --batch-per-chip 32 --quick

Without `--quick` the largest batch, remat and FSDP are compiled too; the first is sought by bisection. For `cifar10` on
v5e:2x2 that was cut off after 919 (13.15 GiB), 1,112 (15.26) and 1,157 images a chip (15.30), which all fit: memory
grows more slowly near the limit, so that the largest is above them. A compilation took 5 to 8 minutes of one core for
`cifar10`, 13 for `imagenet64` and 2 for `imagenet256_sit`, whose 28 blocks are one `scan`, whatever the number of chips
(`seconds` in the records: wall time; some were paused or shared their core).
"""
COLUMNS = (
    "config",
    "topology",
    "chips",
    "images a chip",
    "GiB a chip, of 15.75",
    "arguments + temporaries + code",
    "collectives, and their results on a chip",
    "TFLOP a step",
    "step at least",
    "images/s at most",
    "MFU at most",
)


def main() -> None:
    """Plans what is missing, in the time there is, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0, help="to spend on plans that are missing")
    end = time.monotonic() + 60 * parser.parse_args().minutes
    rows = []
    for config, (images, *options) in RUNS.items():
        for topology in TOPOLOGIES:
            for change, more in CHANGES.items() if (config, topology) == CHANGED else [("", ())]:
                path = _record(config, topology, change)
                command = [sys.executable, "train.py", config, *options, *more, "--dry-run", "--topology", topology]
                command += ["--quick", "--batch-per-chip", images, "--plan-out", str(path)]
                left = end - time.monotonic()
                if not path.exists() and left > 0:
                    try:
                        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
                        subprocess.run(command, cwd=ROOT, env=environment, timeout=left, check=True)
                    except subprocess.TimeoutExpired:
                        print(f"{config} on {topology}: not finished", file=sys.stderr)
            rows.append(_row(config, topology, images))
    head = HEAD.format(" | ".join(COLUMNS), "|".join("---" for _ in COLUMNS))
    (ROOT / "docs" / "plan.md").write_text(head + "".join(rows) + _settings() + TAIL)


def _plan(config: str, topology: str, change: str = "") -> dict[str, Any] | None:
    path = _record(config, topology, change)
    return json.loads(path.read_text())["plans"][0] if path.exists() else None


def _record(config: str, topology: str, change: str = "") -> Path:
    name = "-".join([config, topology.replace(":", "-"), *([change] if change else [])])
    return ROOT / "docs" / "plans" / f"{name}.json"


def _row(config: str, topology: str, images: str) -> str:
    plan = _plan(config, topology)
    if plan is None:
        cells = [config, topology, "", images, "not compiled yet"]
        return "| " + " | ".join([*cells, *[""] * (len(COLUMNS) - len(cells))]) + " |\n"
    compiled, bound = plan["compiled"], plan["estimate"]
    fits = "" if compiled["fits"] else "**does not fit:** "
    parts = " + ".join(f"{compiled[name] / 2**30:.2f}" for name in ("arguments", "temporaries", "code"))
    sent = " + ".join(f"{c['count']} {c['kind']} {c['bytes'] / 2**20:.0f} MiB" for c in compiled["collectives"])
    cells = [config, topology, plan["chips"], images, f"{fits}{compiled['peak'] / 2**30:.2f}", parts, sent]
    cells.append(f"{plan['flops'] / 1e12:.4g}")
    cells += (
        ["", "", ""]
        if bound is None
        else [f"{1e3 * bound['step']:.2f} ms", f"{bound['images']:,.0f}", f"{bound['mfu']:.0%}"]
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def _settings() -> str:
    """The table of other settings, as far as they are compiled."""
    base, rows = _plan(*CHANGED), []
    for change, options in CHANGES.items():
        plan = _plan(*CHANGED, change)
        if base is None or plan is None:
            continue
        name = f"`{' '.join(options)}`" if options else "as above"
        compiled = plan["compiled"]
        sent = " + ".join(f"{c['kind']} {c['bytes'] / 2**20:.0f} MiB" for c in compiled["collectives"])
        arithmetic = f"{plan['flops'] / base['flops'] - 1:+.0%}"
        rows.append(f"| {name} | {compiled['peak'] / 2**30:.2f} | {arithmetic} | {sent} |\n")
    return SETTINGS.format(*CHANGED) + "".join(rows)


if __name__ == "__main__":
    main()
