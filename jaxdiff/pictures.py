"""Arrays to pictures: grids, single files in PNG, JPEG or WebP, and the walk from noise to image as a sheet or a GIF.

Images are uint8 [n, h, w, c] with c = 1 (grey), 3 (RGB) or 4 (RGBA). Every file is written beside its place
and renamed into it, so that a reader never sees half a picture.
"""

import contextlib
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from jaxdiff.codecs import to_uint8 as to_uint8
from jaxdiff.errors import UserError
from jaxdiff.storage import Place, write_whole

_GAP = 2  # white pixels around each image
_MIN_SIDE = 32  # smaller images are enlarged by a whole factor to at least this
_TITLED_SIDE = 96  # likewise, over a text
_LINE = 15  # pixels of a line of text
FORMATS = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
}
"""Pillow's format, and its options, by the ending of a file's name."""
_LARGEST_SIDE = {"PNG": 2**16, "JPEG": 65500, "WEBP": 16383}
_MAX_PIXELS = 2**28  # of one picture
SETTINGS = "jaxdiff"
"""The text of a PNG that holds, in JSON, all that it was drawn by."""


def grid(
    images: UInt8[np.ndarray, "n h w c"], rows: int, scale: int | None = None, titles: Sequence[str] = ()
) -> UInt8[np.ndarray, "H W c"]:
    """One picture of all images: image i stands in row i % rows, so classes that are cycled make the rows.

    Args:
      images: uint8 [n, h, w, c], n >= 1; those under 32 pixels are enlarged by a whole factor.
      rows: number of rows, >= 1; columns follow, and cells without an image are white.
      scale: what to enlarge images by instead, each pixel a square.
      titles: a text under each image, n of them, or under each row, as many as rows; images are larger then, and long
        texts are wrapped.

    Returns:
      uint8 [H, W, c].

    >>> grid(np.zeros((5, 32, 32, 1), np.uint8), rows=2).shape  # 2 rows and 3 columns, a gap of 2
    (70, 104, 1)
    """
    n, h, w, c = images.shape
    columns = -(-n // rows)
    enlarge = scale or enlargement((h, w), bool(titles))
    if titles:
        return _titled(enlarged(images, enlarge), rows, columns, titles)
    cells = np.full((columns * rows, h, w, c), 255, np.uint8)
    cells[:n] = images
    cells = enlarged(cells, enlarge)
    cells = np.pad(cells, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    cells = cells.reshape(columns, rows, *cells.shape[1:]).transpose(1, 2, 0, 3, 4)
    picture = cells.reshape(rows * cells.shape[1], -1, c)
    return np.pad(picture, ((_GAP, 0), (_GAP, 0), (0, 0)), constant_values=255)


def enlargement(shape: tuple[int, ...], titled: bool = False) -> int:
    """The whole factor that brings images of (h, w, ...) to at least 32 pixels a side, or 96 over a text."""
    return -(-(_TITLED_SIDE if titled else _MIN_SIDE) // min(shape[:2]))


def _titled(images: np.ndarray, rows: int, columns: int, titles: Sequence[str]) -> np.ndarray:
    """The grid with a text under each image, or under each row."""
    n, h, w, c = images.shape
    width, each = w + _GAP, len(titles) == n
    wrapped = [_wrapped(title, w if each else columns * width - _GAP) for title in titles]
    lines = [max(len(text) for text in wrapped[row :: rows if each else len(titles)]) for row in range(rows)]
    tops = np.cumsum([_GAP, *(h + 2 * _GAP + _LINE * count for count in lines)])
    sheet = Image.new("L" if c == 1 else "RGB", (columns * width + _GAP, int(tops[-1])), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = _GAP + i // rows * width, int(tops[i % rows])
        sheet.paste(_pil(image), (x, y))
        if i < len(titles):
            for line, text in enumerate(wrapped[i]):
                draw.text((x, y + h + line * _LINE), text, fill="black", font=_font(text))
    return np.asarray(sheet).reshape(sheet.height, sheet.width, -1)


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of so many pixels, broken between words, or inside one that is too long."""
    lines, font = [""], _font(text)
    for word in re.findall(r"\S+\s*", " ".join(text.split())):
        if lines[-1] and font.getlength((lines[-1] + word).rstrip()) > width:
            lines.append("")
        for letter in word:
            if lines[-1] and not letter.isspace() and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines]


@lru_cache
def _font(text: str) -> Any:
    """Pillow's own font; for letters that it has not, the first of some usual fonts that the machine has."""
    if not text.isascii():
        for name in ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf"):
            with contextlib.suppress(OSError):
                return ImageFont.truetype(name, 12)
    return ImageFont.load_default(12)


def enlarged(images: UInt8[np.ndarray, "n h w c"], scale: int) -> UInt8[np.ndarray, "n H W c"]:
    """Each pixel as a square of scale x scale."""
    return images.repeat(scale, axis=1).repeat(scale, axis=2)


def check_size(ending: str, num: int, rows: int, shape: tuple[int, ...], scale: int | None) -> None:
    """Refuses a grid that its format or the memory cannot hold, before its num images are drawn; rows of 0: no grid.

    Raises:
      UserError: how large it would be, and what is held.

    >>> check_size(".webp", 1, 0, (256, 256, 3), 100)
    Traceback (most recent call last):
    ...
    jaxdiff.errors.UserError: a picture of 25600 x 25600; WEBP has up to 16383 a side and 268435456 in all
    """
    scale = scale or (enlargement(shape) if rows else 1)
    columns, gap = (-(-num // rows), _GAP) if rows else (1, 0)
    height, width = (
        (scale * side + gap) * count + gap for side, count in zip(shape[:2], (rows or 1, columns), strict=True)
    )
    form = FORMATS[ending][0]
    if max(height, width) > _LARGEST_SIDE[form] or height * width > _MAX_PIXELS:
        held = f"{form} has up to {_LARGEST_SIDE[form]} a side and {_MAX_PIXELS} in all"
        raise UserError(f"a picture of {width} x {height}; {held}")


def write_picture(path: Place, image: UInt8[np.ndarray, "h w c"], text: Mapping[str, str] | None = None) -> None:
    """Writes one image [h, w, c] in the format of the path's ending, making the folders above it.

    Args:
      path: ends in one of FORMATS, in large or small letters.
      image: the pixels.
      text: what a PNG says of itself; the others say nothing.
    """
    form, options = FORMATS[path.suffix.lower()]
    if text and form == "PNG":
        options = {"pnginfo": (info := PngInfo())}
        for name, value in text.items():
            info.add_text(name, _printable(value))
    buffer = io.BytesIO()
    _pil(image).save(buffer, format=form, **options)
    write_whole(path, buffer.getvalue())


def write_png(path: Place, image: UInt8[np.ndarray, "h w c"]) -> None:
    """Writes one image [h, w, c] as PNG, making the folders above it."""
    write_picture(path, image)


def vacant(path: Place, text: Mapping[str, str]) -> Place:
    """The path, or path_2, path_3, ...: the first at which there is no picture that says other things of itself."""
    wanted = {name: _printable(value) for name, value in text.items()}
    numbered = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in itertools.count(2))
    return next(place for place in itertools.chain([path], numbered) if not place.exists() or text_of(place) == wanted)


def text_of(path: Place) -> dict[str, str] | None:
    """What a picture says of itself; None where there is none."""
    with contextlib.suppress(OSError, ValueError, SyntaxError), Image.open(io.BytesIO(path.read_bytes())) as image:
        return dict(getattr(image, "text", {}))
    return None


def _printable(text: str) -> str:
    """With a question mark for what is no character, such as a byte of a path in another encoding."""
    return text.encode(errors="replace").decode()


def trajectory_sheet(
    x_t: Float[np.ndarray, "states n h w c"],
    x_0: Float[np.ndarray, "steps n h w c"],
    times: Float[np.ndarray, " states"],
    columns: int = 6,
) -> UInt8[np.ndarray, "H W c"]:
    """The walk from noise to image: per sample a row of x_t and one of the x_0 estimate, noise falling.

    Args:
      x_t: the states at times, images being in [-1, 1]; [steps + 1, n, h, w, c].
      x_0: the estimates of the clean image at times[:-1]; [steps, n, h, w, c].
      times: descending to 0; [steps + 1].
      columns: at how many of the times to look, the first and the last among them.

    Returns:
      uint8 [H, W, c], labelled with t and with what that is: high, medium or low noise, or the image.

    >>> walk, estimates = np.zeros((5, 1, 32, 32, 1)), np.zeros((4, 1, 32, 32, 1))
    >>> trajectory_sheet(walk, estimates, np.linspace(1, 0, 5), columns=3).shape  # 3 images, labels
    (232, 380, 1)
    """
    at = np.unique(np.rint(np.linspace(0, len(times) - 1, columns)).astype(int))
    walk = _walk(x_t, x_0)[at]
    return _labelled(walk.reshape(-1, *walk.shape[3:]), 2 * walk.shape[1], [_level(float(t)) for t in times[at]])


def write_trajectory_gif(
    path: Place,
    x_t: Float[np.ndarray, "states n h w c"],
    x_0: Float[np.ndarray, "steps n h w c"],
    times: Float[np.ndarray, " states"],
    max_frames: int = 60,
) -> None:
    """The same walk as an animation: x_t in the upper row, the x_0 estimates below, ending on the images.

    Args:
      path: where to write.
      x_t: as in `trajectory_sheet`, and so are x_0 and times.
      x_0: see there.
      times: see there.
      max_frames: longer walks skip steps.
    """
    walk = _walk(x_t, x_0)
    at = np.unique(np.rint(np.linspace(0, len(times) - 1, max_frames)).astype(int))
    frames = [_pil(_labelled(walk[i].reshape(-1, *walk.shape[3:]), 2, [_level(float(times[i]))])) for i in at]
    buffer = io.BytesIO()
    durations = [80] * (len(frames) - 1) + [2000]  # milliseconds
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    write_whole(path, buffer.getvalue())


def _walk(x_t: np.ndarray, x_0: np.ndarray) -> np.ndarray:
    """Pairs (x_t, x_0 estimate), enlarged: uint8 [steps + 1, n, 2, h, w, c]; an image estimates itself."""
    pairs = to_uint8(np.stack([x_t, np.concatenate([x_0, x_t[-1:]])], axis=2))
    scale = -(-3 * _MIN_SIDE // min(pairs.shape[3:5]))
    return pairs.repeat(scale, axis=3).repeat(scale, axis=4)


def _level(t: float) -> str:
    name = "high noise" if t > 2 / 3 else "medium noise" if t > 1 / 3 else "low noise" if t > 0 else "image"
    return f"t = {t:.2f}\n{name}"


def _labelled(images: np.ndarray, rows: int, columns: list[str]) -> np.ndarray:
    """The grid of images with a label over each column; rows alternate between x_t and the x_0 estimate."""
    body = _pil(grid(images, rows))
    left, top = 84, 34
    sheet = Image.new(body.mode, (left + body.width, top + body.height), "white")
    sheet.paste(body, (left, top))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    height, width = images.shape[1] + _GAP, images.shape[2] + _GAP
    for column, label in enumerate(columns):
        draw.text((left + _GAP + column * width, 2), label, fill="black", font=font)
    for row in range(rows):
        y = top + row * height + height // 2 - 7
        draw.text((4, y), "x_0 estimate" if row % 2 else "x_t", fill="black", font=font)
    return np.asarray(sheet).reshape(sheet.height, sheet.width, -1)


def _pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
