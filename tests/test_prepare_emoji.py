"""`prepare emoji` on packages of a few icons: who is matched, what is held out, and that it is the same every time."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxdiff.commands import main
from jaxdiff.data.sources import open_dataset
from jaxdiff.data.webdataset import WebdatasetRecords
from jaxdiff.job import prepare_emoji as job
from jaxdiff.job.prepare_emoji import Emoji, captions, split

TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
HEARTS = {"1F49A": "green heart", "1F499": "blue heart", "1F49B": "yellow heart"}
LABELS = [
    *({"label": label, "hexcode": code, "group": 0, "tags": ["143", "love"]} for code, label in HEARTS.items()),
    {
        "label": "waving hand",
        "hexcode": "1F44B",
        "group": 1,
        "skins": [
            {"label": f"waving hand: {i}", "hexcode": f"1F44B-{tone.upper()}", "tone": i + 1}
            for i, tone in enumerate(TONES)
        ],
    },
    {"label": "keycap: #", "hexcode": "0023-FE0F-20E3", "group": 8},
    {"label": "right arrow", "hexcode": "27A1-FE0F", "group": 8},
    {"label": "red hair", "hexcode": "1F9B0", "group": 2},
    {"label": "regional indicator A", "hexcode": "1F1E6"},
]


def _box(colour, drawn=8, **more):
    return {"body": f'<path fill="{colour}" d="M0 0h{drawn}v16H0z"/>', **more}


def _icons(prefix, **icons):
    return {"prefix": prefix, "width": 16, "height": 16, "icons": icons}


def _tarball(folder, style, files):
    name = job.PACKAGES[style].removeprefix("@").replace("/", "-").replace("@", "-")
    with tarfile.open(folder / f"{name}.tgz", "w:gz") as archive:
        for path, content in files.items():
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "packages"
    folder.mkdir()
    about = {"name": "A Set", "author": {"name": "Somebody", "url": "u"}, "license": {"spdx": "Apache-2.0", "url": "l"}}
    _tarball(folder, "labels", {"en/data.json": LABELS})
    noto = _icons("noto", g=_box("#0f0"), b=_box("#00f"), y=_box("#ff0"), k=_box("#888"), hand=_box("#fc0"))
    noto["icons"] |= {f"hand-{i}": _box(f"#{i}{i}{i}") for i in range(5)}
    chars = {"1f49a": "g", "1f499": "b", "1f49b": "y", "23-20e3": "k", "1f44b": "hand", "1f1e6": "k"}
    chars |= {f"1f44b-{tone}": f"hand-{i}" for i, tone in enumerate(TONES)}
    _tarball(folder, "noto", {"icons.json": noto, "chars.json": chars, "info.json": about})
    by_name = _icons("v1", **{"green-heart": _box("#0f0"), "y": _box("#ff0"), "hashsign": _box("#000")})
    _tarball(folder, "blob", {"icons.json": by_name, "chars.json": {}, "info.json": about})
    by_name = _icons("fx", blackrightwardsarrow=_box("#f80"), blueheart=_box("#00f", 16, width=32))
    _tarball(folder, "fxemoji", {"icons.json": by_name, "chars.json": {}, "info.json": about})
    twin = _icons("twemoji", **{"green-heart": _box("#f00"), "blue-heart": _box("#f00")})  # one picture, two captions
    codes = {"1f49a": "green-heart", "1f499": "blue-heart"}
    _tarball(folder, "twemoji", {"icons.json": twin, "chars.json": codes, "info.json": about})
    flat = _icons("fluent", y=_box("#0ff")) | {"aliases": {"mirrored": {"parent": "y", "hFlip": True}}}
    codes = {"1f49b": "y", "1f499": "mirrored"}
    _tarball(folder, "fluent", {"icons.json": flat, "chars.json": codes, "info.json": about})
    file = io.BytesIO()
    Image.new("RGBA", (256, 256), (255, 0, 0, 128)).save(file, "WEBP", lossless=True)
    _tarball(folder, "3d", {f"assets/{code}.webp": file.getvalue() for code in ("1f49b", "1f49a", "1f1e6")})
    return folder


def _prepare(packages, out, *more):
    return main(["prepare", "emoji", str(out), "--packages", str(packages), *more])


def test_the_set_is_whole_matched_and_the_same_twice(packages, tmp_path, capsys):
    lines = []
    for name in ("one", "two"):
        assert _prepare(packages, tmp_path / name) == 0
        lines.append(capsys.readouterr().out.replace(str(tmp_path / name), "OUT"))
        assert sorted(tmp_path.iterdir()) == sorted({packages, tmp_path / "one", tmp_path / name})
    assert lines[0] == lines[1] and "digest " in lines[0] and "1 held-out ones that equal one of training" in lines[0]
    pictures = {}
    for name in sorted(path.stem for path in (tmp_path / "one").glob("*.tar")):
        source = open_dataset("webdataset", str(tmp_path / "one"), name, captioned=True)
        records = WebdatasetRecords(str(tmp_path / "one"), name)
        for index in range(len(source)):
            facts, record = records.facts(index), source[index]
            assert source.captions[index] == tuple(facts["text"])
            pictures[facts["style"], facts["label"]] = name, record["image"], facts
    green, *others = [pictures["noto", label] for label in HEARTS.values()]
    assert green[0] == "heldout_colour" and {other[0] for other in others} <= {"train", "heldout_style"}
    assert (green[2]["colour"], green[2]["object"]) == ("green", "heart")
    assert green[1].shape == (32, 32, 3)
    assert (green[1][:, :16] == (0, 255, 0)).all() and (green[1][:, 16:] == 255).all()
    assert pictures["noto", "waving hand: 2"][2]["tones"] == [3]
    assert ("twemoji", "green heart") not in pictures and ("twemoji", "blue heart") in pictures  # the twin
    matched = {style: {label for s, label in pictures if s == style} for style in ("blob", "fxemoji", "3d", "fluent")}
    assert matched["blob"] == {"green heart", "yellow heart"}  # by its label, and by the name that Noto has for it
    assert matched["fxemoji"] == {"right arrow", "blue heart"}  # by Unicode's name, and by its label
    assert matched["3d"] == {"yellow heart"}  # those of Microsoft's own set alone
    assert (pictures["fluent", "blue heart"][1][:, 16:] == (0, 255, 255)).all()  # mirrored
    assert (pictures["fxemoji", "blue heart"][1][0] == 255).all()  # twice as wide as high: white above
    assert (np.abs(pictures["3d", "yellow heart"][1].astype(int) - (255, 127, 127)) <= 1).all()
    assert ("noto", "keycap: #") in pictures and not any(
        "regional" in label or "hair" in label for _, label in pictures
    )
    said = (tmp_path / "one" / "LICENCES.md").read_text()
    assert all(package in said for package in job.PACKAGES.values()) and "Microsoft Corporation" in said
    assert "Apache License" in (tmp_path / "one" / "Apache-2.0.txt").read_text()


def test_what_is_missing_or_in_the_way_is_one_line_and_leaves_nothing(packages, tmp_path, capsys, monkeypatch):
    def refused(*arguments):
        assert _prepare(*arguments) == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["packages"]
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "packages is there already; name a folder that is not" in refused(packages, packages)
    assert "must be one of 32, 64, 128, 256" in refused(packages, tmp_path / "out", "--size", "48")
    (packages / "emojibase-data-17.0.0.tgz").rename(packages / "x")
    assert "run in it: npm pack emojibase-data@17.0.0" in refused(packages, tmp_path / "out")
    whole = (packages / "x").read_bytes()
    for content in (whole[:-40], b"no tarball"):
        (packages / "emojibase-data-17.0.0.tgz").write_bytes(content)
        assert "emojibase-data-17.0.0.tgz: no package/en/data.json in it, or damaged" in refused(
            packages, tmp_path / "o"
        )
    monkeypatch.setenv("PATH", "")
    assert "npm is not installed; where it is, run `npm pack @iconify-json/noto@" in refused("", tmp_path / "out")
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    assert "pip install jaxdiff[emoji]" in refused(packages, tmp_path / "out")


def test_what_is_held_out_is_known_in_its_parts():
    emoji = {f"{i:x}": Emoji(f"thing {i}", (), f"{i:x}", (), 3) for i in range(2000)}
    emoji |= {f"p{i:x}": Emoji(f"person {i}", (), f"p{i:x}", (), 1) for i in range(300)}
    emoji |= {f"p{i:x}-{t}": Emoji(f"person {i}: {t}", (), f"p{i:x}", (t,), 1) for i in range(300) for t in range(1, 6)}
    emoji |= {"f1": Emoji("green heart", (), "f1", (), 0), "f2": Emoji("blue heart", (), "f2", (), 0)}
    styles = {style: set(emoji) for style in ("noto", "blob", "twemoji")}
    where = split(emoji, styles)
    by_split = {name: {each for each, found in where.items() if found == name} for name in set(where.values())}
    assert by_split["heldout_colour"] == {(style, "f1") for style in styles}
    assert len(by_split["heldout_style"]) == job.STYLE_PAIRS
    for style, code in by_split["heldout_style"]:  # the others are trained, and no tone gives it away
        assert not emoji[code].tones and not code.startswith("p")
        assert all(where[other, code] == "train" for other in styles if other != style)
    tones = {code for _, code in by_split["heldout_tone"]}
    assert len(by_split["heldout_tone"]) == 3 * len(tones) and 30 < len(tones) < 90  # 4 % of 1,500, in all styles
    known = {(style, emoji[code].base) for style, code in by_split["train"]}
    assert all((style, emoji[code].base) in known for style, code in by_split["heldout_tone"])
    toned = sum(bool(emoji[code].tones) for _, code in by_split["train"])
    assert abs(toned / (toned + len(by_split["tones"])) - 0.25) < 0.03
    fewer = split({code: emoji[code] for code in list(emoji)[:2]}, {"noto": set(list(emoji)[:2])})
    assert set(fewer.values()) == {"train"}  # known in no other style
    assert captions(emoji["f1"], "noto") == ["green heart, noto"] * 5 + ["green heart", "green heart, noto"]
