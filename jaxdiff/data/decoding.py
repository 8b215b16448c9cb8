"""Images from files that nobody vouches for: known formats, bounded before a pixel is decoded, one error.

What is decoded is what a viewer shows: turned as the file's EXIF says, transparent parts on a background, 16 bits
scaled to 8, the first frame of several. Opaque 8-bit pixels are left as the file has them.
"""

import contextlib
import io
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor, ImageOps

from jaxdiff.errors import UserError

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
with contextlib.suppress(ImportError):  # a plug-in that whoever has such pictures installs
    import pillow_heif  # pyright: ignore[reportMissingImports]

    pillow_heif.register_heif_opener()
    FORMATS.append("HEIF")
MAX_PIXELS = 2**26
"""The largest image that is decoded (8,192 x 8,192): a 20 KB PNG can claim gigabytes."""

Colour = tuple[int, int, int]
Size = tuple[int, int]  # (height, width)
WHITE: Colour = (255, 255, 255)

# Pillow's modes and the channels they are trained with: a palette is colour.
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "I;16": 1, "I;16L": 1, "I;16B": 1}
_CHANNELS |= dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"), 3)
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what undoes an EXIF orientation
_ORIENTATION = 0x0112  # in EXIF
# What a PNG's transparent grey or colour, given in the file's own bits, is multiplied with to be one of Pillow's.
_LEVELS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
# What Pillow raises on damaged files; OSError is told apart by errno, which only the system sets.
_DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, struct.error, zlib.error),
)


class CorruptImageError(UserError):
    """A file or record that does not hold an image which may be decoded; names it and says why."""


def colour(name: str) -> Colour:
    """A colour by its name in CSS, or as #rrggbb.

    Raises:
        UserError: If it is none.

    >>> colour("white"), colour("#ff8000")
    ((255, 255, 255), (255, 128, 0))
    """
    with contextlib.suppress(ValueError):
        red, green, blue, *alpha = ImageColor.getrgb(name)
        if not alpha:
            return red, green, blue
    raise UserError(f"data.background: {name!r} is no colour; give a name such as white, or #rrggbb")


def open_image(file: io.BytesIO | io.BufferedReader, name: str) -> Image.Image:
    """Opens an image lazily: the header is read and bounded, no pixel is decoded.

    Args:
        file: The encoded image, open for reading; must stay open until the pixels are decoded.
        name: How errors call it.

    Returns:
        The Pillow image, of one of FORMATS and at most MAX_PIXELS pixels.

    Raises:
        CorruptImageError: If it is no such image. Errors of the file system are raised as they are.
    """
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise CorruptImageError(f"{name}: {error}") from error
    except _DAMAGE as error:
        what = f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
        if "HEIF" not in FORMATS and name.lower().endswith((".heic", ".heif")):
            what += "; HEIC is read where the package pillow-heif is installed"
        raise _damaged(name, what, error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise CorruptImageError(f"{name}: {width} x {height} pixels, more than {MAX_PIXELS} are not decoded")
    if image.mode not in _CHANNELS:
        raise CorruptImageError(f"{name}: pixels of mode {image.mode}; grey or colour of 8 or 16 bits is what is read")
    return image


def channels_of(image: Image.Image) -> int:
    """Returns the channels an opened image is trained with: 1 for grey, 3 for colour."""
    return _CHANNELS[image.mode]


def shape_of(image: Image.Image) -> tuple[int, int, int]:
    """Returns the (h, w, c) that an opened image will be decoded to, turned as it is shown."""
    height, width = image.height, image.width
    return (width, height, channels_of(image)) if _orientation(image) > 4 else (height, width, channels_of(image))


def is_animated(image: Image.Image) -> bool:
    """Whether an opened image has further frames or pages, which are not read."""
    try:  # it looks for the next one, which may be damaged
        return image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False)
    except _DAMAGE:
        return False


def decode_image(
    image: Image.Image, name: str, channels: int, resize: Size | None = None, background: Colour = WHITE
) -> UInt8[np.ndarray, "h w channels"]:
    """Decodes an opened image to grey (1) or RGB (3), whatever its own mode.

    Args:
        image: From `open_image`.
        name: How errors call it.
        channels: 1 or 3.
        resize: None, or (height, width) of what is cut from the centre after the image was scaled to cover it
            (Pillow's bicubic filter, which widens with the scale and so does not alias).
        background: What transparent parts are laid on (its grey where channels is 1).

    Returns:
        Pixels in 0..255.

    Raises:
        CorruptImageError: If the pixels cannot be decoded (truncated, damaged).
    """
    mode = "L" if channels == 1 else "RGB"
    turn = _TURNED.get(_orientation(image))
    try:
        alpha = _alpha(image)
        if image.mode.startswith("I;16"):  # Pillow's own conversion clips
            grey = np.asarray(image).astype(np.uint32)
            image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
        if alpha is not None:
            opaque = image.convert("RGBA").convert(mode) if image.mode in ("P", "PA") else image.convert(mode)
            image = Image.new("RGB", image.size, background).convert(mode)
            image.paste(opaque, mask=alpha)
        image = image.convert(mode)
    except _DAMAGE as error:
        raise _damaged(name, "a damaged image", error) from error
    if turn is not None:
        image = image.transpose(turn)
    if resize is not None and image.size != (resize[1], resize[0]):
        image = ImageOps.fit(image, (resize[1], resize[0]), method=Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def _orientation(image: Image.Image) -> int:
    """How the pixels lie, 1 to 8 as EXIF numbers it; 1, upright, also where EXIF is damaged: it is no pixel's fault.

    Pillow turns TIFF by itself. Of a PNG what lies behind the pixels is not looked for: it is not in the header.
    """
    if image.format not in ("JPEG", "MPO", "PNG", "WEBP", "AVIF"):
        return 1
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION)  # PNG's own decodes all pixels
    except Exception:  # of a block of bytes that anybody may have written
        return 1
    return value if isinstance(value, int) and value in _TURNED else 1


def _alpha(image: Image.Image) -> Image.Image | None:
    """The opacity of each pixel, 0 to 255; None where all are opaque."""
    if image.mode in ("RGBA", "LA", "PA"):
        return image.getchannel("A")
    hidden = image.info.get("transparency")
    if hidden is None:
        return None
    if image.mode == "P":
        return image.convert("RGBA").getchannel("A")
    tiles = getattr(image, "tile", None)  # of a file whose pixels are not decoded yet: how they are packed
    hidden = np.multiply(hidden, _LEVELS.get(tiles[0].args, 1) if tiles else 1).astype(np.uint16)
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    shown = (pixels != hidden).reshape(image.height, image.width, -1).any(-1)
    return Image.fromarray(np.where(shown, 255, 0).astype(np.uint8))


def _damaged(name: str, what: str, error: Exception) -> Exception:
    """The error to raise: the damage, or the file system's own error, which is not the image's fault."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return CorruptImageError(f"{name}: {what} ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
