"""Classes keep their names from the folders to what is drawn, and pictures are written as the command asked."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdiff.commands import main
from jaxdiff.config.files import read_run
from jaxdiff.data import sources
from jaxdiff.job import workdir

CONFIG = """
from jaxdiff.config import *
config = Config(
    data=Data(name="folder", path={path!r}),
    model=Model(channels=4, channel_mults=(1,), blocks=1, attention_resolutions=(), num_classes=2),
    train=Train(steps=2, batch_size=8, checkpoint_every=2, log_every=1, sample_every=0),
    sampling=Sampling(steps=3),
)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The path of a config file whose data are 2 classes of 12 grey images of 4x4."""
    folder = tmp_path_factory.mktemp("data")
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (24, 4, 4), np.uint8)):
        path = folder / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "tiny.py").write_text(CONFIG.format(path=str(folder / "images")))
    return str(folder / "tiny.py")


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """The workdir of a run of 2 steps."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    assert _train(config, workdir) == 0
    return workdir


def _train(config, workdir, *options):
    return main(["train", config, "--workdir", str(workdir), *options])


def _sample(workdir, *options):
    return main(["sample", str(workdir), *options])


def _npz(workdir, out, *options):
    assert _sample(workdir, "--out", str(out), *options) == 0
    with np.load(out) as arrays:
        return dict(arrays)


def _contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_classes_have_names_in_the_run_and_in_what_is_drawn(trained, tmp_path):
    assert json.loads((trained / "data.json").read_text())["class_names"] == ["a", "b"]
    named = _npz(trained, tmp_path / "a.npz", "--num", "4", "--classes", "b")
    assert named["labels"].tolist() == [1] * 4 and named["class_names"].tolist() == ["a", "b"]
    assert np.array_equal(named["images"], _npz(trained, tmp_path / "b.npz", "--num", "4", "--classes", "1")["images"])


def test_data_are_looked_at_without_training_and_before_it(trained, config, tmp_path, capsys, monkeypatch):
    sheet, images = tmp_path / "sheet.png", tmp_path / "images"
    assert main(["check-data", config, "--out", str(sheet)]) == 0
    assert capsys.readouterr().out.startswith("24 images, of 4x4 in grey")
    assert sheet.read_bytes() == (trained / "data.png").read_bytes()
    shutil.copytree(read_run(trained).data.path, images)
    whole = (images / "a" / "0.png").read_bytes()
    for name, content in (("a/x.png", b"nonsense"), ("b/y.png", whole[:50]), ("b/Thumbs.db", b"")):
        (images / name).write_bytes(content)
    for limit in (2**31, 0):  # in memory, and read one by one
        monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)
        assert main(["check-data", config, "--data.path", str(images), "--out", str(sheet)]) == 2
        said = capsys.readouterr().err
        assert all(words in said for words in ("a/x.png", "b/y.png", "1 (b/Thumbs.db)", "2 files are bad"))
    assert main(["check-data", config, "--data.path", str(images), "--data.on_error", "skip", "--out", str(sheet)]) == 0


def test_pictures_say_how_they_were_drawn_and_default_files_are_not_overwritten(trained, tmp_path):
    for options in (["--num", "2"], ["--num", "3"], ["--num", "2"], ["--num", "2", "--classes", "b"]):
        assert _sample(trained, *options) == 0
    names = {path.name for path in (trained / "samples").iterdir()}
    assert names == {"samples_ddim3_seed0.png", "samples_ddim3_seed0_2.png", "samples_b_ddim3_seed0.png"}
    assert _sample(trained, "--num", "2", "--seed", "5", "--classes", "b", "--out", str(tmp_path / "w_1.5")) == 0
    with Image.open(tmp_path / "w_1.5" / "000001.png") as image:
        text = image.text
    wanted = {
        "run": str(trained),
        "step": "2",
        "sampler": "ddim",
        "steps": "3",
        "seed": "5",
        "sample": "1",
        "class": "b",
    }
    assert text.items() >= wanted.items()
    again = tmp_path / "again.png"
    assert main(["sample", "--like", str(tmp_path / "w_1.5" / "000001.png"), "--out", str(again)]) == 0
    assert again.read_bytes() == (tmp_path / "w_1.5" / "000001.png").read_bytes()


