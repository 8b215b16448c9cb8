"""WebDataset shards on this machine: tar files of samples, read at random by an index of their members."""

import io
import json
import re
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.data.captions import CAPTION_FIELDS, MAX_TEXT_BYTES, Captions, captions_of, captions_of_lines
from jaxdiff.data.decoding import WHITE, Colour, CorruptImageError, Size, decode_image, open_image, shape_of
from jaxdiff.errors import UserError
from jaxdiff.storage import expanded

PICTURES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif")
MAX_CLASSES = 10**6


class Part(NamedTuple):
    """A member of a shard."""

    offset: int
    size: int


class Sample(NamedTuple):
    """The members of one name.

    Attributes:
      shard: The number of its tar file.
      key: The name, up to the first dot of its last part.
      parts: By ending, in lower case.
      error: Why it cannot be used, if so.
    """

    shard: int
    key: str
    parts: dict[str, Part]
    error: str = ""


class WebdatasetRecords:
    """The samples of tar shards in the order that they have there (https://github.com/webdataset/webdataset).

    A sample is what has one name up to the first dot: a picture, and, as they are there, `.txt` (a caption a line),
    `.json` (captions in `text` or `caption`, a text or a list of texts) and `.cls` (the number of its class).

    Args:
      path: A folder of .tar files.
      split: S is the files S.tar, S-*.tar and S_*.tar, and the folder S; of several, joined by +, all; train is all
        files where none has a name of this kind.
      captioned: Read the captions, too.
    """

    shape = (None, None, None)
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, path: str, split: str, captioned: bool = False):
        folder = Path(expanded(path))
        if not path or not folder.is_dir():
            raise UserError(f"data.path: {path or '(empty)'} is not a folder; give the one that holds the .tar files")
        self._shards = _shards(folder, split)
        self._samples: list[Sample] = []
        self.captions: list[Captions] = []
        self._labels: list[int] = []
        keys: set[str] = set()
        for number, shard in enumerate(self._shards):
            with open(shard, "rb") as file:
                for sample in _samples(number, shard, file):
                    label, texts = 0, ()
                    try:
                        if sample.error or sample.key in keys:
                            raise ValueError(sample.error or "a sample of this name came before")
                        if "cls" in sample.parts:
                            label = _label(_text(file, sample.parts["cls"]))
                        texts = _captions(file, sample.parts) if captioned else ()
                    except ValueError as error:
                        sample = sample._replace(error=str(error))
                    keys.add(sample.key)
                    self._samples.append(sample)
                    self._labels.append(label)
                    self.captions.append(texts)
        labelled = [sample for sample in self._samples if "cls" in sample.parts]
        if not self._samples:
            raise UserError(f"data.path: {', '.join(shard.name for shard in self._shards)} of {folder} hold no samples")
        if labelled and len(labelled) < sum(not sample.error for sample in self._samples):
            none = next(sample.key for sample in self._samples if "cls" not in sample.parts)
            raise UserError(f"data.path: {folder}: some samples have a class (.cls), and {none} has none")
        self.num_classes = max(self._labels) + 1 if labelled else 0

    @property
    def identity(self) -> str:
        """Name and size of every picture."""
        pictures = (next((part.size for part in _picture(sample.parts)), 0) for sample in self._samples)
        return "\n".join(f"{sample.key} {size}" for sample, size in zip(self._samples, pictures, strict=True))

    def leave_out(self, corrupt: Collection[int]) -> None:
        """Drops records for good."""
        kept = [index for index in range(len(self)) if index not in corrupt]
        for name in ("_samples", "_labels", "captions"):
            setattr(self, name, [getattr(self, name)[index] for index in kept])

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, index: int) -> str:
        """Shard and sample."""
        sample = self._samples[index]
        return f"{self._shards[sample.shard]}, {sample.key}" if sample.key else str(self._shards[sample.shard])

    def facts(self, index: int) -> dict[str, Any]:
        """What the sample's .json says, {} where it has none."""
        sample = self._samples[index]
        if "json" not in sample.parts:
            return {}
        with open(self._shards[sample.shard], "rb") as file:
            return json.loads(_text(file, sample.parts["json"]))

    def measure(self, index: int) -> tuple[int, int, int]:
        """Height, width and channels from the picture's header."""
        return shape_of(open_image(self._file(index), self.name(index)))

    def read(
        self, index: int, channels: int, resize: Size | None, background: Colour = WHITE
    ) -> tuple[np.ndarray, int]:
        """Pixels and label."""
        image = open_image(self._file(index), self.name(index))
        return decode_image(image, self.name(index), channels, resize, background), self._labels[index]

    def _file(self, index: int) -> io.BytesIO:
        sample = self._samples[index]
        if sample.error:
            raise CorruptImageError(f"{self.name(index)}: {sample.error}")
        with open(self._shards[sample.shard], "rb") as file:
            return io.BytesIO(_content(file, next(_picture(sample.parts))))


