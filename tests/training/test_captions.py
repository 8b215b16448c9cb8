"""Captions are read with their pictures, whatever holds them, and what is wrong with them is named in one line."""

import csv
import io
import json
import os
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from benchmarks.shapes import HELD_OUT, make_shapes, read_shapes
from jaxdiff.data import captions as caption_files
from jaxdiff.data import sources
from jaxdiff.data.sources import open_dataset
from jaxdiff.data.webdataset import WebdatasetRecords
from jaxdiff.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
NAMES = ["a.png", "b c.png", "ü,\n'.png", "d/e.png", "d/f.v2.png", "d/.g/h.png"]


def _png(index):
    file = io.BytesIO()
    Image.fromarray(PIXELS[index]).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Five pictures, one of an odd name and two in a class `d`... but all in one folder's metadata."""
    for index, name in enumerate(NAMES[:3]):
        (tmp_path / name).write_bytes(_png(index))
    return tmp_path


def _jsonl(folder, *lines, name="metadata.jsonl"):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / name).write_text("\n".join(texts), "utf-8", newline="")


def _line(index, text, **more):
    return {"file_name": NAMES[index], "text": text, **more}


def _shown(source):
    """{index of PIXELS: captions} of a source."""
    batch = source.gather(np.arange(len(source)))
    shown = [int(np.abs(PIXELS.astype(int) - image).sum((1, 2, 3)).argmin()) for image in batch["image"]]
    return {index: source.captions[record] for index, record in zip(shown, batch["record"], strict=True)}


def _open(folder, name="folder", **options):
    return open_dataset(name, str(folder), captioned=True, **options)


def test_a_folder_with_metadata(folder):
    odd = json.dumps(_line(2, "ün\u2028ï"), ensure_ascii=False)  # JSON allows it in a line, where splitlines does not
    _jsonl(folder, _line(1, "one  text\n"), "", _line(0, ["two", "", "texts"], width=4), odd)
    by_json = _open(folder)
    assert _shown(by_json) == {0: ("two", "texts"), 1: ("one text",), 2: ("ün ï",)}
    assert by_json.num_classes == 0 and by_json.about.notes == ()
    plain = open_dataset("folder", str(folder))  # who does not ask for captions sees the folder as it ever was
    assert plain.captions == () and plain.about.notes == (
        "files that are no pictures by their names are passed over: 1 (metadata.jsonl)",
    )
    (folder / "metadata.jsonl").unlink()
    file = io.StringIO(newline="")
    csv.writer(file).writerows(
        [["file_name", "text", "n"], *([name, f"{i}, {i}", i] for i, name in enumerate(NAMES[:3]))]
    )
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + file.getvalue().encode())  # as Excel does, with CRLF
    by_csv = _open(folder)
    assert _shown(by_csv) == {0: ("0, 0",), 1: ("1, 1",), 2: ("2, 2",)}
    assert len({by_csv.fingerprint, by_json.fingerprint, plain.fingerprint}) == 3


def test_a_folder_with_a_text_beside_each_picture_and_classes(folder):
    (folder / "d").mkdir()
    for index, name in enumerate(NAMES[:3]):
        (folder / name).rename(folder / "d" / name)
        (folder / "d" / name).with_suffix(".txt").write_bytes(b"\xef\xbb\xbf%d\r\n\r\nor so\r\n" % index)
    (folder / "e").mkdir()
    (folder / "e" / "f.v2.png").write_bytes(_png(4))
    (folder / "e" / "f.v2.txt").write_text("4")
    (folder / "e" / "other.txt").write_text("beside nothing")
    source = _open(folder)
    assert _shown(source) == {**{index: (f"{index}", "or so") for index in range(3)}, 4: ("4",)}
    assert source.about.class_names == ("d", "e") and source.gather(np.arange(4))["label"].tolist() == [0, 0, 0, 1]
    assert "passed over: 1 (e/other.txt)" in source.about.notes[0]


