"""Every kind of data set opens with the right pixels and labels, and every kind of bad input is named in one line."""

import gzip
import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from jaxdiff.data import sources
from jaxdiff.data.decoding import CorruptImageError
from jaxdiff.data.digits_tfds import JaxdiffDigits
from jaxdiff.data.idx import FASHION_MNIST_FOLDER
from jaxdiff.data.sources import MemorySource, RecordSource, open_dataset
from jaxdiff.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (200, 6, 5, 3), np.uint8)


class Coloured(tfds.core.GeneratorBasedBuilder):
    """Ten random images without a fixed size in the features, and no labels."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(10):
            yield index, {"image": Image.fromarray(PIXELS[index])}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    Coloured(data_dir=path, file_format="array_record").download_and_prepare()
    return path


@pytest.fixture
def folder(tmp_path):
    """120 colour PNGs in two classes, `cat` (even) and `dog` (odd)."""
    for index in range(120):
        path = tmp_path / "images" / ("cat", "dog")[index % 2] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[index]).save(path)
    return tmp_path / "images"


def _write_idx(path, array, magic=None, shape=None):
    header = struct.pack(">I", 0x800 + array.ndim if magic is None else magic)
    content = header + struct.pack(f">{array.ndim}I", *(shape or array.shape)) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def idx(tmp_path):
    """Twenty 6x5 images in MNIST's format, one file plain and three compressed."""
    labels = np.arange(20, dtype=np.uint8) % 10
    _write_idx(tmp_path / "train-images-idx3-ubyte.gz", PIXELS[:20, ..., 0])
    _write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels)
    _write_idx(tmp_path / "t10k-images-idx3-ubyte", PIXELS[20:25, ..., 0])
    _write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels[:5])
    return tmp_path


def _all(source):
    batch = source.gather(np.arange(len(source)))
    return batch["image"], batch["label"]


def test_digits_are_those_of_scikit_learn_and_the_split_is_stratified(data_dir):
    train, test = (open_dataset("digits", str(data_dir), split) for split in ("train", "test"))
    assert (len(train), len(test), train.shape, train.num_classes) == (1437, 360, (8, 8, 1), 10)
    assert np.bincount(_all(test)[1]).tolist() == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]
    values, labels = load_digits(return_X_y=True)
    real = {(label, *image.astype(int)) for label, image in zip(labels, values, strict=True)}
    ours = [
        (label, *np.round(image.reshape(64) * (16 / 255)).astype(int))
        for source in (train, test)
        for image, label in zip(*_all(source), strict=True)
    ]
    assert len(set(ours)) == len(real) == 1797 and set(ours) == real
    held_out = sorted(range(1797), key=lambda index: labels[index])[::5]  # Python's sort is stable
    assert set(ours[1437:]) == {(labels[index], *values[index].astype(int)) for index in held_out}


def test_digits_are_prepared_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    assert len(open_dataset("digits", str(tmp_path))) == 1437


def test_digits_prepared_by_two_at_once_are_whole_for_both(tmp_path, monkeypatch):
    split_generators = JaxdiffDigits._split_generators
    others = []

    def while_another_is_quicker(self, dl_manager):
        if not others:
            others.append(None)
            others[0] = open_dataset("digits", str(tmp_path))
        return split_generators(self, dl_manager)

    monkeypatch.setattr(JaxdiffDigits, "_split_generators", while_another_is_quicker)
    assert open_dataset("digits", str(tmp_path)).fingerprint == others[0].fingerprint
    assert [path.name for path in (tmp_path / "jaxdiff_digits").iterdir()] == ["1.0.0"]


def test_digits_that_cannot_be_written_say_where_else(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"set data.path or TFDS_DATA_DIR"):
        open_dataset("digits", str(tmp_path / "file"))


def test_idx_files_plain_and_compressed(idx):
    train, test = open_dataset("fashion_mnist", str(idx)), open_dataset("fashion_mnist", str(idx), "test")
    assert np.array_equal(_all(train)[0][..., 0], PIXELS[:20, ..., 0])
    assert _all(train)[1].tolist() == [*range(10), *range(10)] and train.num_classes == 10
    assert np.array_equal(_all(test)[0][..., 0], PIXELS[20:25, ..., 0])
    assert open_dataset("fashion_mnist", str(idx), resize=(4, 6)).shape == (4, 6, 1)


