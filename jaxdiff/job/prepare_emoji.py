"""Emoji with captions: six open styles from npm packages, drawn at one size, as WebDataset shards with held-out splits.

A caption is the label with the style (most often), the label alone, or some tags with the style. Held out are, each as
a split of its own, pictures whose parts are all known from training: `heldout_style`, an emoji in one of its styles;
`heldout_colour`, a colour of an object, or the woman or the man of an occupation, in all styles; `heldout_tone`, a skin
tone of an emoji, in all styles. What is held out is a function of names alone; a held-out picture that is, to the
pixel, one of training under another caption is left out. Of pictures with a skin tone, which are many and alike, a
quarter is in `train` and the rest in `tones`.
"""

import hashlib
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import tarfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from rich.console import Console
from rich.progress import track

from jaxdiff.errors import RunError, UserError, command

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "blob": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "labels": "emojibase-data@17.0.0",
}
"""By style; the labels are of all. Of `3d` those that `fluent` has, too: others are not Microsoft's."""
HELD_OUT = frozenset(
    [
        *("green heart", "purple heart", "blue square", "orange square", "yellow circle", "brown circle", "blue book"),
        *("woman astronaut", "man firefighter", "woman pilot", "man cook", "woman farmer", "man teacher"),
        *("woman judge", "man singer", "woman mechanic", "man artist", "woman scientist"),
    ]
)
"""Labels of `heldout_colour`: other colours of the object, and the other sex in the occupation, are in training."""
STYLE_PAIRS = 400
TONE_SHARE = 0.04  # of the pairs of an emoji and a skin tone
TONES_TRAINED = 0.25
_COLOURED = re.compile(r"(red|orange|yellow|green|blue|purple|brown|black|white|pink|grey) (heart|circle|square|book)")
_FLAGS, _COMPONENTS = 9, 2  # groups of emojibase
_LICENCES = {
    "labels": "emojibase-data, MIT, Copyright (c) 2017-2019 Miles Johnson: labels and tags",
    "3d": "Fluent Emoji, MIT, Copyright (c) Microsoft Corporation, https://github.com/microsoft/fluentui-emoji, "
    "as WebP files by LobeHub, MIT, Copyright (c) 2023 LobeHub, https://github.com/lobehub/fluent-emoji",
}
_MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


class Emoji(NamedTuple):
    """One emoji, in no style: its label and tags, and the skin tones (1 to 5, light to dark) that it has."""

    label: str
    tags: tuple[str, ...]
    base: str  # its code without tones
    tones: tuple[int, ...]
    group: int


def prepare_emoji(out: Path, size: int, packages: Path | None) -> str:
    """Writes the set to `out`, whole or not at all.

    Args:
      out: A folder that is not there yet, or empty.
      size: Of the pictures, in pixels a side.
      packages: Where the tarballs of PACKAGES lie; None fetches them by npm.

    Returns:
      The closing line, with the digest of all pixels and captions.

    Raises:
      UserError: a package, npm or resvg is missing, or `out` is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name a folder that is not, or empty")
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        raise UserError("prepare emoji draws with the package resvg-py: pip install jaxdiff[emoji]") from None
    half = out.parent / f".{out.name}.tmp"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        tarballs = _tarballs(packages or _packed(half / "packages"))
        emoji = read_labels(_json(tarballs["labels"], "en/data"))
        drawings = {style: _drawings(style, tarballs, emoji, size) for style in PACKAGES if style != "labels"}
        splits = split(emoji, {style: set(codes) for style, codes in drawings.items()})
        rendered = _rendered(drawings, splits)
        counts, twins, digest = _write(half, rendered, splits, emoji)
        (half / "LICENCES.md").write_text(_licences(tarballs, size))
        apache = importlib.metadata.distribution("jaxdiff").read_text("licenses/LICENSE")  # our own is the same text
        (half / "Apache-2.0.txt").write_text(apache or "https://www.apache.org/licenses/LICENSE-2.0\n")
        shutil.rmtree(half / "packages", ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        half.replace(out)
    finally:  # gone where it became `out`
        shutil.rmtree(half, ignore_errors=True)
    listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return (
        f"{out}: {sum(counts.values())} pictures of {size}x{size} ({listed}; {twins} held-out ones that equal one of "
        f"training left out), digest {digest[:16]}; licences in LICENCES.md; next: {command('train')} --data.name "
        f"webdataset --data.path {out}"
    )


def _packed(folder: Path) -> Path:
    """A folder with the tarballs, fetched by npm."""
    line = f"npm pack {' '.join(PACKAGES.values())}"
    if shutil.which("npm") is None:
        raise UserError(f"npm is not installed; where it is, run `{line}`, and give the folder as --packages")
    folder.mkdir()
    result = subprocess.run([*line.split(), "--silent"], cwd=folder, capture_output=True, text=True)
    if result.returncode:
        said = result.stderr.strip().splitlines() or ["no reason given"]
        raise RunError(f"npm pack failed: {said[0]}; run `{line}` elsewhere, and give the folder as --packages")
    return folder


def _tarballs(folder: Path) -> dict[str, Path]:
    names = {style: re.sub(r"^@", "", name).replace("/", "-").replace("@", "-") for style, name in PACKAGES.items()}
    paths = {style: folder / f"{name}.tgz" for style, name in names.items()}
    missing = [PACKAGES[style] for style, path in paths.items() if not path.is_file()]
    if missing:
        raise UserError(f"--packages {folder}: not there; run in it: npm pack {' '.join(missing)}")
    return paths


def _json(tarball: Path, name: str) -> Any:
    return json.loads(_member(tarball, f"package/{name}.json"))


def _member(tarball: Path, name: str) -> bytes:
    try:
        with tarfile.open(tarball) as archive:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()
    except (tarfile.TarError, KeyError, AssertionError, EOFError, zlib.error) as error:
        raise UserError(f"{tarball}: no {name} in it, or damaged ({error}); fetch it again") from error


def _code(hexcode: str) -> str:
    """Code points in lower case, without the selector of the coloured form.

    >>> _code("0023-FE0F-20E3")
    '23-20e3'
    """
    return "-".join(f"{int(point, 16):x}" for point in hexcode.split("-") if point.lower() != "fe0f")


def read_labels(data: Iterable[Mapping[str, Any]]) -> dict[str, Emoji]:
    """{code: emoji} of emojibase's data, each skin tone an emoji of its own."""
    emoji = {}
    for base in data:
        if base.get("group", _COMPONENTS) == _COMPONENTS:
            continue
        for one in (base, *base.get("skins", ())):
            tone = one.get("tone", [])
            tones = tuple(tone if isinstance(tone, list) else [tone])
            rest = tuple(base.get("tags", ())), _code(base["hexcode"]), tones, base["group"]
            emoji[_code(one["hexcode"])] = Emoji(one["label"], *rest)
    return emoji


