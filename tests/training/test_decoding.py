"""Images from strangers: shown as a viewer would, bounded before decoding, and damage is the one documented error."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxdiff.data.decoding import CorruptImageError, channels_of, decode_image, is_animated, open_image, shape_of


def _encoded(mode="RGB", form="PNG", size=(12, 10)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form)
    return buffer.getvalue()


def _decode(content, channels=3, resize=None, **options):
    return decode_image(open_image(io.BytesIO(content), "it"), "it", channels, resize, **options)


def _saved(image, form="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, form, **options)
    return buffer.getvalue()


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
    small = _decode(buffer.getvalue(), 1, resize=(2, 2))
    assert small.shape == (2, 2, 1)
    assert np.abs(small.astype(int) - 150).max() < 25


@pytest.mark.parametrize("form", ["PPM", "TGA", "ICO", "JPEG2000"])
def test_other_formats_are_not_opened(form):
    with pytest.raises(CorruptImageError, match="not a PNG, JPEG, WEBP, GIF, BMP, TIFF"):
        open_image(io.BytesIO(_encoded(form=form)), "it")


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_the_first_frame_is_the_picture_and_further_ones_are_noticed(form):
    first, second = (Image.new("RGB", (16, 8), colour) for colour in ("red", "blue"))
    once = _saved(first, form)
    assert np.abs(_decode(once).astype(int) - (255, 0, 0)).max() < 8
    assert not is_animated(open_image(io.BytesIO(once), "it"))
    if form != "BMP":
        twice = _saved(first, form, save_all=True, append_images=[second])
        assert np.abs(_decode(twice).astype(int) - (255, 0, 0)).max() < 8
        assert is_animated(open_image(io.BytesIO(twice), "it"))


_STORED = {  # EXIF orientation: how a camera stores a picture that is shown upright, from the standard's own table
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.transpose(1, 0, 2),  # the 0th row is the visual left side, the 0th column the top
    6: lambda shown: shown.transpose(1, 0, 2)[::-1],  # the right side, and the top
    7: lambda shown: shown[::-1, ::-1].transpose(1, 0, 2),  # the right side, and the bottom
    8: lambda shown: shown.transpose(1, 0, 2)[:, ::-1],  # the left side, and the bottom
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_says_how_pixels_lie_before_their_size_is_taken(form, orientation):
    shown = np.zeros((16, 32, 3), np.uint8)
    shown[:8], shown[:8, :16] = (250, 0, 0), (0, 0, 250)  # blue above on the left, red on the right, black below
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    content = _saved(np.ascontiguousarray(_STORED[orientation](shown)), form, exif=exif, **options)
    assert shape_of(open_image(io.BytesIO(content), "it")) == (16, 32, 3)
    centres = (slice(4, None, 8), slice(8, None, 16))
    assert np.abs(_decode(content)[centres].astype(int) - shown[centres]).max() < 12
    assert np.abs(_decode(content, resize=(16, 16))[4, [4, 12]].astype(int) - [(0, 0, 250), (250, 0, 0)]).max() < 30


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "damage", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0" + b"\xff" * 40]
)
def test_a_damaged_exif_block_stops_nothing(form, damage):
    pixels = np.full((8, 16, 3), 90, np.uint8)
    content = _saved(pixels, form, exif=damage or b"?")
    assert shape_of(open_image(io.BytesIO(content), "it")) == (8, 16, 3)
    assert np.abs(_decode(content).astype(int) - 90).max() < 3


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_is_upright(value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert shape_of(open_image(io.BytesIO(_saved(np.zeros((8, 16), np.uint8), exif=exif)), "it")) == (8, 16, 1)


def _half_clear(mode):
    """4x4: the upper half is clear over hidden rubbish (7), the lower an opaque 200; and what Pillow saves it with."""
    grey = np.full((4, 4), 7, np.uint8)
    grey[2:] = 200
    alpha = np.where(grey == 7, 0, 255).astype(np.uint8)
    if mode == "LA":
        return Image.fromarray(np.stack([grey, alpha], -1)), {}
    if mode == "RGBA":
        return Image.fromarray(np.stack([grey, grey, grey, alpha], -1)), {}
    if mode.startswith("P"):
        image = Image.fromarray((grey == 200).astype(np.uint8))
        image.putpalette([7, 7, 7, 200, 200, 200])
        return image, {"transparency": 0 if mode == "P" else bytes([0, 255])}
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257), {"transparency": 7 * 257}
    if mode == "1":
        return Image.fromarray(grey == 200), {"transparency": 0}
    image = Image.fromarray(grey)
    return (image, {"transparency": 7}) if mode == "L" else (image.convert("RGB"), {"transparency": (7, 7, 7)})


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "P bytes", "L", "RGB", "I;16", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_parts_are_laid_on_the_background(mode, channels):
    image, options = _half_clear(mode)
    shown = 255 if mode == "1" else 200
    for background in ((255, 255, 255), (30, 30, 30)):
        pixels = _decode(_saved(image, **options), channels, background=background)
        assert (pixels[:2] == background[0]).all() and (pixels[2:] == shown).all()
    assert (_decode(_saved(image, **options), channels)[:2] == 255).all()  # white unless told otherwise


@pytest.mark.parametrize("form", ["WEBP", "TIFF", "GIF", "AVIF"])
def test_transparency_in_other_formats(form):
    image, options = _half_clear("P" if form == "GIF" else "RGBA")
    pixels = _decode(
        _saved(image, form, **options, **({"lossless": True} if form == "WEBP" else {})), background=(9, 90, 200)
    )
    assert np.abs(pixels[:2].astype(int) - (9, 90, 200)).max() < 8 and np.abs(pixels[2:].astype(int) - 200).max() < 8


def test_half_opaque_pixels_are_mixed():
    pixels = np.full((1, 1, 4), (255, 0, 0, 51), np.uint8)  # 20 % red
    assert np.abs(_decode(_saved(pixels)).astype(int) - (255, 204, 204)).max() <= 1


def test_a_transparent_level_in_fewer_or_more_bits_is_that_level():
    levels = bytes([0b00011011])  # a row of the levels 0, 1, 2, 3
    rows = {
        (4, 1): (2, 0, b"\0" + levels, struct.pack(">H", 2)),
        (2, 1): (16, 2, b"\0" + struct.pack(">6H", *[0x1234] * 3, *[0xABCD] * 3), struct.pack(">3H", *[0xABCD] * 3)),
    }
    shown = {}
    for (width, height), (depth, kind, row, clear) in rows.items():
        header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
        body = _chunk(b"tRNS", clear) + _chunk(b"IDAT", zlib.compress(row)) + _chunk(b"IEND", b"")
        shown[width] = _decode(b"\x89PNG\r\n\x1a\n" + header + body, background=(1, 2, 3))[0]
    assert shown[4].tolist() == [[0] * 3, [85] * 3, [1, 2, 3], [255] * 3]
    assert shown[2].tolist() == [[0x12] * 3, [1, 2, 3]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "RGBA", "LA"])
def test_opaque_pixels_are_left_as_they_are(mode):
    """As before there was a background: Pillow's own conversion, so that the fingerprint of such data stays."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)).convert(mode)
    content = _saved(image, "TIFF" if mode == "CMYK" else "PNG")
    for channels, kind in ((1, "L"), (3, "RGB")):
        expected = np.asarray(image.convert(kind)).reshape(10, 12, channels)
        assert np.array_equal(_decode(content, channels, background=(1, 2, 3)), expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(form):
    levels = np.array([[0, 128, 129, 257, 40_000, 65_406, 65_407, 65_535]], np.uint16)
    for pixels in (levels, levels.astype(">u2")):
        content = _saved(
            Image.frombytes("I;16B" if pixels.dtype.byteorder == ">" else "I;16", (8, 1), pixels.tobytes()), form
        )
        assert _decode(content, 1).ravel().tolist() == [0, 0, 1, 1, 156, 254, 255, 255]
        assert channels_of(open_image(io.BytesIO(content), "it")) == 1


@pytest.mark.parametrize("side", [9_000, 100_000])
def test_a_claimed_size_beyond_the_cap_is_refused_from_the_header(side):
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(bytes(10_000))) + _chunk(b"IEND", b"")
    with pytest.raises(CorruptImageError, match="pixels"):
        open_image(io.BytesIO(bomb), "it")


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int32)])
def test_numbers_of_no_known_range_are_refused_rather_than_clipped(pixels):
    with pytest.raises(CorruptImageError, match="8 or 16 bits"):
        open_image(io.BytesIO(_saved(pixels, "TIFF")), "it")


def test_errors_of_the_file_system_are_not_the_images_fault():
    class Failing(io.BytesIO):
        def read(self, *unused):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output") as caught:
        open_image(Failing(), "it")
    assert not isinstance(caught.value, CorruptImageError)


_KINDS = [("RGB", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGB", "JPEG"), ("RGB", "WEBP")]
_KINDS += [("P", "GIF"), ("RGB", "BMP"), ("RGB", "TIFF"), ("RGB", "AVIF")]
_TURNED = Image.Exif()
_TURNED[0x0112] = 6
_GOOD = [_encoded(mode, form) for mode, form in _KINDS]
_GOOD += [_saved(np.zeros((10, 12), np.uint8), form, exif=_TURNED) for form in ("PNG", "JPEG")]


@settings(max_examples=600)
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
        shape = shape_of(image := open_image(io.BytesIO(damaged), "it"))
        is_animated(image)
        assert _decode(bytes(damaged), 3).shape == (*shape[:2], 3)
    except CorruptImageError as error:
        assert str(error).startswith("it: ") and "\n" not in str(error)
