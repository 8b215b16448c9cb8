"""A data set ready for training: checked, decoded into memory where it fits, with a fingerprint."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from jaxdiff.data.captions import Captions
from jaxdiff.data.decoding import Colour, CorruptImageError, Size, colour
from jaxdiff.data.folder import FolderRecords
from jaxdiff.data.idx import IdxRecords
from jaxdiff.data.records import Numbering, Records, check_class_names
from jaxdiff.data.tfds import open_digits, open_tfds
from jaxdiff.data.webdataset import WebdatasetRecords
from jaxdiff.errors import UserError
from jaxdiff.family import Family

MEMORY_LIMIT = 2 * 2**30
"""Data sets of up to so many bytes of pixels are decoded once and held in memory (2 GiB)."""
SUBSTITUTE_LIMIT = 0.01
"""The share of records that `on_error="substitute"` may replace before it is the data set that is wrong."""
_REMEDY = "remove it, or set data.on_error=substitute"
_LISTED = 20  # bad records that an error names
_SAMPLED = 64  # records whose pixels the fingerprint of a data set too large for memory covers

OnError = Literal["stop", "substitute", "skip"]


class About(NamedTuple):
    """What a source was made of.

    Attributes:
        class_names: By number; () where they have none.
        left_out: The corrupt records that on_error="skip" left out, a line each.
        notes: What whoever trains with it should know.
    """

    class_names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


_NOTHING = About()

DATASETS = Family(
    "data set",
    {"digits": open_digits, "fashion_mnist": IdxRecords, "folder": FolderRecords, "webdataset": WebdatasetRecords},
)
"""By name; any other name is one of TFDS."""


def open_dataset(
    name: str,
    path: str | None = None,
    split: str = "train",
    resize: int | tuple[int, int] | None = None,
    on_error: OnError = "stop",
    background: str = "white",
    allow_empty: bool = False,
    numbering: Numbering = "natural",
    captioned: bool = False,
) -> "Source":
    """Opens a data set and checks what can be checked before training.

    Args:
        name: `digits` (scikit-learn's, prepared as a TFDS data set on first use), `fashion_mnist` (its four
            idx files), `folder` (images; sub-folders are classes), `webdataset` (tar shards), or the name of a
            data set that TFDS has prepared.
        path: Folder of the images or idx files, or TFDS's data_dir; empty for the default one (`folder` has
            none).
        split: `train` or `test`; what TFDS understands where TFDS reads.
        resize: None, or (height, width), or the side of a square: every image is scaled to cover it (bicubic,
            antialiased), then the centre. Grey and colour images become colour where both occur.
        on_error: What a corrupt image does: `stop` with the names of all that are found; `substitute` the next
            good record for it, the same one every time, for up to SUBSTITUTE_LIMIT of all; or `skip` it, as if it
            were not there. Where the images do not fit into memory, their headers alone are looked at now, and
            what turns out to be damaged later is substituted.
        background: The colour that transparent images are laid on, by name or as #rrggbb.
        allow_empty: Let a class folder hold no images.
        numbering: Of the class folders, see `Numbering`; names are also compared with TFDS's.
        captioned: Read the captions too, and take an image without one for a corrupt one.

    Returns:
        The source: in memory up to MEMORY_LIMIT, else one that decodes when asked.

    Raises:
        UserError: If the data set is unknown, missing, empty, mixed, or corrupt beyond what on_error allows.
    """
    path, laid_on = path or "", colour(background)
    given = {"allow_empty": allow_empty, "numbering": numbering, "captioned": captioned}
    own = DATASETS.members
    records: Records = (
        DATASETS.build(name, {}, path, split, **given) if name in own else open_tfds(name, path, split, own, captioned)
    )
    if isinstance(numbering, tuple) and records.class_names not in ((), numbering):
        strange, missing = set(records.class_names) - set(numbering), set(numbering) - set(records.class_names)
        check_class_names(name, sorted(strange), sorted(missing))
    resize = (resize, resize) if isinstance(resize, int) else resize
    if isinstance(records, IdxRecords) and resize is None and not captioned:
        return MemorySource(records.images, records.labels, records.num_classes, set())
    shape, errors = _survey(records, resize, on_error)
    captions: Sequence[Captions] = getattr(records, "captions", ()) if captioned else ()
    source = RecordSource(records, shape, resize, on_error, laid_on, tuple(captions))
    if captioned and not any(captions) and not (captions and errors):
        raise UserError(f"data.name: {name} has no captions, and diffusion.conditioner needs them")
    if captioned:
        without = (index for index, texts in enumerate(captions) if not texts and index not in errors)
        errors |= {index: f"{records.name(index)}: no caption" for index in without}
    if len(records) * math.prod(shape) <= MEMORY_LIMIT:
        return source.load(errors)
    source.settle(errors)
    return source


class MemorySource:
    """A data set held decoded in memory.

    Its fingerprint covers every pixel, label and caption, the shape and the number of classes.

    Attributes:
        shape: (h, w, c) of every image.
        num_classes: 0 if the records have no classes; every label is 0 then.
        substituted: The records found corrupt so far, in whose place the next good one stands.
        about: What it was made of.
        captions: A tuple of texts a record; () where none were asked for.
    """

    def __init__(
        self,
        images: UInt8[np.ndarray, "n h w c"],
        labels: Int32[np.ndarray, " n"],
        num_classes: int,
        substituted: set[int],
        about: About = _NOTHING,
        captions: tuple[Captions, ...] = (),
    ):
        self._images, self._labels, self.about, self.captions = images, labels, about, captions
        self.shape = images.shape[1:]
        self.num_classes = num_classes
        self.substituted = substituted

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal."""
        identity = f"{self._images.shape} {self.num_classes}{_identity(self.captions)}"
        return _digest(identity, [self._labels, self._images])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One record; the arrays are views."""
        return {"image": self._images[index], "label": self._labels[index], "record": np.asarray(index, np.int32)}

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Copies of the records of `indices`, stacked."""
        return {"image": self._images[indices], "label": self._labels[indices], "record": indices.astype(np.int32)}