def test_a_grid_is_drawn_again_from_itself(trained, tmp_path, capsys):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    options = ["--num", "5", "--classes", "b", "a", "--steps", "2", "--seed", "3", "--scale", "2"]
    assert _sample(trained, *options, "--out", str(one)) == 0
    assert main(["sample", "--like", str(one), "--out", str(two)]) == 0
    assert one.read_bytes() == two.read_bytes()
    assert main(["sample", "--like", str(one), "--step", "1"]) == 2
    assert "no checkpoint of step 1" in capsys.readouterr().err
    Image.new("L", (4, 4)).save(one)
    assert main(["sample", "--like", str(one)]) == 2
    assert "does not say how it was drawn" in capsys.readouterr().err


def test_pictures_in_other_formats_and_sizes(trained, tmp_path):
    assert _sample(trained, "--num", "2", "--scale", "3", "--out", str(tmp_path / "x.JPG")) == 0
    with Image.open(tmp_path / "x.JPG") as grid:
        assert grid.format == "JPEG" and grid.size == (2 + 14, 2 + 2 * 14)
    folder = tmp_path / "many"
    assert _sample(trained, "--num", "2", "--scale", "3", "--format", "webp", "--out", str(folder)) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["000000.webp", "000001.webp"]
    with Image.open(folder / "000000.webp") as image:
        assert image.format == "WEBP" and image.size == (12, 12)


def test_a_run_goes_on_with_classes_of_the_same_names_only(trained, config, tmp_path, capsys):
    shutil.copytree(read_run(trained).data.path, tmp_path / "images")
    (tmp_path / "images" / "a").rename(tmp_path / "images" / "aardvark")
    before = _contents(trained)
    assert _train(config, trained, "--data.path", str(tmp_path / "images")) == 2
    assert "aardvark not of the run, a missing" in capsys.readouterr().err
    assert _contents(trained) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--classes", "cow"], ["cow is not a class", "0..1", "a, b"]),
        (["--out", "a.pgn"], ["a.pgn", ".npz"]),
        (["--scale", "0"], ["--scale 0", "1..64"]),
        (["--scale", "2", "--out", "a.npz"], ["--scale 2", "no arrays"]),
        (["--scale", "64", "--num", "4096", "--out", "a.webp"], ["528386 x 518", "WEBP"]),
        (["--format", "jpg", "--out", "a.png"], ["--format", "a.png"]),
    ],
)
def test_what_cannot_be_drawn_or_written_is_refused_before_it_is_drawn(
    trained, capsys, tmp_path, monkeypatch, options, words
):
    monkeypatch.chdir(tmp_path)
    assert _sample(trained, *options) == 2
    line = capsys.readouterr().err
    assert all(word in line for word in words) and line.count("\n") == 1, line
    assert not list(tmp_path.iterdir())


def test_a_picture_to_start_from_is_turned_and_laid_on_white(trained, tmp_path):
    """Drawn from with the least strength, it comes back."""
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = np.zeros((4, 4, 2), np.uint8)  # clear; shown, its last row is black
    pixels[0] = (0, 255)
    Image.fromarray(pixels).save(tmp_path / "start.png", exif=exif)
    start = ("--init-image", str(tmp_path / "start.png"), "--strength", "0.01", "--num", "1")
    drawn = _npz(trained, tmp_path / "a.npz", *start)["images"][0, ..., 0].astype(int)
    assert drawn[:3].mean() > 100 + drawn[3].mean()


def test_a_run_from_before_names_were_kept_numbers_its_classes_as_text(trained, monkeypatch):
    assert workdir.class_numbering(trained, "folder") == ("a", "b")
    assert workdir.class_numbering(trained, "digits") == "natural"
    for meta, numbering in (({"fingerprint": "abc"}, "text"), ({}, "natural"), ({"class_names": []}, "natural")):
        monkeypatch.setattr(workdir, "newest_meta", lambda _, meta=meta: meta)
        assert workdir.class_numbering(trained, "folder") == numbering