def test_the_real_fashion_mnist():
    if not Path(FASHION_MNIST_FOLDER).is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    train, test = open_dataset("fashion_mnist"), open_dataset("fashion_mnist", split="test")
    assert (len(train), len(test), train.shape) == (60000, 10000, (28, 28, 1))
    assert np.bincount(_all(train)[1]).tolist() == [6000] * 10
    assert 72 < _all(train)[0].mean() < 74  # the published mean is 0.286 of 255


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda path: path.unlink(), "dataset-fashion-mnist"),
        (lambda path: path.write_bytes(path.read_bytes()[:-400]), "damaged"),
        (lambda path: path.write_bytes(b"not gzip"), "damaged"),
        (lambda path: _write_idx(path, PIXELS[:20, ..., 0], magic=0x801), "not an idx file"),
        (lambda path: _write_idx(path, PIXELS[:20, ..., 0], magic=0xD03), "not an idx file"),
        (lambda path: _write_idx(path, PIXELS[:20, ..., 0], shape=(21, 6, 5)), "fewer bytes"),
        (lambda path: _write_idx(path, PIXELS[:20, ..., 0], shape=(19, 6, 5)), "more bytes"),
        (lambda path: _write_idx(path, PIXELS[:20, ..., 0], shape=(2**31, 6, 5)), "claims shape"),
        (lambda path: _write_idx(path, PIXELS[:19, ..., 0]), "19 train images but 20 labels"),
    ],
)
def test_damaged_idx_files_are_named(idx, break_it, says):
    break_it(idx / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match=says) as caught:
        open_dataset("fashion_mnist", str(idx))
    assert "\n" not in str(caught.value) and str(idx) in str(caught.value)


def test_idx_labels_beyond_the_ten_classes_are_refused(idx):
    _write_idx(idx / "train-labels-idx1-ubyte.gz", np.arange(20, dtype=np.uint8))
    with pytest.raises(UserError, match="labels up to 19"):
        open_dataset("fashion_mnist", str(idx))


def test_folder_classes_are_the_sub_folders_in_order(folder):
    source = open_dataset("folder", str(folder))
    images, labels = _all(source)
    assert (source.shape, source.num_classes, len(source)) == ((6, 5, 3), 2, 120)
    assert labels.tolist() == [0] * 60 + [1] * 60
    assert np.array_equal(images, np.concatenate([PIXELS[0:120:2], PIXELS[1:120:2]]))


def test_folder_without_sub_folders_has_no_classes_and_hidden_files_do_not_count(folder):
    (folder / "cat" / ".DS_Store").write_bytes(b"hidden")
    source = open_dataset("folder", str(folder / "cat"))
    assert (source.num_classes, len(source), _all(source)[1].max()) == (0, 60, 0)


@pytest.mark.parametrize("other", [PIXELS[0, :4], PIXELS[0, ..., 0]], ids=["size", "channels"])
def test_mixed_images_need_a_resize_rule(folder, other):
    Image.fromarray(other).save(folder / "dog" / "other.png")
    with pytest.raises(UserError, match=r"other\.png .*set data\.resize"):
        open_dataset("folder", str(folder))
    assert open_dataset("folder", str(folder), resize=4).shape == (4, 4, 3)


def test_a_file_that_is_no_image_is_named_with_the_count_of_good_ones(folder):
    (folder / "cat" / "page.png").write_text("<html>403 Forbidden</html>")
    with pytest.raises(UserError, match=r"cat/page\.png: not a PNG.*120 of 121 are good"):
        open_dataset("folder", str(folder))