def captions(emoji: Emoji, style: str) -> list[str]:
    """The texts of one picture; those given more than once are drawn so much more often.

    >>> captions(Emoji("green heart", ("love", "st. patrick"), "1f49a", (), 0), "noto")[-3:]
    ['green heart, noto', 'green heart', 'love, st. patrick, noto']
    """
    named = f"{emoji.label}, {style}"
    return [*[named] * 5, emoji.label, ", ".join((*emoji.tags[:3], style)) if emoji.tags else named]


def split(emoji: Mapping[str, Emoji], styles: Mapping[str, set[str]]) -> dict[tuple[str, str], str]:
    """{(style, code): split} of all pictures; a function of names alone.

    Args:
      emoji: By code.
      styles: The codes that each style has.
    """
    known = Counter(code for codes in styles.values() for code in codes)
    held = {code for code, one in emoji.items() if emoji[one.base].label in HELD_OUT}
    toned = {one.base for one in emoji.values() if one.tones}  # with a tone it would be known in the style all the same
    plain = [code for code, one in emoji.items() if one.base not in toned and one.group != _FLAGS and known[code] > 2]
    chosen = sorted((code for code in plain if code not in held), key=lambda code: _rank("style", code))[:STYLE_PAIRS]
    in_style = {code: min((s for s in styles if code in styles[s]), key=lambda s: _rank(s, code)) for code in chosen}

    def of(style: str, code: str) -> str:
        one = emoji[code]
        if code in held:
            return "heldout_colour"
        if len(one.tones) == 1 and _rank("tone", code) < TONE_SHARE:
            return "heldout_tone"
        if in_style.get(code) == style:
            return "heldout_style"
        return "tones" if one.tones and _rank("quarter", style, code) >= TONES_TRAINED else "train"

    return {(style, code): of(style, code) for style, codes in styles.items() for code in sorted(codes)}


def _rank(*words: str) -> float:
    """A number in [0, 1) that a hash of the words decides."""
    return int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:6], "big") / 2**48


class _Drawing(NamedTuple):
    """A picture before it is one: a whole SVG document, or an encoded image."""

    svg: str
    encoded: bytes
    size: int

    def pixels(self) -> Image.Image:
        """On white, at `size`: what is larger is averaged down to it."""
        if self.svg:
            import resvg_py

            encoded = resvg_py.svg_to_bytes(svg_string=self.svg, background="#ffffff", skip_system_fonts=True)
            image = Image.open(io.BytesIO(bytes(encoded))).convert("RGB")
        else:
            image = Image.open(io.BytesIO(self.encoded)).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image if image.width == self.size else image.resize((self.size, self.size), Image.Resampling.BOX)


def _drawings(style: str, tarballs: Mapping[str, Path], emoji: Mapping[str, Emoji], size: int) -> dict[str, _Drawing]:
    """{code: drawing} of a style."""
    if style == "3d":
        genuine = {_code(code) for code in _json(tarballs["fluent"], "chars")}
        drawings = {}
        with tarfile.open(tarballs[style]) as archive:
            for member in archive:
                stem, _, ending = member.name.rpartition("/")[2].rpartition(".")
                code = _code(stem) if ending == "webp" else ""
                if code in emoji and code in genuine:
                    drawings[code] = _Drawing("", archive.extractfile(member).read(), size)  # type: ignore[union-attr]
        return drawings
    icons, chars = _json(tarballs[style], "icons"), _json(tarballs[style], "chars")
    codes = {_code(code): name for code, name in chars.items()}
    codes = codes or _by_name(icons, _json(tarballs["noto"], "chars"), emoji)
    return {code: _Drawing(_svg(icons, name, 2 * size), b"", size) for code, name in codes.items() if code in emoji}


