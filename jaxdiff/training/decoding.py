"""Images from files that nobody vouches for: three formats, bounded before a pixel is decoded, one error."""

import io
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from jaxdiff.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 2**26
"""The largest image that is decoded (8,192 x 8,192): a 20 KB PNG can claim gigabytes."""

# Pillow's modes and the channels they are trained with: an alpha channel is dropped, a palette is colour.
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}
# What Pillow raises on damaged files; OSError is told apart by errno, which only the system sets.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, struct.error, zlib.error)


class CorruptImageError(UserError):
    """A file or record that does not hold an image which may be decoded; names it and says why."""


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
        raise _damaged(name, "not a PNG, JPEG or WebP image", error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise CorruptImageError(f"{name}: {width} x {height} pixels, more than {MAX_PIXELS} are not decoded")
    if image.mode not in _CHANNELS:
        raise CorruptImageError(f"{name}: pixels of mode {image.mode}; 8-bit grey or colour is what is read")
    return image


def channels_of(image: Image.Image) -> int:
    """Returns the channels an opened image is trained with: 1 for grey, 3 for colour."""
    return _CHANNELS[image.mode]


def decode_image(
    image: Image.Image, name: str, channels: int, resize: int | None = None
) -> UInt8[np.ndarray, "h w channels"]:
    """Decodes an opened image to grey (1) or RGB (3), whatever its own mode.

    Args:
        image: From `open_image`.
        name: How errors call it.
        channels: 1 or 3.
        resize: None, or the side of the square that is cut from the centre after the shorter side was scaled
            to it (Pillow's bicubic filter, which widens with the scale and so does not alias).

    Returns:
        Pixels in 0..255.

    Raises:
        CorruptImageError: If the pixels cannot be decoded (truncated, damaged).
    """
    try:
        image = image.convert("L" if channels == 1 else "RGB")
    except _DAMAGE as error:
        raise _damaged(name, "a damaged image", error) from error
    if resize is not None and image.size != (resize, resize):
        image = ImageOps.fit(image, (resize, resize), method=Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)


def _damaged(name: str, what: str, error: Exception) -> Exception:
    """The error to raise: the damage, or the file system's own error, which is not the image's fault."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return CorruptImageError(f"{name}: {what} ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