def test_what_is_no_picture_by_its_name_is_passed_over_and_counted(folder):
    before = open_dataset("folder", str(folder))
    others = ["Thumbs.db", "cat/notes.txt", "dog/clip.mp4", "cat/000.png.xmp", "cat/._000.png", "__MACOSX/cat/a.png"]
    for name in [*others, "cat/.cache/000.png", "@eaDir/b.jpg"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0" * 80)
    os.mkfifo(folder / "cat" / "pipe.png")  # reading it would never end
    source = open_dataset("folder", str(folder))
    assert (len(source), source.num_classes, source.fingerprint) == (120, 2, before.fingerprint)
    assert before.about.notes == () and len(source.about.notes) == 1
    assert "passed over: 9 (" in source.about.notes[0] and "Thumbs.db" in source.about.notes[0]


def test_a_picture_of_a_strange_name_is_read(folder):
    (folder / "cat" / "000.png").rename(folder / "cat" / "000")
    (folder / "cat" / "002.png").rename(folder / "cat" / "002.PNG_large")
    assert len(open_dataset("folder", str(folder))) == 120


def test_a_folder_of_other_files_says_so(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no files but notes\.txt"):
        open_dataset("folder", str(tmp_path))


@pytest.mark.parametrize("name", ["a.heic", "a.psd", "a.svg", "a.jxl", "a.nef"])
def test_pictures_that_are_not_read_are_named_rather_than_passed_over(folder, name):
    Image.fromarray(PIXELS[0]).save(folder / "cat" / "a.tif")
    (folder / "cat" / "a.tif").rename(folder / "cat" / name)
    if name != "a.nef":  # a camera's raw file is a TIFF of its thumbnail
        (folder / "cat" / name).write_bytes(b"8BPS" + bytes(40))
    with pytest.raises(UserError, match=rf"cat/{name}: .*120 of 121 are good"):
        open_dataset("folder", str(folder))


def test_links_to_nowhere_are_named_and_loops_are_not_followed(folder):
    (folder / "cat" / "again").symlink_to("..")
    assert len(open_dataset("folder", str(folder))) == 120
    (folder / "cat" / "gone.png").symlink_to("/nonexistent")
    (folder / "cat" / "round.png").symlink_to("round.png")
    with pytest.raises(UserError, match=r"gone\.png: a link to nowhere; .*round\.png: a link to nowhere; 120 of 122"):
        open_dataset("folder", str(folder))


@pytest.mark.parametrize("limit", [2**31, 0], ids=["memory", "records"])
def test_all_bad_files_are_listed_at_once_up_to_twenty(folder, monkeypatch, limit):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)
    for index in range(0, 60, 2):
        (folder / "cat" / f"{index:03}.png").write_bytes(b"")
    if limit:  # else the headers alone are looked at
        _truncate(folder / "dog" / "001.png")
    with pytest.raises(UserError) as caught:
        open_dataset("folder", str(folder))
    line, bad = str(caught.value), 31 if limit else 30
    assert line.count(".png: ") == 20 and f"; and {bad - 20} more; {120 - bad} of 120 are good" in line
    assert "\n" not in line
    (folder / "cat" / "000.png").unlink()  # fewer than twenty: all of them, also those whose header is good
    for index in range(2, 40, 2):
        (folder / "cat" / f"{index:03}.png").unlink()
    with pytest.raises(UserError) as caught:
        open_dataset("folder", str(folder))
    assert str(caught.value).count(".png: ") == 10 + bool(limit)
    assert ("001.png: a damaged image" in str(caught.value)) == bool(limit)


@pytest.mark.parametrize("limit", [2**31, 0], ids=["memory", "records"])
def test_skip_leaves_bad_files_out_for_good_as_if_they_were_not_there(folder, monkeypatch, limit):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)
    bad = [folder / "cat" / "000.png", folder / "dog" / "003.png"]
    for path in bad:
        path.write_text("gone")
    source = open_dataset("folder", str(folder), on_error="skip")
    assert (len(source), source.substituted, len(source.about.left_out)) == (118, set(), 2)
    assert all(line.startswith(f"{path}: not a PNG") for line, path in zip(source.about.left_out, bad, strict=True))
    assert np.array_equal(_all(source)[0][0], PIXELS[2]) and _all(source)[1].tolist() == [0] * 59 + [1] * 59
    for path in bad:
        path.unlink()
    assert open_dataset("folder", str(folder)).fingerprint == source.fingerprint


def test_skip_leaves_damaged_pixels_out_and_does_not_train_on_nothing(folder):
    _truncate(folder / "dog" / "011.png")
    source = open_dataset("folder", str(folder), on_error="skip")
    assert len(source) == 119 and "011.png: a damaged image" in source.about.left_out[0]
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="0 of 120 are good"):
        open_dataset("folder", str(folder), on_error="skip")