def _by_name(icons: Mapping[str, Any], noto: Mapping[str, str], emoji: Mapping[str, Emoji]) -> dict[str, str]:
    """{code: icon} of a set without code points: an icon has the name of the label, of Noto's icon, or of Unicode."""

    def letters(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", name.lower()))

    codes: dict[str, str] = {}
    named = [(one.label, code) for code, one in emoji.items()] + [(name, _code(code)) for code, name in noto.items()]
    named += [(unicodedata.name(chr(int(code, 16)), ""), code) for code in emoji if "-" not in code]
    for name, code in named:
        if code in emoji:
            codes.setdefault(letters(name), code)
    icon_of: dict[str, str] = {}
    for name in (*icons["icons"], *icons.get("aliases", {})):
        if code := codes.get(letters(name)):
            icon_of.setdefault(code, name)
    return icon_of


def _svg(icons: Mapping[str, Any], name: str, side: int) -> str:
    """An icon of Iconify's JSON as a document, https://iconify.design/docs/types/iconify-json.html."""
    alias = icons.get("aliases", {}).get(name, {"parent": name})
    if unknown := alias.keys() - {"parent", "hFlip"}:
        raise UserError(f"{icons['prefix']}: {name} is an alias with {', '.join(unknown)}, which is not read")
    icon = icons["icons"][alias["parent"]]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    flip = f' transform="translate({width} 0) scale(-1 1)"' if alias.get("hFlip") else ""
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} width="{side}" height="{side}" viewBox="{box}"><g{flip}>{icon["body"]}</g></svg>'


def _rendered(drawings: Mapping[str, Mapping[str, _Drawing]], splits: Iterable[tuple[str, str]]) -> Iterator[Any]:
    """((style, code), digest of the pixels, PNG) of each picture, in an order that a hash decides."""
    order = sorted(splits, key=lambda each: _rank("order", *each))
    for style, code in track(order, "drawing", console=Console(stderr=True), transient=True):
        image, file = drawings[style][code].pixels(), io.BytesIO()
        image.save(file, "PNG", compress_level=6)
        yield (style, code), hashlib.sha256(image.tobytes()).digest(), file.getvalue()


def _write(
    folder: Path, rendered: Iterable[Any], splits: Mapping[tuple[str, str], str], emoji: Mapping[str, Emoji]
) -> tuple[Counter[str], int, str]:
    """Writes a shard a split; how many pictures each has, how many were left out, and the digest of all in them."""
    pictures = list(rendered)
    trained = {pixels for each, pixels, _ in pictures if not splits[each].startswith("heldout")}
    counts, twins, digest = Counter[str](), 0, hashlib.sha256()
    archives = {name: tarfile.open(folder / f"{name}.tar", "w") for name in sorted(set(splits.values()))}
    for (style, code), pixels, png in pictures:
        name, one = splits[style, code], emoji[code]
        if name.startswith("heldout") and pixels in trained:
            twins += 1
            continue
        facts: dict[str, Any] = {"text": captions(one, style), "label": one.label, "style": style, "emoji": code}
        facts |= {"tones": one.tones} if one.tones else {}
        if coloured := _COLOURED.fullmatch(one.label):
            facts |= {"colour": coloured[1], "object": coloured[2]}
        text = json.dumps(facts, ensure_ascii=False).encode()
        digest.update(b"%s %s %s %s\n" % (name.encode(), text, pixels.hex().encode(), code.encode()))
        for ending, content in (("png", png), ("json", text)):
            member = tarfile.TarInfo(f"{style}-{code}.{ending}")
            member.size = len(content)
            archives[name].addfile(member, io.BytesIO(content))
        counts[name] += 1
    for archive in archives.values():
        archive.close()
    return counts, twins, digest.hexdigest()


def _licences(tarballs: Mapping[str, Path], size: int) -> str:
    """Whose the pictures are, and on what terms."""
    lines = [f"# Licences\n\nRendered at {size}x{size} pixels on white, and so changed; by style:\n"]
    for style, package in PACKAGES.items():
        said = _LICENCES.get(style, "")
        if not said:
            about = _json(tarballs[style], "info")
            author, licence = about["author"], about["license"]
            said = f"{about['name']} by {author['name']}, {author['url']}, {licence['spdx']}, {licence['url']}"
        lines.append(f"- `{style}`: {said} (npm `{package}`)")
    lines.append("\nTwemoji: Copyright 2019 Twitter, Inc and other contributors, CC-BY-4.0")
    lines.append("(https://creativecommons.org/licenses/by/4.0/).")
    lines.append("Noto Emoji and Firefox OS Emoji: the Apache License 2.0, which is in Apache-2.0.txt.")
    lines.append("Fluent Emoji and emojibase: the MIT License, which reads:\n")
    return "\n".join([*lines, _MIT, ""])