class RecordSource:
    """A data set too large for memory: records are decoded when asked for.

    Its fingerprint covers what the records are (path and size of every file; name, version, split and size of a
    TFDS data set), the shape, the number of classes, all captions, and the pixels of 64 records spread evenly. An
    image that changes in place and keeps its size may go unnoticed, where to read them all would take hours.
    Attributes as of `MemorySource`.
    """

    def __init__(
        self,
        records: Records,
        shape: tuple[int, int, int],
        resize: Size | None,
        on_error: OnError,
        background: Colour,
        captions: tuple[Captions, ...] = (),
    ):
        self._records, self._resize, self._background = records, resize, background
        self._on_error: OnError = on_error
        self.shape = shape
        self.num_classes = records.num_classes
        self.substituted: set[int] = set()
        self.about = About(records.class_names, (), tuple(records.notes))
        self.captions = captions

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal."""
        sample = np.linspace(0, len(self) - 1, min(_SAMPLED, len(self)), dtype=np.int64)
        identity = f"{len(self)} {self.shape} {self.num_classes} {self._records.identity}{_identity(self.captions)}"
        return _digest(identity, [self[index]["image"] for index in sample.tolist()])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One record, or the next good one in the place of a corrupt one; `record` is the index of what it is."""
        while True:
            if index not in self.substituted:
                try:
                    image, label = self._read(index)
                    return {"image": image, "label": np.asarray(label, np.int32), "record": np.asarray(index, np.int32)}
                except CorruptImageError as error:
                    if self._on_error == "stop":
                        raise CorruptImageError(f"{error}; {_REMEDY}") from error
                    self.note_corrupt([index])
            index = (index + 1) % len(self)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The records of `indices`, decoded now and stacked."""
        records = [self[index] for index in indices.tolist()]
        return {name: np.stack([record[name] for record in records]) for name in records[0]}

    def note_corrupt(self, indices: Iterable[int]) -> None:
        """Counts records found corrupt, here or by a worker process. Raises UserError if they are too many."""
        self.substituted.update(indices)
        if len(self.substituted) > SUBSTITUTE_LIMIT * len(self):
            raise UserError(_too_many(len(self.substituted), len(self)))

    def settle(self, errors: dict[int, str]) -> None:
        """Does with the records that were found corrupt what on_error says. Raises UserError where that is to stop."""
        _judge(errors, len(self), self._on_error)
        if self._on_error == "skip":
            self._records.leave_out(errors.keys())
            self.captions = tuple(texts for index, texts in enumerate(self.captions) if index not in errors)
            self.about = self.about._replace(
                left_out=(*self.about.left_out, *(errors[index] for index in sorted(errors)))
            )
        else:
            self.note_corrupt(errors)

    def load(self, errors: dict[int, str]) -> MemorySource:
        """Decodes every record but those known to be corrupt; all of these are then settled."""
        images = np.empty((len(self), *self.shape), np.uint8)
        labels = np.zeros(len(self), np.int32)
        errors = dict(errors)
        for index in (index for index in range(len(self)) if index not in errors):
            try:
                images[index], labels[index] = self._read(index)
            except CorruptImageError as error:
                errors[index] = str(error)
        self.settle(errors)
        if self.about.left_out:
            images, labels = (np.delete(array, list(errors), axis=0) for array in (images, labels))
        captions = list(self.captions)
        for index in self.substituted:
            record = self[index]
            images[index], labels[index] = record["image"], record["label"]
            if captions:
                captions[index] = captions[record["record"]]
        return MemorySource(images, labels, self.num_classes, self.substituted, self.about, tuple(captions))

    def read_all(self) -> None:
        """Settles the records whose pixels cannot be decoded, too; takes the time of reading all."""
        errors = {}
        for index in range(len(self)):
            try:
                self._read(index)
            except CorruptImageError as error:
                errors[index] = str(error)
        self.settle(errors)

    def _read(self, index: int) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        image, label = self._records.read(index, self.shape[-1], self._resize, self._background)
        if image.shape != self.shape:
            raise CorruptImageError(f"{self._records.name(index)}: shape {image.shape} where all have {self.shape}")
        return image, label


Source = MemorySource | RecordSource


def _survey(records: Records, resize: Size | None, on_error: OnError) -> tuple[tuple[int, int, int], dict[int, str]]:
    """The shape all images will have, and the records that are no images, from headers alone."""
    height, width, channels = (*(resize or records.shape[:2]), records.shape[2])
    if height and width and channels:
        return (height, width, channels), {}
    shapes: dict[tuple[int, int, int], str] = {}
    errors = {}
    for index in range(len(records)):
        try:
            shapes.setdefault(records.measure(index), records.name(index))
        except CorruptImageError as error:
            errors[index] = str(error)
    if len(shapes) != 1:
        _judge(errors, len(records), on_error)
    if resize is not None:
        return (*resize, max(channels for _, _, channels in shapes)), errors
    if len(shapes) > 1:
        (one, one_name), (other, other_name) = list(shapes.items())[:2]
        raise UserError(
            f"images of {len(shapes)} sizes or channel counts: {one_name} is {_words(one)}, {other_name} is "
            f"{_words(other)}; set data.resize to the side of the squares to train on, or to height and width"
        )
    return next(iter(shapes)), errors


def _judge(errors: dict[int, str], total: int, on_error: OnError) -> None:
    """Raises UserError if what is corrupt is more than on_error allows; names the first of them."""
    lines = [errors[index] for index in sorted(errors)]
    listed = "; ".join(lines[:_LISTED]) + (f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else "")
    if errors and (on_error == "stop" or len(errors) == total):
        raise UserError(f"{listed}; {total - len(errors)} of {total} are good; {_REMEDY} or skip")
    if on_error == "substitute" and len(errors) > SUBSTITUTE_LIMIT * total:
        raise UserError(f"{_too_many(len(errors), total)}; they are: {listed}")


def _too_many(count: int, total: int) -> str:
    allowed = f"{SUBSTITUTE_LIMIT:.0%}"
    return f"{count} of {total} records are corrupt, and data.on_error=substitute replaces {allowed} at most"


def _identity(captions: tuple[Captions, ...]) -> str:
    return f" {json.dumps(captions)}" if captions else ""


def _words(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]} x {shape[0]} {'grey' if shape[2] == 1 else 'colour'}"


def _digest(identity: str, arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256(identity.encode(errors="surrogateescape"))
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
