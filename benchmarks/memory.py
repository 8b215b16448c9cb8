"""What a training step takes of a machine's memory, beside what XLA has planned for it.

    JAX_PLATFORMS=cpu uv run python -m benchmarks.memory

In a process of its own the step is compiled, the state made, then three steps run. What they need is the
state (resident before) plus what the resident set's high-water mark rises by; XLA's figure is arguments, outputs and
temporaries of the compiled step, in which donated buffers count once. A second copy of state or average would show.
Linux only. The network is configs/cifar10.py's at 8 images a step.
"""

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from benchmarks.turns import table
from jaxdiff.assembly.assemble import assemble
from jaxdiff.config import Config
from jaxdiff.data.description import Expected
from jaxdiff.plan import step_memory

STEPS = 3


def measured(config: Config, images: Expected) -> dict[str, int]:
    """Bytes that steps need: by XLA's plan and by the process's resident set; and of the state."""
    program = assemble(config, images).program
    batch_size = config.train.batch_size
    batch = {
        "image": np.zeros((batch_size, *images.shape), np.uint8),
        "label": np.zeros(batch_size, np.int32),
        "row": np.arange(batch_size, dtype=np.int32),
    }
    step, key = program.lower().compile(), program.keys["train"]
    state = jax.jit(program.init, compiler_options={"xla_backend_optimization_level": 0})(program.keys["init"])
    placed = program.place([batch])
    state = jax.block_until_ready(step(state, placed, key))[0]  # pages in what first calls do
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, placed)))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    for _ in range(STEPS):
        state, metrics = step(state, placed, key)
    jax.block_until_ready((state, metrics))
    return {"plan": step_memory(step).total, "measured": held + _status("VmHWM") - before, "state": held}


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    code = (
        "import dataclasses, json; from benchmarks.memory import *; from configs.cifar10 import config;"
        "train = dataclasses.replace(config.train, batch_size=8);"
        "config = dataclasses.replace(config, train=train);"
        "print(json.dumps(measured(config, Expected((32, 32, 3), 0))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    mib = [f"{found[name] / 2**20:,.0f}" for name in ("state", "plan", "measured")]
    row = ["cifar10, batch 8", *mib, f"{found['measured'] / found['plan']:.2f}"]
    print(table(["", "state MiB", "XLA's plan MiB", "measured MiB", "ratio"], [row]))


if __name__ == "__main__":
    main()