BAD = [
    ([_line(0, "x"), _line(1, "x"), {"file_name": "gone.png", "text": "x"}], "gone.png: No such file or directory", 2),
    ([_line(0, "x"), _line(1, "x"), _line(0, "y")], "metadata.jsonl names it twice, in lines 1 and 3; give its", 1),
    ([_line(0, 5), _line(1, "x")], "a.png: metadata.jsonl line 1: 5 where a caption should be", 1),
    ([_line(0, ["x", None]), _line(1, "x")], "line 1: None where a caption should be", 1),
    ([_line(0, "\ud800"), _line(1, "x")], "line 1: a caption that is not UTF-8", 1),
    ([_line(0, " "), _line(1, "x")], "a.png: no caption", 1),
    ([_line(1, "x")], "a.png: no caption", 1),
    ([_line(0, "x"), _line(1, "x"), "{"], "metadata.jsonl line 3: not JSON", 2),
    ([_line(0, "x"), _line(1, "x"), "[" * 100_000], "metadata.jsonl line 3: not JSON", 2),
    ([_line(0, "x"), _line(1, "x"), "7"], "metadata.jsonl line 3: no file_name", 2),
    ([_line(0, "x"), _line(1, "x"), {"file_name": "../a.png"}], "line 3: ../a.png is not in the folder", 2),
    ([_line(0, "x"), _line(1, "x"), {"file_name": "/etc/passwd"}], "line 3: /etc/passwd is not in the folder", 2),
    ([_line(0, "x"), _line(1, "x"), {"file_name": "metadata.jsonl", "text": "x"}], "metadata.jsonl: not a PNG", 2),
    ([_line(0, "x"), _line(1, "x"), {"file_name": "pipe", "text": "x"}], "pipe: not a file", 2),
    ([_line(0, "x"), _line(1, "x"), {"file_name": "y" * 300, "text": "x"}], "yyy: File name too long", 2),
]


@pytest.mark.parametrize(("lines", "says", "good"), BAD)
def test_what_is_wrong_with_metadata_is_named_and_follows_on_error(folder, monkeypatch, lines, says, good):
    (folder / NAMES[2]).unlink()
    os.mkfifo(folder / "pipe")
    _jsonl(folder, *lines)
    with pytest.raises(UserError) as caught:
        _open(folder)
    line = str(caught.value)
    assert says in line and "\n" not in line and "set data.on_error=substitute or skip" in line
    source = _open(folder, on_error="skip")
    assert len(source) == good and len(source.about.left_out) == 1 and says in source.about.left_out[0]
    assert set(_shown(source).values()) == {("x",)}
    monkeypatch.setattr(sources, "SUBSTITUTE_LIMIT", 0.5)
    assert set(_shown(_open(folder, on_error="substitute")).values()) == {("x",)}


def test_what_is_wrong_with_caption_files_as_a_whole(folder, monkeypatch):
    with pytest.raises(UserError, match=r"folder has no captions, and diffusion\.conditioner needs them"):
        _open(folder)
    (folder / "metadata.csv").write_text("name,text\na.png,x\n")
    with pytest.raises(UserError, match=r"metadata\.csv: no column file_name in its first line, \['name', 'text'\]"):
        _open(folder)
    (folder / "metadata.csv").write_bytes(b'file_name,text\na.png,caf\xe9\nb c.png,"x"y\n')
    with pytest.raises(UserError) as caught:
        _open(folder)
    for said in (
        "a.png: metadata.csv line 2: a caption that is not UTF-8",
        "metadata.csv line 3: not CSV from here on",
    ):
        assert said in str(caught.value)
    _jsonl(folder)
    with pytest.raises(UserError, match=r"holds both metadata\.jsonl and metadata\.csv"):
        _open(folder)
    for path in folder.glob("metadata.*"):
        path.unlink()
    (folder / "a.txt").write_bytes(b"caf\xe9")
    (folder / "b c.txt").write_bytes(b"long")
    monkeypatch.setattr(caption_files, "MAX_TEXT_BYTES", 3)
    with pytest.raises(
        UserError, match=r"a\.txt: captions of more than 3 bytes; .*b c\.txt: captions of more than 3 b"
    ):
        _open(folder)
    monkeypatch.setattr(caption_files, "MAX_TEXT_BYTES", 4)
    with pytest.raises(
        UserError, match=r"(?s)a\.png: a\.txt: a caption that is not UTF-8; .*png: no caption; 1 of 3 are good"
    ):
        _open(folder)


