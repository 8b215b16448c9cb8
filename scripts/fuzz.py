"""Fuzzing the commands: hostile pictures, configs, command lines and damaged runs and models, under one oracle.

    uv run python scripts/fuzz.py SECONDS [SEED [KIND:NUMBER]]

Exit 0 with a right result (read back and compared), or one line on stderr with code 1, 2, 75 or 76: no traceback, no
internal error, nothing half-written, no silent damage. Input i of a kind is a function of (seed, kind, i); the last
argument repeats one. Commands run in this process, and one in PROCESS_SHARE as a process of its own.
"""

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps

sys.path.append(str(Path(__file__).parents[1]))  # for the tests' tiny models
from jaxdiff import commands
from jaxdiff.commands import convert, evaluate, sample, train
from jaxdiff.config import Config, flat
from jaxdiff.data.decoding import channels_of, decode_image, open_image
from jaxdiff.data.sources import open_dataset
from jaxdiff.errors import UserError
from tests.stable_diffusion import pipeline_folder

PROCESS_SHARE = 50
CONFIG = """from jaxdiff.config import *
config = Config(
    data=Data(name="folder", path="images"),
    model=Model(channels=8, channel_mults=(1,), blocks=1, attention_resolutions=(), num_classes=2, norm_groups=4),
    train=Train(steps=2, batch_size=8, checkpoint_every=1, log_every=1, sample_every=0, loggers=("jsonl",)),
    sampling=Sampling(steps=1),
)
"""
DRAW = ["--num=1", "--steps=1", "--sampler=ddim", "--guidance=1", "--out=x.npz"]
TEXTS = ["", "0", "-1", "1", "2", "3.5", "nan", "inf", "1e400", "9" * 25, "true", "None", "null", "[1, 2]", "{", "--"]
TEXTS += [
    "~",
    "~nobody/x",
    "/",
    "..",
    "/dev/null",
    "x" * 300,
    "gs://",
    "s3://b/../x",
    "ftp://x",
    "-",
    "--seed",
    "base",
    "hf",
]
TEXTS += [
    "%s{}[*]?",
    "\udce9",
    "größe ☃",
    "'",
    "a,b",
    ",",
    "1:2",
    "x.png",
    "w_1.5",
    "\n",
    "\\",
    "a b",
    "pipe",
    "images",
]
VALUES = [*TEXTS, None, True, 0, 1, -1, 2**70, 1.5, 1e308, float("nan"), [], [0], [1, 2], {}, {"a": 1}, [[]], "a\0b"]
WORDS = [*map(repr, VALUES), *(text for text in TEXTS if text.strip()), "()", "object()", "print", "Config()"]
COMMANDS = {
    "sample": sample.SampleArguments,
    "evaluate": evaluate.EvaluateArguments,
    "convert": convert.ConvertArguments,
}
COMMANDS |= {"train": train.TrainArguments}
OPTIONS = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in COMMANDS.items()}
OPTIONS["train"] += flat(Config())


class Find(Exception):
    """What breaks the promise."""


def call(*argv: str, process: bool = False) -> tuple[int, str]:
    """The exit code of a command in the current folder, and its stderr. Raises Find where it ends otherwise."""
    if process:
        words = [sys.executable, "-m", "jaxdiff", *map(os.fsencode, argv)]
        done = subprocess.run(words, capture_output=True, timeout=300, check=False)
        code, text = done.returncode, done.stderr.decode(errors="replace")
    else:
        with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
            try:
                code = commands.main(argv)
            except SystemExit as leaving:  # --help
                code = leaving.code or 0
        text = err.getvalue()
    lines = [line for line in text.splitlines() if " jaxdiff " in f" {line}"]
    if code not in (0, 1, 2, 75, 76) or "Traceback" in text or "internal error" in text or (code and len(lines) != 1):
        raise Find(f"{argv}: code {code}: {text[-600:]}")
    if any(path.is_file() for path in Path().rglob(".*.tmp")):
        raise Find(f"{argv}: something is half-written")
    return int(code), text


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut, with other bytes, with more of them, or something else in its place."""
    flipped = bytearray(content)
    for _ in range(rng.randint(1, 4) if content else 0):
        flipped[int(len(content) * rng.random() ** rng.choice([1, 4]))] = rng.randrange(256)
    others = [b"", bytes(5000), b"<!doctype html>\n", b"version https://git-lfs.github.com/spec/v1\n", b"[" * 9999]
    cut = content[: rng.randrange(len(content) + 1)]
    return rng.choice([bytes(flipped), bytes(flipped), cut, content + rng.randbytes(9), rng.choice(others)])


def edited(tree: object, rng: random.Random) -> object:
    """JSON with one of its values replaced or left out."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.1:
        return rng.choice(VALUES)
    key, tree = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree))), tree.copy()
    tree[key] = edited(tree[key], rng)
    if rng.random() < 0.15:
        del tree[key]
    return tree