@pytest.mark.parametrize("limit", [2**31, 0], ids=["memory", "records"])
def test_transparent_pictures_lie_on_the_background(folder, monkeypatch, limit):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)
    Image.fromarray(np.full((6, 5, 4), (1, 2, 3, 0), np.uint8)).save(folder / "cat" / "000.png")
    for options, pixel in (
        ({}, (255,) * 3),
        ({"background": "#0102ff"}, (1, 2, 255)),
        ({"background": "red"}, (255, 0, 0)),
    ):
        assert (open_dataset("folder", str(folder), **options)[0]["image"] == pixel).all()
    for wrong in ("whitee", "", "#12", "#11223344"):
        with pytest.raises(UserError, match=rf"data\.background: '{wrong}' is no colour; give a name such as white"):
            open_dataset("digits", background=wrong)


def test_turned_pictures_are_turned_before_sizes_are_compared(folder):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.ascontiguousarray(PIXELS[0].transpose(1, 0, 2)[:, ::-1])).save(
        folder / "cat" / "000.png", exif=exif
    )
    assert np.array_equal(open_dataset("folder", str(folder))[0]["image"], PIXELS[0])


def test_an_animated_picture_is_read_by_its_first_frame_and_noted(folder):
    frames = [Image.fromarray(pixels) for pixels in PIXELS[:2]]
    frames[0].save(folder / "cat" / "000.webp", save_all=True, append_images=frames[1:], lossless=True)
    source = open_dataset("folder", str(folder))
    assert np.array_equal(source[0]["image"], PIXELS[0]) and len(source) == 121
    assert source.about.notes == ("files with several frames are read by the first: 1 (cat/000.webp)",)


def test_an_empty_class_folder_is_named_and_refused_unless_allowed(folder):
    (folder / "cow").mkdir()
    (folder / "cow" / "notes.txt").touch()
    (folder / "bee" / "deep").mkdir(parents=True)
    with pytest.raises(UserError, match=r"class bee, cow of .* has no images; .*data\.allow_empty=true"):
        open_dataset("folder", str(folder))
    source = open_dataset("folder", str(folder), allow_empty=True)
    assert source.about.class_names == ("bee", "cat", "cow", "dog") and source.num_classes == 4
    assert np.unique(_all(source)[1]).tolist() == [1, 3]


def _twelve(tmp_path, names):
    """Class folders with a grey level of 20 times their name each."""
    for name in names:
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 4), 20 * int(name), np.uint8)).save(tmp_path / name / "0.png")
    return str(tmp_path)


def test_class_folders_are_numbered_as_people_count(tmp_path):
    path = _twelve(tmp_path, map(str, range(12)))
    source = open_dataset("folder", path)
    assert source.about.class_names == tuple(map(str, range(12)))
    assert (_all(source)[0][:, 0, 0, 0] == 20 * _all(source)[1]).all() and _all(source)[1].tolist() == [*range(12)]
    as_text = open_dataset("folder", path, numbering="text")
    assert as_text.about.class_names[:4] == ("0", "1", "10", "11")
    assert _all(as_text)[0][:4, 0, 0, 0].tolist() == [0, 20, 200, 220]
    again = open_dataset("folder", path, numbering=as_text.about.class_names)
    assert again.fingerprint == as_text.fingerprint != source.fingerprint


def test_classes_of_other_names_are_refused_with_the_names(tmp_path):
    path = _twelve(tmp_path, ("1", "2", "4"))
    with pytest.raises(UserError, match=r"not those of the run: 4 not of the run, 3 missing$"):
        open_dataset("folder", path, numbering=("1", "2", "3"))
    with pytest.raises(UserError, match=r"4 not of the run$"):
        open_dataset("folder", path, numbering=("1", "2"))
    source = open_dataset("folder", path, numbering=("1", "2", "3", "4"), allow_empty=True)
    assert source.num_classes == 4 and _all(source)[1].tolist() == [0, 1, 3]