def _shard(path, *members):
    """A tar of (name, content); a content may be None for a folder."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.type = (0, tarfile.DIRTYPE) if content is None else (len(content), tarfile.REGTYPE)
            archive.addfile(member, io.BytesIO(content or b""))
    return path


def test_shards_with_captions_and_classes_in_all_their_forms(tmp_path, monkeypatch):
    facts = {"caption": ["two", "texts"], "style": "flat"}
    _shard(
        tmp_path / "train-000.tar",
        ("./set", None),
        ("./set/a.png", _png(0)),
        ("./set/a.txt", b"one\r\nmore"),
        ("./set/a.cls", b"3\n"),
        ("./set/._a.png", b"what macOS adds"),
        ("b.left.PNG", _png(1)),
        ("b.json", json.dumps(facts).encode()),
        ("b.cls", b"0"),
    )
    long = "ü" * 200
    _shard(
        tmp_path / "train-001.tar",
        (f"{long}.png", _png(2)),
        (f"{long}.json", b'{"text": "three"}'),
        (f"{long}.cls", b"1"),
    )
    _shard(tmp_path / "test.tar", ("a.png", _png(3)), ("a.txt", b"four"))
    (tmp_path / "heldout").mkdir()
    _shard(tmp_path / "heldout" / "x.tar", ("a.png", _png(4)), ("a.txt", b"five"))
    for limit in (sources.MEMORY_LIMIT, 0):
        monkeypatch.setattr(sources, "MEMORY_LIMIT", limit)
        source = _open(tmp_path, "webdataset")
        assert _shown(source) == {0: ("one", "more"), 1: ("two", "texts"), 2: ("three",)}
        assert source.num_classes == 4 and source.gather(np.arange(3))["label"].tolist() == [3, 0, 1]
    assert WebdatasetRecords(str(tmp_path), "train").facts(1) == facts
    assert open_dataset("webdataset", str(tmp_path)).captions == ()
    assert _shown(_open(tmp_path, "webdataset", split="test")) == {3: ("four",)}
    with pytest.raises(UserError, match=r"test\.tar, a: a sample of this name came before; 1 of 2 are good"):
        _open(tmp_path, "webdataset", split="heldout+test")
    with pytest.raises(UserError, match=r"no shards of val; it has heldout/x\.tar, test\.tar, train-000\.tar"):
        _open(tmp_path, "webdataset", split="val")
    with pytest.raises(UserError, match=r"no shards of val"):
        _open(tmp_path, "webdataset", split="train+val")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("b.txt", b"no picture")], "s.tar, b: no picture among its members"),
        ([("b.png", b"none"), ("b.txt", b"x")], "s.tar, b: not a PNG"),
        ([("b.png", _png(1)), ("b.txt", b"caf\xe9")], "s.tar, b: a caption that is not UTF-8"),
        ([("b.png", _png(1)), ("b.json", b"{")], "s.tar, b: .json: "),
        ([("b.png", _png(1)), ("b.json", b"[]")], "s.tar, b: .json is not an object"),
        ([("b.png", _png(1)), ("b.json", b'{"text": 3}')], "s.tar, b: 3 where a caption should be"),
        ([("b.png", _png(1)), ("b.json", b'{"x": 3}')], "s.tar, b: no caption"),
        (
            [("b.png", _png(1)), ("b.txt", b"x"), ("c.png", _png(2)), ("c.txt", b"x"), ("b.png", _png(1))],
            "b: a sample of",
        ),
    ],
)
def test_what_is_wrong_in_a_shard_is_named_and_follows_on_error(tmp_path, members, says):
    _shard(tmp_path / "s.tar", ("a.png", _png(0)), ("a.txt", b"x"), *members)
    with pytest.raises(UserError) as caught:
        _open(tmp_path, "webdataset")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    source = _open(tmp_path, "webdataset", on_error="skip")
    assert len(source.about.left_out) == 1 and _shown(source)[0] == ("x",)


def test_a_shard_that_was_cut_anywhere_loses_what_is_missing_and_nothing_else(tmp_path):
    path = _shard(
        tmp_path / "s.tar",
        *(
            (f"{index}.{ending}", content)
            for index in range(3)
            for ending, content in (("png", _png(index)), ("txt", b"x"))
        ),
    )
    whole = path.read_bytes()
    for end in (5 * 1024 + 500, 5 * 1024 + 512, 5 * 1024 + 700, 5 * 1024 + 1024, 6 * 1024):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"s\.tar: the file ends too early, at \d; copy it again"):
            _open(tmp_path, "webdataset")
        source = _open(tmp_path, "webdataset", on_error="skip")
        assert set(_shown(source)) >= {0, 1} and "ends too early" in source.about.left_out[-1]
    for content, says in ((whole[:300], "not a tar file"), (b"", "not a tar file"), (bytes(10240), "hold no samples")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=says):
            _open(tmp_path, "webdataset")
    path.unlink()
    (tmp_path / "s.tar.gz").touch()
    with pytest.raises(UserError, match=r"holds no \.tar files; unpack s\.tar\.gz and the like"):
        _open(tmp_path, "webdataset")
    with pytest.raises(UserError, match="is not a folder; give the one that holds"):
        _open(tmp_path / "none", "webdataset")


@pytest.mark.parametrize("size", [b"-0000000001\0", b"77777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"], ids=["file", "pax", "long name"])
def test_a_shard_whose_headers_lie_ends_before_them(tmp_path, kind, size):
    path = _shard(tmp_path / "s.tar", *((f"{index}.png", _png(index)) for index in range(3)))
    content = bytearray(path.read_bytes())
    header = content[2048:2560]  # of the last picture
    header[124:136], header[156:157], header[148:156] = size, kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[2048:2560] = header
    path.write_bytes(content)
    source = open_dataset("webdataset", str(tmp_path), on_error="skip")
    assert len(source) == 2 and "s.tar: the file ends too early, at 1; copy it again" in source.about.left_out[-1]


@pytest.mark.parametrize("label", [b"", b"-1", b"cat", b"9" * 30])
def test_a_class_that_is_no_number_is_named_and_one_that_is_missing_refused(tmp_path, label):
    _shard(tmp_path / "s.tar", ("a.png", _png(0)), ("a.cls", b"0"), ("b.png", _png(1)), ("b.cls", label))
    with pytest.raises(
        UserError, match=r"s\.tar, b: .* in \.cls, where the number of a class should be; 1 of 2 are good"
    ):
        open_dataset("webdataset", str(tmp_path))
    _shard(tmp_path / "s.tar", ("a.png", _png(0)), ("a.cls", b"0"), ("b.png", _png(1)))
    with pytest.raises(UserError, match=r"some samples have a class \(\.cls\), and b has none"):
        open_dataset("webdataset", str(tmp_path))


class Told(tfds.core.GeneratorBasedBuilder):
    """Three pictures: one with two captions, one with one, one with none; `text` in one config, dicts in the other."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("one", "many", "dicts")]  # noqa: RUF012
    url_infos = None

    def _info(self):
        text = tfds.features.Text()
        kinds = {
            "one": text,
            "many": tfds.features.Sequence(text),
            "dicts": tfds.features.Sequence({"id": np.int64, "text": text}),
        }
        field = "text" if self.builder_config.name == "one" else "captions"
        features = {"image": tfds.features.Image(shape=(4, 4, 3)), field: kinds[self.builder_config.name]}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, texts in enumerate((["a cät", "again"], ["b"], [])):
            image = Image.fromarray(PIXELS[index])
            if self.builder_config.name == "one":
                yield index, {"image": image, "text": " ".join(texts)}
            else:
                said = texts if self.builder_config.name == "many" else [{"id": 1, "text": text} for text in texts]
                yield index, {"image": image, "captions": said}