def _shards(folder: Path, split: str) -> list[Path]:
    """The tar files of a split."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.tar") if not path.name.startswith("."))
    if not files:
        packed = next((path.name for path in folder.glob("*.t*gz")), "")
        but = f"; unpack {packed} and the like to .tar, which can be read at random" if packed else ""
        raise UserError(f"data.path: {folder} holds no .tar files{but}")

    def of(name: str) -> list[Path]:
        return [file for file in files if re.fullmatch(rf"{re.escape(name)}([-_].*)?(\.tar)?", file.parts[0])]

    chosen = [file for name in split.split("+") for file in of(name)]
    if missing := [name for name in split.split("+") if not of(name)]:
        if split != "train":
            known = ", ".join(str(file) for file in files[:10])
            raise UserError(f"data.split: {folder} has no shards of {missing[0]}; it has {known}")
        chosen = files
    return [folder / file for file in dict.fromkeys(chosen)]


def _samples(number: int, shard: Path, file: io.BufferedReader) -> Iterator[Sample]:
    """The samples of a shard; one without a name says that the file ends too early."""
    key, parts, end = "", {}, file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        archive = tarfile.open(fileobj=file, mode="r:", errors="surrogateescape")
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # it would keep all
            folder, _, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            if not member.isfile() or not stem:
                continue
            if not 0 <= member.size <= end - member.offset_data:
                raise tarfile.ReadError("a member longer than the file")
            name = f"{folder.removeprefix('./')}/{stem}".removeprefix("/")
            if name != key:
                yield from _whole(number, key, parts)
                key, parts = name, {}
            parts.setdefault(ending.lower(), Part(member.offset_data, member.size))
        is_whole = _content(file, Part(archive.offset, tarfile.BLOCKSIZE)) == bytes(tarfile.BLOCKSIZE)  # its end mark
    except (tarfile.TarError, ValueError, OverflowError) as error:  # a damaged header may say anything
        if not (key or parts):
            raise UserError(f"{shard}: not a tar file, or a compressed one ({error})") from error
        is_whole = False
    yield from _whole(number, key, parts)
    if not is_whole:
        yield Sample(number, "", {}, f"the file ends too early, at {key}; copy it again")


def _whole(number: int, key: str, parts: dict[str, Part]) -> Iterator[Sample]:
    if parts:
        yield Sample(number, key, parts, "" if any(_picture(parts)) else "no picture among its members")


def _picture(parts: dict[str, Part]) -> Iterator[Part]:
    return (part for ending, part in parts.items() if ending.rpartition(".")[2] in PICTURES)


def _content(file: Any, part: Part) -> bytes:
    file.seek(part.offset)
    return file.read(part.size)


def _text(file: Any, part: Part) -> bytes:
    """A member that is no picture. Raises ValueError if it has more than MAX_TEXT_BYTES."""
    if part.size > MAX_TEXT_BYTES:
        raise ValueError(f"a text of more than {MAX_TEXT_BYTES} bytes")
    return _content(file, part)


def _label(content: bytes) -> int:
    if not content.strip().isdigit() or len(content) > 20 or int(content) >= MAX_CLASSES:
        raise ValueError(f"{content[:20]!r} in .cls, where the number of a class should be")
    return int(content)


def _captions(file: Any, parts: dict[str, Part]) -> Captions:
    """Of .txt, or else of .json."""
    if "txt" in parts:
        return captions_of_lines(_text(file, parts["txt"]))
    if "json" not in parts:
        return ()
    try:
        facts = json.loads(_text(file, parts["json"]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f".json: {error}") from None
    if not isinstance(facts, dict):
        raise ValueError(".json is not an object of fields")
    return captions_of(next((facts[name] for name in CAPTION_FIELDS if name in facts), None))
