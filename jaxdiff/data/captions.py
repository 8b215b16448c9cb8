"""Captions of pictures in files: metadata.jsonl, metadata.csv, a text file beside each picture."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxdiff.errors import UserError

Captions = tuple[str, ...]
"""The texts of one record."""
CAPTION_FIELDS = ("text", "texts", "caption", "captions")
"""Where captions are in a line of metadata, a JSON member of a shard, or the features of a TFDS data set: the first."""
METADATA = ("metadata.jsonl", "metadata.csv")
MAX_TEXT_BYTES = 2**20  # of one picture's captions
_SURROGATE = re.compile("[\ud800-\udfff]")  # what a byte that is not UTF-8 was read as


class FolderCaptions(NamedTuple):
    """What the caption files of a folder say, by the picture's path in it.

    Attributes:
      texts: The captions.
      errors: Why a picture's captions cannot be read; lines that name no picture are in it by file and line.
      files: Where they were read.
    """

    texts: dict[str, Captions]
    errors: dict[str, str]
    files: set[Path]


def captions_of(value: Any) -> Captions:
    """A text or a list of texts, white space as single spaces, without the empty ones.

    Raises:
      ValueError: something else, or not UTF-8 where it was read.

    >>> captions_of(["a  red\\n house", " "])
    ('a red house',)
    """
    texts = [] if value is None else value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{str(text)[:40]} where a caption should be, a text or a list of texts")
        if _SURROGATE.search(text):
            raise ValueError("a caption that is not UTF-8")
    return tuple(filter(None, (" ".join(text.split()) for text in texts)))


def captions_of_lines(content: bytes) -> Captions:
    """The lines of a text file, a caption each.

    Raises:
      ValueError: it is not UTF-8, or has more than MAX_TEXT_BYTES.

    >>> captions_of_lines(b"\\xef\\xbb\\xbfa cat\\r\\n\\r\\na black cat\\r\\n")
    ('a cat', 'a black cat')
    """
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"captions of more than {MAX_TEXT_BYTES} bytes")
    return captions_of(re.split(r"\r\n|\r|\n", content.decode("utf-8-sig", "surrogateescape")))


def folder_captions(folder: Path, pictures: list[Path], others: list[Path]) -> FolderCaptions:
    """The captions of a folder's pictures: of its metadata files where it has any, else of a .txt beside each.

    Args:
      folder: The folder.
      pictures: The pictures in it, relative to it.
      others: The other files in it.

    Raises:
      UserError: a folder has both kinds of metadata, or metadata without a field file_name.
    """
    captions = FolderCaptions({}, {}, {path for path in others if path.name in METADATA})
    if len({path.parent for path in captions.files}) < len(captions.files):
        raise UserError(f"data.path: {folder} holds both {' and '.join(METADATA)}; remove one of them")
    for path in sorted(captions.files):
        _read_metadata(folder, path, captions)
    if not captions.files:
        beside = set(others)
        for picture in pictures:
            if (path := picture.with_suffix(".txt")) in beside:
                captions.files.add(path)
                try:
                    with open(folder / path, "rb") as file:
                        captions.texts[picture.as_posix()] = captions_of_lines(file.read(MAX_TEXT_BYTES + 1))
                except ValueError as error:
                    captions.errors[picture.as_posix()] = f"{path.name}: {error}"
    return captions


def _read_metadata(folder: Path, path: Path, captions: FolderCaptions) -> None:
    """Adds what a metadata file says."""
    lines: dict[str, int] = {}
    for number, line in _lines(folder / path):
        place = f"{path} line {number}"
        name = line.get("file_name") if isinstance(line, dict) else None
        if not isinstance(name, str) or not name or "\0" in name:
            captions.errors[place] = str(line) if isinstance(line, ValueError) else "no file_name"
            continue
        name = os.path.normpath(path.parent.joinpath(name))
        if os.path.isabs(name) or name.split("/")[0] == "..":
            captions.errors[place] = f"{name} is not in the folder"
        elif name in lines:
            both = f"lines {lines[name]} and {number}"
            captions.errors[name] = f"{path} names it twice, in {both}; give its captions as a list in one"
        else:
            lines[name] = number
            try:
                captions.texts[name] = captions_of(next((line[key] for key in CAPTION_FIELDS if key in line), None))
            except ValueError as error:
                captions.errors[name] = f"{place}: {error}"


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, content) of each line: a dict, something else that is JSON, or the ValueError of what is not."""
    content = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(content, newline=""), strict=True)
        try:
            if "file_name" not in (rows.fieldnames or ()):
                raise UserError(f"{path}: no column file_name in its first line, {str(rows.fieldnames)[:80]}")
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            yield rows.line_num + 1, ValueError(f"not CSV from here on ({error})")
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, ValueError(f"not JSON ({error})")
