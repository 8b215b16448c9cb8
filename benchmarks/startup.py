"""How long a start takes: imports, the first training step with and without compiled programs, samples on screen.

    JAX_PLATFORMS=cpu uv run python -m benchmarks.startup [--turns 5] [--workdir runs/digits]

Every figure is of a process of its own, from its start until the line is printed, the median of turns; "cold" has an
empty compilation cache, and is done once. Python keeps its bytecode, whatever PYTHONDONTWRITEBYTECODE says: without
it every start compiles the source of jax again, which takes more than a second. cifar10 trains at 8 images a step on 64
pictures of noise in a folder, since what is timed are the network and its compilation. `sample.py` draws 64 digits (a
run is trained for 2 steps if there is none in --workdir), as it does by default.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from benchmarks.turns import line, table


def until(words: str, command: list[str], **environment: str) -> float:
    """Seconds from the start of a command until a line with these words; then it is ended."""
    began = time.perf_counter()
    around = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**around, **environment})
    assert process.stdout is not None
    found = next((time.perf_counter() - began for line in process.stdout if words in line), None)
    process.kill()
    process.wait()
    if found is None:
        raise SystemExit(f"{' '.join(command)} never printed {words!r}")
    return found


def pictures(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")


def first_step(folder: Path, turns: int) -> tuple[float, float]:
    """Seconds until `train.py cifar10` prints its first step: cold, once, and warm."""
    data = {"data.name": "folder", "data.path": folder / "images", "data.flip": "False", "train.batch_size": 8}

    def start(number: int) -> float:
        options = [f"--{name}={value}" for name, value in {**data, "workdir": folder / f"run{number}"}.items()]
        command = [sys.executable, "-u", "train.py", "cifar10", *options, "--train.steps=2", "--train.log_every=1"]
        return until("step 1/2", command, XDG_CACHE_HOME=str(folder / "cache"))

    pictures(folder / "images")
    cold, *warm = [start(number) for number in range(turns + 1)]
    return cold, median(warm)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    arguments = parser.parse_args()
    print(table(["", "seconds"], []), flush=True)
    for module in ("jax", "jaxdiff"):
        code = f"import {module}; print('done')"
        command = [sys.executable, "-u", "-c", code]
        seconds = [until("done", command) for _ in range(arguments.turns + 1)][1:]  # the first may write bytecode
        print(line([f"import {module}", f"{median(seconds):.2f}"]), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, workdir = Path(name), arguments.workdir
        if not (workdir / "config.json").is_file():
            workdir = folder / "digits"
            options = [f"--workdir={workdir}", "--train.steps=2", "--train.sample_every=0"]
            subprocess.run([sys.executable, "train.py", "digits", *options], check=True, capture_output=True)
        command = [sys.executable, "-u", "sample.py", str(workdir), f"--out={folder / 'samples.png'}"]
        seconds = [until("64 samples", command) for _ in range(arguments.turns + 1)][1:]  # the first may compile
        print(line(["sample.py on digits, warm", f"{median(seconds):.1f}"]), flush=True)
        cold, warm = first_step(folder, min(arguments.turns, 3))
        print(line(["first step of cifar10, cold", f"{cold:.1f}"]))
        print(line(["first step of cifar10, warm", f"{warm:.1f}"]))


if __name__ == "__main__":
    main()