def images(rng: random.Random, process: bool) -> None:
    """A folder of pictures, whole and damaged; a whole one is compared with Pillow's own way to show it."""
    colour = rng.choice(["white", "black", "#102030"])
    for i in range(rng.randint(1, 4)):
        height, width = rng.choices(range(1, 9), k=2)
        pixels = np.frombuffer(rng.randbytes(4 * height * width), np.uint8).reshape(height, width, 4)
        mode = rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"])
        form, buffer, exif = rng.choice(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), io.BytesIO(), Image.Exif()
        exif[0x0112] = rng.choice([*range(10), "6", b"\6"])
        options = {"exif": rng.choice([exif, b"Exif\0\0" + rng.randbytes(20)]), "lossless": rng.random() < 0.5}
        options |= {"transparency": (1, 2, 3) if mode == "RGB" else rng.randrange(256)} if rng.random() < 0.3 else {}
        with contextlib.suppress(Exception):  # what Pillow cannot write
            image = Image.fromarray(pixels)
            image = image.convert("L") if mode in ("I;16", "I", "F", "LA") else image
            image.convert(mode).save(buffer, form, **options)
        stem = rng.choice(["", "a/", "10/", "9/", "[x]/"]) + rng.choice([f"{i}", f"ü{i} ☃", f"\udce9{i}", f"a\n{i}"])
        path = Path("data", stem + rng.choice([f".{form.lower()}", f".{form}", "", ".jpg", ".png", ".txt", ".bin"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged(buffer.getvalue(), rng) if (bad := rng.random() < 0.4) else buffer.getvalue())
        with contextlib.suppress(FileExistsError):
            path.with_name(f"{i}.png").symlink_to(rng.choice(["nowhere", "..", f"{i}.png", path.name]))
        with contextlib.suppress(UserError):
            ours = open_image(io.BytesIO(buffer.getvalue()), "x")
            channels, background = channels_of(ours), ImageColor.getrgb(colour)[:3]
            if not bad:
                compare(decode_image(ours, "x", channels, None, background), Image.open(buffer), colour)
    with contextlib.suppress(UserError):
        size, skip = rng.choice([None, 4, (3, 5)]), rng.random() < 0.5
        source = open_dataset("folder", "data", "train", size, "skip" if skip else "stop", colour)
        source.gather(np.arange(len(source)))
    if process:
        call("evaluate", "base", "--metrics=bpd", "--bits-num=2", "--test-path=data", process=True)


def compare(ours: np.ndarray, theirs: Image.Image, colour: str) -> None:
    """Raises Find unless our pixels are Pillow's, to 2 of 255."""
    about = f"{theirs.format} {theirs.mode} {theirs.info}"
    theirs = theirs.point(lambda level: level / 257).convert("L") if theirs.mode.startswith("I;16") else theirs
    with contextlib.suppress(Exception):
        theirs = ImageOps.exif_transpose(theirs)
    if theirs.has_transparency_data:
        theirs = Image.alpha_composite(Image.new("RGBA", theirs.size, colour), theirs.convert("RGBA"))
    shown = np.asarray(theirs.convert("L" if ours.shape[-1] == 1 else "RGB"), int).reshape(*theirs.size[::-1], -1)
    if ours.shape != shown.shape or np.abs(ours - shown).max() > 2:
        raise Find(f"other pixels than Pillow's: {ours.shape} {shown.shape}, {about}")


def lines(rng: random.Random, process: bool) -> None:
    """A command with values that nobody meant, in its options or in its config file."""
    name, text = rng.choice(list(OPTIONS)), CONFIG
    for _ in range(rng.randint(1, 2)):
        at = rng.choice([i for i, letter in enumerate(text) if letter == "="])
        text = text[: at + 1] + rng.choice(WORDS) + text[min(text.find(c, at) % len(text) for c in ",)") :]
    content = text.encode(rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16"]), "replace")
    Path("c.py").write_bytes(damaged(content, rng) if rng.random() < 0.2 else content)
    file = rng.choice(["c.py", "c.py", "tiny.py"])
    first = {"train": [file, "--workdir=run", "--train.steps=1", "--data.path=nowhere"], "sample": ["base", *DRAW]}
    first |= {"evaluate": ["base", "--num=1", "--metrics=bpd"], "convert": [rng.choice(["base", "hf", *TEXTS]), "run"]}
    more = [(rng.choice(OPTIONS[name]), rng.choice(TEXTS)) for _ in range(rng.randint(0, 2) if file == "c.py" else 2)]
    typed = [word for option, value in more for word in rng.choice([[f"--{option}={value}"], [f"--{option}", value]])]
    if call(name, *first[name], *typed, process=process)[0] == 2 and (Path("run").exists() or Path("x.npz").exists()):
        raise Find(f"{name} {typed}: wrong input, and something is written")


def files(rng: random.Random, process: bool) -> None:
    """A run or a model with a file damaged, missing or edited: no other pictures without a word."""
    where = rng.choice(["base", "base", "hf", "pipe"])
    path = rng.choice(sorted(path for path in Path(where).rglob("*") if path.is_file()))
    content, edit = path.read_bytes(), False
    if rng.random() < 0.7 and (path.suffix in (".json", ".safetensors") or path.name == "metadata"):
        size = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else 0  # of its header
        header, edit = json.dumps(edited(json.loads(content[8:size] if size else content), rng)).encode(), True
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[size:] if size else header)
    elif rng.random() < 0.8:
        path.write_bytes(damaged(content, rng))
    else:
        path.unlink()
        rng.choice([path.mkdir, lambda: path.symlink_to("nowhere"), lambda: None])()
    if where == "hf" and call("convert", "hf", "run", process=process)[0] and Path("run").exists():
        raise Find(f"{path}: refused, and something is written")
    if where == "pipe":
        call("sample", "pipe", "--prompt=a", "--steps=1", "--out=x.npz", process=process)
    if where == "base":
        if rng.random() < 0.3:
            call("train", "tiny.py", "--workdir=base", f"--train.steps={rng.choice([2, 3])}", process=process)
        code, said = call("sample", "base", *DRAW, process=process)
        said_so = code or "checkpoint" in said or edit or Path("base/checkpoints/3").exists()
        if not said_so and not np.array_equal(*(np.load(name)["images"] for name in ("x.npz", "b.npz"))):
            raise Find(f"{path}: other pictures, and not a word")


KINDS = {kind.__name__: kind for kind in (images, lines, files)}


def fuzz(seconds: float, seed: int = 0, only: str = "") -> tuple[dict[str, int], list[str]]:
    """How many inputs of each kind were tried, and what they found, a line each."""
    tried, finds = collections.Counter(), []
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        for i in range(16):
            Path("start/images", "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(Path("start/images", "ab"[i % 2], f"{i}.png"))
        pipeline_folder("pipeline_ddim", Path("start/pipe"))
        Path("start/tiny.py").write_text(CONFIG)
        os.chdir("start")
        assert call("train", "tiny.py", "--workdir=base")[0] == 0
        assert call("convert", "base", "hf", "--to=diffusers")[0] == 0
        assert call("sample", "base", *DRAW)[0] == 0
        Path("x.npz").rename("b.npz")
        deadline = time.monotonic() + seconds
        for kind in [only.partition(":")[0]] if only else itertools.cycle(KINDS):
            if time.monotonic() > deadline:
                break
            i = int(only.partition(":")[2]) if only else tried[kind]
            tried[kind] += 1
            rng = random.Random(f"{seed} {kind} {i}")
            shutil.copytree(".", "../input", ignore=shutil.ignore_patterns("*") if kind == "images" else None)
            with contextlib.chdir("../input"):
                try:
                    KINDS[kind](rng, rng.random() * PROCESS_SHARE < 1)
                except Exception as find:  # a Find, or what came through
                    finds.append(f"{kind}:{i} {type(find).__name__}: {find}")
                    print(finds[-1], file=sys.__stderr__, flush=True)
            shutil.rmtree("../input")
    return dict(tried), finds


if __name__ == "__main__":
    tried, finds = fuzz(float(sys.argv[1]), int((*sys.argv, 0, 0)[2]), sys.argv[3] if len(sys.argv) > 3 else "")
    print(f"{sum(tried.values())} inputs ({tried}), {len(finds)} finds")
    sys.exit(bool(finds))