def test_digits_are_not_written_among_pictures(tmp_path):
    (tmp_path / "cats").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cats" / "a.PNG")
    with pytest.raises(UserError, match=r"holds pictures, which data\.name digits does not read; set it to folder"):
        open_dataset("digits", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["cats"]


def test_class_names_of_a_tfds_data_set(tmp_path):
    assert open_dataset("digits", str(tmp_path)).about.class_names == tuple("0123456789")
    with pytest.raises(UserError, match=r"the classes of digits are not those of the run: 0, 1.* one missing"):
        open_dataset("digits", str(tmp_path), numbering=("one",))


def test_a_truncated_image_is_named_with_the_count_of_good_ones(folder):
    _truncate(folder / "dog" / "011.png")
    with pytest.raises(UserError, match=r"dog/011\.png: a damaged image.*119 of 120 are good"):
        open_dataset("folder", str(folder))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("limit", [2**31, 0], ids=["memory", "records"])
def test_substitution_is_the_next_good_record_counted_and_capped(folder, monkeypatch, limit):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)
    _truncate(folder / "dog" / "011.png")  # record 65; the next one is 013.png
    source = open_dataset("folder", str(folder), on_error="substitute")
    assert type(source) is (MemorySource if limit else RecordSource)
    images, labels = _all(source)
    assert np.array_equal(images[65], PIXELS[13]) and np.array_equal(images[66], PIXELS[13]) and labels[65] == 1
    assert source.substituted == {65}
    (folder / "cat" / "000.png").write_text("gone as well")
    with pytest.raises(UserError, match="2 of 120 records are corrupt"):
        _all(open_dataset("folder", str(folder), on_error="substitute"))


def test_the_last_record_is_substituted_by_the_first(folder):
    _truncate(folder / "dog" / "119.png")
    assert np.array_equal(_all(open_dataset("folder", str(folder), on_error="substitute"))[0][-1], PIXELS[0])


def test_records_too_large_for_memory_are_the_same_records(folder, monkeypatch):
    held = open_dataset("folder", str(folder))
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 120 * 6 * 5 * 3 - 1)
    read = open_dataset("folder", str(folder))
    assert type(held) is MemorySource and type(read) is RecordSource
    for ours, theirs in zip(_all(held), _all(read), strict=True):
        assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype
    assert np.array_equal(held[7]["image"], read[7]["image"]) and held[7]["label"] == read[7]["label"]


