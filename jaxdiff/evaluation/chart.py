"""The plot of a metric, such as FID against network evaluations, drawn with Pillow: lines, both axes logarithmic."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 560, 80, 190, 30, 60
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


def chart(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    floor: float | None,
    title: str,
    x_title: str = "network evaluations an image",
) -> UInt8[np.ndarray, "H W 3"]:
    """Points joined by lines.

    Args:
      lines: by name, points (x, y), both positive.
      floor: a level to draw dashed, positive.
      title: what y is, and of what.
      x_title: what x is.

    Raises:
      ValueError: no points, or one that is not positive.

    >>> chart({"ddim": [(10, 30.0), (100, 5.0)]}, 1.0, "FID").shape
    (560, 900, 3)
    """
    points = [point for line in lines.values() for point in line]
    ys = [y for _, y in points] + ([floor] if floor is not None else [])
    if not points or min(x for x, _ in points) <= 0 or min(ys) <= 0:
        raise ValueError("a logarithmic chart needs points, all of them positive")
    across = _axis([x for x, _ in points], _LEFT, _WIDTH - _RIGHT)
    up = _axis(ys, _HEIGHT - _BOTTOM, _TOP)
    sheet = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    draw.text((_LEFT, 6), title, fill="black", font=font)
    draw.text((_WIDTH // 2 - 120, _HEIGHT - 22), x_title, fill="black", font=font)
    for value in _ticks([x for x, _ in points]):
        draw.line([(across(value), _TOP), (across(value), _HEIGHT - _BOTTOM)], fill="#dddddd")
        draw.text((across(value), _HEIGHT - _BOTTOM + 6), f"{value:g}", fill="black", font=font, anchor="ma")
    for value in _ticks(ys):
        draw.line([(_LEFT, up(value)), (_WIDTH - _RIGHT, up(value))], fill="#dddddd")
        draw.text((_LEFT - 8, up(value)), f"{value:g}", fill="black", font=font, anchor="rm")
    if floor is not None:
        for x in range(_LEFT, _WIDTH - _RIGHT, 12):
            draw.line([(x, up(floor)), (x + 6, up(floor))], fill="black")
        draw.text((_WIDTH - _RIGHT + 8, up(floor)), "floor", fill="black", font=font, anchor="lm")
    for i, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        at = [(across(x), up(y)) for x, y in sorted(line)]
        draw.line(at, fill=colour, width=2)
        for x, y in at:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        draw.text((_WIDTH - _RIGHT + 28, _TOP + 20 * i), name, fill=colour, font=font)
    return np.asarray(sheet)


def _axis(values: Sequence[float], start: int, end: int):
    """Value -> pixel, logarithmic, with a little room at both ends."""
    low, high = math.log(min(values)), math.log(max(values))
    room = max(0.05 * (high - low), 0.1)
    low, high = low - room, high + room
    return lambda value: start + (end - start) * (math.log(value) - low) / (high - low)


def _ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten within the values, the nearest beyond them where there is none."""
    low, high = min(values) * 0.97, max(values) * 1.03
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