@pytest.mark.parametrize("name", ["one", "many", "dicts"])
def test_a_tfds_data_set_with_captions(tmp_path, name):
    Told(data_dir=tmp_path, config=name, file_format="array_record").download_and_prepare()
    source = _open(tmp_path, f"told/{name}", on_error="skip")
    assert _shown(source) == {0: ("a cät again",) if name == "one" else ("a cät", "again"), 1: ("b",)}
    assert "no caption" in source.about.left_out[0]
    assert len(open_dataset(f"told/{name}", str(tmp_path))) == 3


def test_made_up_shapes_are_what_their_captions_say(tmp_path):
    make_shapes(tmp_path / "shapes", 120, side=16)
    pairs = {}
    for split in ("train", "heldout"):
        source = _open(tmp_path / "shapes", split=split)
        pairs[split] = [tuple(texts[0].split()[1:]) for texts in source.captions]
        assert read_shapes(source.gather(np.arange(len(source)))["image"]) == pairs[split]
    assert set(pairs["heldout"]) == set(HELD_OUT) and len(set(pairs["train"])) == 20
    assert not set(pairs["heldout"]) & set(pairs["train"])
    assert read_shapes(np.full((1, 16, 16, 3), 250, np.uint8)) == [("", "")]
    with pytest.raises(UserError, match=r"folders train, val, .* hold a metadata"):
        _open(tmp_path / "shapes", split="val")
