"""Pictures: the cells hold the images they should, files are whole, the walk shows what it says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff import pictures


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