@pytest.mark.parametrize("limit", [2**31, 0], ids=["memory", "records"])
def test_fingerprint_is_stable_and_notices_a_pixel_a_name_and_a_class(folder, monkeypatch, limit):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)
    prints = [open_dataset("folder", str(folder)).fingerprint for _ in range(2)]
    Image.fromarray(PIXELS[0] ^ 1).save(folder / "cat" / "000.png")
    prints.append(open_dataset("folder", str(folder)).fingerprint)
    (folder / "dog" / "001.png").rename(folder / "cat" / "001.png")
    prints.append(open_dataset("folder", str(folder)).fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_fingerprint_of_a_folder_too_large_for_memory_covers_every_name_and_size(folder, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(sources, "_SAMPLED", 2)
    prints = [open_dataset("folder", str(folder)).fingerprint]
    with (folder / "cat" / "004.png").open("ab") as file:
        file.write(b"the same pixels")
    prints.append(open_dataset("folder", str(folder)).fingerprint)
    (folder / "cat" / "004.png").rename(folder / "cat" / "005.png")
    prints.append(open_dataset("folder", str(folder)).fingerprint)
    assert len(set(prints)) == 3


class Captioned:
    """Ten images; the third is corrupt, the sixth has no caption."""

    shape, num_classes, class_names, identity, notes = (6, 5, 3), 0, (), "ten", ()

    def __init__(self, path, split):
        self.kept = list(range(10))
        self.captions = [(f"caption {index}", f"{index}") if index != 5 else () for index in range(10)]
        if path == "none":
            self.captions = [() for _ in range(10)]
        if path == "other":
            self.captions[9] = ("another",)

    def __len__(self):
        return len(self.kept)

    def leave_out(self, corrupt):
        self.kept = [number for index, number in enumerate(self.kept) if index not in corrupt]

    def name(self, index):
        return f"record {self.kept[index]}"

    def measure(self, index):
        return self.shape

    def read(self, index, channels, resize, background=(255, 255, 255)):
        if self.kept[index] == 2:
            raise CorruptImageError(f"{self.name(index)}: damaged")
        return PIXELS[self.kept[index]], 0


@pytest.mark.parametrize("limit", [2**31, 0], ids=["memory", "records"])
def test_captions_stay_with_their_images_whatever_is_left_out_or_substituted(monkeypatch, limit):
    monkeypatch.setitem(sources.DATASETS.members, "captioned", Captioned)
    monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)
    monkeypatch.setattr(sources, "SUBSTITUTE_LIMIT", 0.2)
    for on_error in ("skip", "substitute"):
        source = open_dataset("captioned", on_error=on_error, captioned=True)
        batch = source.gather(np.arange(len(source)))
        assert len(source) == {"skip": 8 if limit else 9, "substitute": 10}[on_error]
        assert source.about.left_out[-1:] == (() if on_error == "substitute" else ("record 5: no caption",))
        for image, record in zip(batch["image"], batch["record"], strict=True):
            shown = next(index for index in range(10) if np.array_equal(PIXELS[index], image))
            assert shown not in (2, 5) and source.captions[record] == (f"caption {shown}", f"{shown}")
    monkeypatch.setattr(Captioned, "read", lambda self, index, *how: (PIXELS[self.kept[index]], 0))
    plain = open_dataset("captioned")  # who reads no captions misses none
    assert len(plain) == 10 and plain.captions == ()
    with pytest.raises(UserError, match=r"record 5: no caption; 9 of 10 are good; .*data\.on_error=substitute or skip"):
        open_dataset("captioned", captioned=True)
    for name in ("captioned", "digits"):
        with pytest.raises(UserError, match=f"{name} has no captions, and diffusion.conditioner needs them"):
            open_dataset(name, "none" if name == "captioned" else None, captioned=True)
    monkeypatch.setattr(Captioned, "read", lambda self, index, *how: (PIXELS[0], 0))  # else equal but for captions
    prints = [open_dataset("captioned").fingerprint]
    prints += [open_dataset("captioned", p, on_error="substitute", captioned=True).fingerprint for p in ("", "other")]
    assert len(set(prints)) == 3


def test_fingerprint_of_memory_covers_every_label_and_the_classes():
    images, labels = PIXELS[:20], np.zeros(20, np.int32)
    other = labels.copy()
    other[-1] = 1
    held = [MemorySource(images, labels, 2, set()), MemorySource(images, other, 2, set())]
    held.append(MemorySource(images, labels, 3, set()))
    assert len({source.fingerprint for source in held}) == 3


def test_any_prepared_tfds_data_set(data_dir):
    source = open_dataset("coloured", str(data_dir))
    images = _all(source)[0]
    assert (source.shape, source.num_classes, len(source)) == ((6, 5, 3), 0, 10)
    assert {image.tobytes() for image in images} == {image.tobytes() for image in PIXELS[:10]}
    assert len(open_dataset("coloured", str(data_dir), "train[:30%]")) == 3
    assert open_dataset("coloured", str(data_dir), resize=4).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("digitz",),
            "unknown data set digitz; did you mean digits?.*digits, fashion_mnist, folder, webdataset, coloured",
        ),
        (("colored",), "did you mean coloured?"),
        (("mnist",), "mnist is not prepared under .*tfds build mnist --file_format=array_record"),
        (("coloured", "validation"), "validation: coloured/1.0.0 has train"),
        (("fashion_mnist", "validation"), "has train and test"),
    ],
)
def test_unknown_names_and_splits_list_the_choices(data_dir, arguments, says):
    name, *split = arguments
    with pytest.raises(UserError, match=says) as caught:
        open_dataset(name, str(data_dir), *split)
    assert "\n" not in str(caught.value)


def test_a_tfds_format_without_random_access_says_how_to_prepare_it(data_dir, tmp_path):
    version = tmp_path / "coloured" / "1.0.0"
    version.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        (version / name).write_text((data_dir / "coloured" / "1.0.0" / name).read_text())
    info = json.loads((version / "dataset_info.json").read_text())
    (version / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"stored as tfrecord.*--file_format=array_record"):
        open_dataset("coloured", str(tmp_path))


@pytest.mark.parametrize(
    ("make", "split", "says"),
    [
        (lambda path: None, "train", "is not a folder"),
        (lambda path: path.write_text("a file"), "train", "is not a folder"),
        (lambda path: path.mkdir(), "train", "holds no files"),
        (lambda path: path.mkdir(), "test", "one split, train"),
    ],
)
def test_an_empty_or_missing_folder_is_refused(tmp_path, make, split, says):
    make(tmp_path / "images")
    with pytest.raises(UserError, match=says):
        open_dataset("folder", str(tmp_path / "images"), split)


def test_a_folder_needs_a_path_and_files_beside_classes_are_refused(folder):
    with pytest.raises(UserError, match=r"data.path: \(empty\)"):
        open_dataset("folder")
    Image.fromarray(PIXELS[0]).save(folder / "loose.png")
    with pytest.raises(UserError, match=r"both files \(loose.png\) and sub-folders \(cat\)"):
        open_dataset("folder", str(folder))
