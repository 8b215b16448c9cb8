"""Images from strangers: bounded before decoding, three formats, and damage of any kind is the one documented error."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdiff.training.decoding import CorruptImageError, channels_of, decode_image, open_image


def _encoded(mode="RGB", form="PNG", size=(12, 10)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form)
    return buffer.getvalue()


def _decode(content, channels=3, resize=None):
    return decode_image(open_image(io.BytesIO(content), "it"), "it", channels, resize)


def _chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    ("mode", "form", "channels"),
    [("L", "PNG", 1), ("1", "PNG", 1), ("P", "PNG", 3), ("RGBA", "PNG", 3), ("RGB", "JPEG", 3), ("RGB", "WEBP", 3)],
)
def test_grey_stays_grey_and_the_rest_is_colour(mode, form, channels):
    content = _encoded(mode, form)
    assert channels_of(open_image(io.BytesIO(content), "it")) == channels
    assert _decode(content, channels).shape == (10, 12, channels)


def test_png_pixels_are_exact():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)
    assert np.array_equal(_decode(_encoded()), pixels)


def test_resize_keeps_the_centre_and_does_not_alias():
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200  # the square that is to stay
    wide[:, 9:16:2] = 100  # stripes that a filter of fixed width would alias to 100 or 200
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    small = _decode(buffer.getvalue(), 1, resize=2)
    assert small.shape == (2, 2, 1)
    assert np.abs(small.astype(int) - 150).max() < 25


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_not_opened(form):
    with pytest.raises(CorruptImageError, match="not a PNG, JPEG or WebP"):
        open_image(io.BytesIO(_encoded(form=form)), "it")


@pytest.mark.parametrize("side", [9_000, 100_000])
def test_a_claimed_size_beyond_the_cap_is_refused_from_the_header(side):
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(bytes(10_000))) + _chunk(b"IEND", b"")
    with pytest.raises(CorruptImageError, match="pixels"):
        open_image(io.BytesIO(bomb), "it")


def test_sixteen_bit_images_are_refused_rather_than_clipped():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(buffer, "PNG")
    with pytest.raises(CorruptImageError, match="mode I;16"):
        open_image(buffer, "it")


def test_errors_of_the_file_system_are_not_the_images_fault():
    class Failing(io.BytesIO):
        def read(self, *unused):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output") as caught:
        open_image(Failing(), "it")
    assert not isinstance(caught.value, CorruptImageError)


_GOOD = [_encoded(mode, form) for mode, form in (("RGB", "PNG"), ("P", "PNG"), ("RGB", "JPEG"), ("RGB", "WEBP"))]


@settings(max_examples=300)
@given(
    st.sampled_from(_GOOD),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_damage_raises_only_the_documented_error(content, changes, cut, truncate):
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    if truncate:
        del damaged[cut % len(damaged) :]
    try:
        assert _decode(bytes(damaged), 3, resize=8).shape == (8, 8, 3)
    except CorruptImageError as error:
        assert str(error).startswith("it: ") and "\n" not in str(error)
