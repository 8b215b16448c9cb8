"""Every kind of data set opens with the right pixels and labels, and every kind of bad input is named in one line."""

import gzip
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from jaxdiff.errors import UserError
from jaxdiff.training import sources
from jaxdiff.training.digits_tfds import JaxdiffDigits
from jaxdiff.training.records import FASHION_MNIST_FOLDER
from jaxdiff.training.sources import MemorySource, RecordSource, open_dataset

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
    assert open_dataset("fashion_mnist", str(idx), resize=4).shape == (4, 4, 1)


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
    (folder / "cat" / "notes.txt").write_text("remember the milk")
    with pytest.raises(UserError, match=r"cat/notes\.txt: not a PNG.*120 of 121 are good"):
        open_dataset("folder", str(folder))


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
        (("digitz",), "unknown data set digitz; did you mean digits?.*digits, fashion_mnist, folder, coloured"),
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
