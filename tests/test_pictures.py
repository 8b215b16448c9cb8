"""Pictures: the cells hold the images they should, files are whole, the walk shows what it says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff import pictures
from jaxdiff.errors import UserError


def _numbered(n, side=32, channels=1):
    """n plain images, image i of grey level 10 i."""
    return np.broadcast_to(10 * np.arange(n, dtype=np.uint8)[:, None, None, None], (n, side, side, channels))


def test_to_uint8_undoes_the_scaling_of_training():
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(pictures.to_uint8(levels / np.float32(127.5) - 1), levels)


def test_grid_puts_image_i_in_row_i_mod_rows():
    picture = pictures.grid(_numbered(6), rows=3)
    centres = picture[2 + 16 :: 34, 2 + 16 :: 34, 0]
    assert centres.tolist() == [[0, 30], [10, 40], [20, 50]]


def test_grid_leaves_missing_cells_white_and_enlarges_small_images():
    picture = pictures.grid(_numbered(3, side=8), rows=2)
    assert picture.shape == (70, 70, 1)
    assert picture[36:68, 36:68].min() == 255 and picture[2:34, 36:68].max() == 20


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trips(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 4, channels), np.uint8)
    pictures.write_png(tmp_path / "new" / "a.png", image)
    with Image.open(tmp_path / "new" / "a.png") as back:
        assert np.array_equal(np.asarray(back).reshape(image.shape), image)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp", "a.PNG"])
def test_a_picture_is_written_in_the_format_of_its_ending(tmp_path, name):
    image = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], (24, 24, 3))
    pictures.write_picture(tmp_path / name, image)
    with Image.open(tmp_path / name) as back:
        assert back.format == {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "png": "PNG"}[name[2:].lower()]
        assert np.abs(np.asarray(back).astype(int) - image).max() <= (3 if back.format == "JPEG" else 0)


def test_a_png_says_how_it_was_drawn(tmp_path):
    text = {"prompt": "ein Pferd auf dem Mond, 馬", "run": "runs/\udce9", "seed": "7"}
    pictures.write_picture(tmp_path / "a.png", _numbered(1)[0], text)
    with Image.open(tmp_path / "a.png") as back:
        assert back.text == {"prompt": "ein Pferd auf dem Mond, 馬", "run": "runs/?", "seed": "7"}


def test_pictures_of_other_settings_get_a_number_and_equal_ones_are_replaced(tmp_path):
    names = []
    for text in ({"step": "1"}, {"step": "2"}, {"step": "1"}, {"step": "3"}, {"step": "2"}):
        path = pictures.vacant(tmp_path / "a_0.5.png", text)
        pictures.write_picture(path, _numbered(1)[0], text)
        names.append(path.name)
    assert names == ["a_0.5.png", "a_0.5_2.png", "a_0.5.png", "a_0.5_3.png", "a_0.5_2.png"]
    (tmp_path / "b.png").write_bytes(b"of somebody else")
    assert pictures.vacant(tmp_path / "b.png", {}).name == "b_2.png"


def test_scale_enlarges_pixels_as_squares():
    picture = pictures.grid(_numbered(2, side=2), rows=1, scale=3)
    assert picture.shape == (2 + 6 + 2, 2 + 2 * (6 + 2), 1) and set(picture[2:8, 10:16].ravel()) == {10}
    assert pictures.enlarged(np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1), 2)[0, ..., 0].tolist() == [
        [0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3],
    ]  # fmt: skip


@pytest.mark.parametrize(("num", "rows", "side", "scale"), [(5, 2, 8, None), (6, 3, 40, None), (1, 1, 8, 5)])
def test_the_size_that_is_checked_is_that_of_the_grid(monkeypatch, num, rows, side, scale):
    height, width, _ = pictures.grid(_numbered(num, side=side), rows, scale).shape
    for most in (max(height, width), max(height, width) - 1):
        monkeypatch.setitem(pictures._LARGEST_SIDE, "PNG", most)
        if most == max(height, width):
            pictures.check_size(".png", num, rows, (side, side, 1), scale)
        else:
            with pytest.raises(UserError, match=f"a picture of {width} x {height}"):
                pictures.check_size(".png", num, rows, (side, side, 1), scale)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(self, content):
        self.touch()
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError):
        pictures.write_png(path, _numbered(1)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"] and path.read_bytes() == b"old"


def _walk(steps):
    """x_t goes from -1 to 1 in equal steps, every x_0 estimate is 0."""
    times = np.linspace(1, 0, steps + 1)
    x_t = np.broadcast_to((1 - 2 * times)[:, None, None, None, None], (steps + 1, 2, 96, 96, 1))
    return x_t, np.zeros((steps, 2, 96, 96, 1)), times


def test_trajectory_sheet_shows_the_walk_from_noise_to_image():
    sheet = pictures.trajectory_sheet(*_walk(10), columns=3)
    centres = sheet[34 + 2 + 48 :: 98, 84 + 2 + 48 :: 98, 0]
    walk, estimates = [0, 128, 255], [128, 128, 255]  # the last image is its own estimate
    assert centres.tolist() == [walk, estimates, walk, estimates]


def test_trajectory_gif_has_a_frame_a_step_up_to_the_limit(tmp_path):
    for max_frames, frames in [(60, 11), (4, 4)]:
        pictures.write_trajectory_gif(tmp_path / "walk.gif", *_walk(10), max_frames=max_frames)
        with Image.open(tmp_path / "walk.gif") as gif:
            assert gif.n_frames == frames
            gif.seek(frames - 1)
            assert np.asarray(gif.convert("L"))[34 + 2 + 48, 84 + 2 + 48] == 255
