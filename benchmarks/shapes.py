"""Coloured shapes with captions: a made-up data set whose pictures a program can read back.

    uv run python -m benchmarks.shapes FOLDER [--num 4000] [--side 24]

makes FOLDER/train and FOLDER/heldout, each with a metadata.jsonl (`data.split` train and heldout). A picture is one of
4 shapes in one of 6 colours and 3 sizes somewhere on white; four pairs of colour and shape are in heldout alone.
`read_shapes` tells from the pixels which colour and shape a picture shows: whether a model drew what it was asked.
"""

import argparse
import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (250, 215, 30),
    "purple": (150, 40, 190),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 0.35, "medium": 0.5, "large": 0.65}  # of the side
HELD_OUT = (("red", "triangle"), ("green", "circle"), ("blue", "cross"), ("yellow", "square"))
_FINE = 8  # pixels drawn for one, a side
_TEMPLATE = 16


def draw(shape: str, colour: tuple[int, int, int], side: int, size: float, x: float, y: float) -> Image.Image:
    """A shape of so many pixels, its upper left corner at (x, y), on white; its edges are smooth."""
    image = Image.new("RGB", (side * _FINE, side * _FINE), "white")
    pen, box = ImageDraw.Draw(image), [round(_FINE * v) for v in (x, y, x + size, y + size)]
    left, top, right, bottom = box
    if shape == "circle":
        pen.ellipse(box, colour)
    elif shape == "square":
        pen.rectangle(box, colour)
    elif shape == "triangle":
        pen.polygon([((left + right) / 2, top), (left, bottom), (right, bottom)], colour)
    else:
        third = (right - left) / 3
        pen.rectangle((left + third, top, right - third, bottom), colour)
        pen.rectangle((left, top + third, right, bottom - third), colour)
    return image.reduce(_FINE)


def make_shapes(folder: Path, num: int = 4000, side: int = 24, seed: int = 0) -> None:
    """Writes about num pictures for training, and a tenth as many for heldout."""
    random = np.random.Generator(np.random.Philox(seed))
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    for split, chosen, count in (
        ("train", [pair for pair in pairs if pair not in HELD_OUT], num),
        ("heldout", HELD_OUT, num // 10),
    ):
        (folder / split).mkdir(parents=True)
        with (folder / split / "metadata.jsonl").open("w") as file:
            for index in range(count):
                colour, shape = chosen[index % len(chosen)]
                size, extent = list(SIZES.items())[index // len(chosen) % len(SIZES)]
                room = side * (1 - extent)
                x, y = random.uniform(0, room, 2)
                place = (
                    f"{('top', 'middle', 'bottom')[int(3 * y / room)]} {('left', 'centre', 'right')[int(3 * x / room)]}"
                )
                texts = [f"a {colour} {shape}", f"a {size} {colour} {shape}", f"a {colour} {shape} at the {place}"]
                line = {"file_name": f"{index:05}.png", "text": texts, "colour": colour, "shape": shape}
                draw(shape, COLOURS[colour], side, side * extent, x, y).save(folder / split / line["file_name"])
                file.write(json.dumps(line) + "\n")


def read_shapes(images: np.ndarray) -> list[tuple[str, str]]:
    """(colour, shape) of each picture, uint8 [n, h, w, 3], of `draw` or a model of it; ("", "") where there is nothing.

    The colour is the nearest to the median of what is not white. The shape is the one that, drawn into the same box,
    covers what is covered most nearly.
    """
    return [_read(image) for image in images]


def _read(image: np.ndarray) -> tuple[str, str]:
    cover = 255.0 - image.min(-1)  # white is 0, and each colour has a channel that is nearly so
    if cover.max() < 96:
        return "", ""
    cover = np.clip(cover / np.median(cover[cover > cover.max() / 2]), 0, 1)
    (left, right), (top, bottom) = _ends(cover.max(0)), _ends(cover.max(1))
    crop = Image.fromarray(np.round(255 * cover).astype(np.uint8))
    crop = crop.resize((_TEMPLATE, _TEMPLATE), Image.Resampling.BILINEAR, (left, top, right, bottom))
    shown = np.median(image[cover > 0.8], axis=0)
    colour = min(COLOURS, key=lambda name: np.square(shown - COLOURS[name]).sum())
    return colour, min(SHAPES, key=lambda shape: np.abs(np.asarray(crop, np.float64) - _template(shape)).sum())


def _ends(profile: np.ndarray) -> tuple[float, float]:
    """Where what is covered begins and ends: a pixel at either end counts by its share."""
    inside = np.flatnonzero(profile > 0.5)
    first, last = inside[0], inside[-1]
    before, after = profile[first - 1] if first else 0.0, profile[last + 1] if last + 1 < len(profile) else 0.0
    left = first - before if before > 0.25 else first + 1 - profile[first]
    right = last + 1 + after if after > 0.25 else last + profile[last]
    return float(left), float(right)


@cache
def _template(shape: str) -> np.ndarray:
    image = draw(shape, (0, 0, 0), _TEMPLATE, _TEMPLATE, 0, 0)
    return 255.0 - np.asarray(image, np.float64)[..., 0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num", type=int, default=4000)
    parser.add_argument("--side", type=int, default=24)
    arguments = parser.parse_args()
    make_shapes(arguments.folder, arguments.num, arguments.side)
