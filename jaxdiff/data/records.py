"""Where images come from: a folder, idx files, a prepared TFDS data set; each a random-access list of records.

Shards of tar files are in `jaxdiff.data.webdataset`, and the files that captions are read from in
`jaxdiff.data.captions`.
"""

import contextlib
import difflib
import gzip
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxdiff.data.captions import CAPTION_FIELDS, METADATA, Captions, captions_of, folder_captions
from jaxdiff.data.decoding import (
    WHITE,
    Colour,
    CorruptImageError,
    Size,
    decode_image,
    is_animated,
    open_image,
    shape_of,
)
from jaxdiff.errors import UserError
from jaxdiff.storage import expanded

FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"
MAX_IDX_BYTES = 2**31

_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"}
_PICTURES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
_PICTURES |= {".heic", ".heif", ".hif", ".jp2", ".jxl", ".pbm", ".pgm", ".ppm", ".psd", ".svg", ".tga", *_RAW}
"""Endings of pictures, also of those that are not read: such a file is meant, and named where it cannot be."""
_OTHERS = {
    ".txt",
    ".caption",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".xml",
    ".html",
    ".md",
    ".yaml",
    ".db",
    ".ini",
    ".log",
}
_OTHERS |= {".mp4", ".mov", ".avi", ".mkv", ".mp3", ".wav", ".zip", ".pdf", ".npy", ".npz", ".parquet", ".py", ".exe"}
"""Endings of what lies beside pictures, and is not even looked into."""
_SYSTEM = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
"""Folders that systems leave everywhere."""

Numbering = Literal["natural", "text"] | tuple[str, ...]
"""How class folders get their numbers: in natural order (9 before 10), as text (10 before 9), or as in these names."""

Shape = tuple[int | None, int | None, int | None]
"""(h, w, c) of all records; None where one has to look."""


@runtime_checkable
class Records(Protocol):
    """Images and labels by index, decoded when asked for; picklable, so that worker processes can hold them.

    Those with captions have one attribute more, `captions`: a tuple of texts a record, () for one without.
    """

    shape: Shape
    num_classes: int
    class_names: tuple[str, ...]
    """By number; () where they have none."""

    @property
    def identity(self) -> str:
        """What the records are, without their pixels: a fingerprint's cheap half."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What whoever reads them should know."""
        ...

    def leave_out(self, corrupt: Collection[int]) -> None:
        """Drops records for good; those behind them move up."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """How errors call a record."""
        ...

    def measure(self, index: int) -> tuple[int, int, int]:
        """The (h, w, c) of a record from its header alone. Raises CorruptImageError."""
        ...

    def read(
        self, index: int, channels: int, resize: Size | None, background: Colour = WHITE
    ) -> tuple[UInt8[np.ndarray, "h w channels"], int]:
        """A record's pixels and label. Raises CorruptImageError."""
        ...


class FolderRecords:
    """The images of a folder, in the order of their paths; its sub-folders, if it has any, are the classes.

    Captions are in metadata.jsonl or metadata.csv, in the folder or any below, with the fields `file_name`, relative to
    it, and `text`, a text or in JSON a list of them; or else in a .txt beside each image, a caption a line.

    What is no picture by its name (hidden, .txt, .mp4, Thumbs.db, in __MACOSX) is passed over and counted. Any other
    file counts as a record, so that one which cannot be read is noticed.

    Args:
        path: The folder.
        split: `train`; of a folder S with a metadata file in it, S.
        allow_empty: Let a class have no images, and its number; else it is refused.
        numbering: Of the classes; with names, other ones are refused.
        captioned: Read the captions. What a metadata file names then counts as an image, there or not.
    """

    shape: Shape = (None, None, None)

    def __init__(
        self,
        path: str,
        split: str,
        allow_empty: bool = False,
        numbering: Numbering = "natural",
        captioned: bool = False,
    ):
        folder = Path(expanded(path))
        if any((folder / split / name).is_file() for name in METADATA):
            folder /= split
        elif split != "train":
            raise UserError(
                f"data.split: {split}: a folder of images has one split, train, unless its folders train, {split}, ... "
                "hold a metadata.jsonl or .csv each; set data.path to the other images"
            )
        if not path or not folder.is_dir():
            raise UserError(f"data.path: {path or '(empty)'} is not a folder; give the folder that holds the images")
        paths, self._ignored, folders = _pictures_of(folder)
        if not paths:
            but = f" but {self._ignored[0]} and the like" if self._ignored else ""
            raise UserError(f"data.path: {folder} holds no files{but}; images such as PNG and JPEG are what is read")
        loose = [picture for picture in paths if len(picture.parts) == 1]
        classes = {picture.parts[0] for picture in paths if len(picture.parts) > 1}
        if loose and classes:
            raise UserError(
                f"data.path: {folder} holds both files ({min(loose)}) and sub-folders ({min(classes)}); "
                "either all images lie in the folder itself, or each in the sub-folder of its class"
            )
        empty = sorted(folders - classes, key=natural_order) if classes else []
        if empty and not allow_empty:
            raise UserError(
                f"data.path: the class {_few(empty)} of {folder} has no images; remove the folder, or set "
                "data.allow_empty=true for a class that has a number all the same"
            )
        self.class_names = _numbered(folder, classes.union(empty), numbering, allow_empty) if classes else ()
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self._errors: dict[str, str] = {}
        texts: dict[str, Captions] = {}
        if captioned:
            texts, self._errors, read = folder_captions(folder, paths, self._ignored)
            self._ignored = [picture for picture in self._ignored if picture not in read]
            named = {*texts, *self._errors}.difference(picture.as_posix() for picture in paths)
            strange = (
                picture
                for picture in named
                if os.path.exists(folder / picture) and not os.path.isfile(folder / picture)
            )
            self._errors |= dict.fromkeys(strange, "not a file")  # a pipe would be waited for
            paths += map(Path, named)
        labelled = sorted((numbers.get(picture.parts[0], 0), picture) for picture in paths)
        self._folder = folder
        self._paths = [picture.as_posix() for _, picture in labelled]
        self._labels = [label for label, _ in labelled]
        self.captions = [texts.get(picture, ()) for picture in self._paths]
        self.num_classes = len(self.class_names)
        self._animated: set[str] = set()

    @property
    def identity(self) -> str:
        """Path and size of every file."""
        files = ((name, self._folder / name) for name in self._paths)
        return "\n".join(f"{name} {path.stat().st_size if os.path.exists(path) else None}" for name, path in files)

    @property
    def notes(self) -> list[str]:
        """The files passed over, and those of which `measure` found that they have several frames."""
        groups = {
            "that are no pictures by their names are passed over": self._ignored,
            "with several frames are read by the first": sorted(self._animated),
        }
        return [f"files {what}: {len(files)} ({_few(files, 3)})" for what, files in groups.items() if files]

    def leave_out(self, corrupt: Collection[int]) -> None:
        """Drops records for good."""
        kept = [index for index in range(len(self)) if index not in corrupt]
        self._paths = [self._paths[index] for index in kept]
        self._labels = [self._labels[index] for index in kept]
        self.captions = [self.captions[index] for index in kept]

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self._folder / self._paths[index])

    def measure(self, index: int) -> tuple[int, int, int]:
        """Height, width and channels from the file's header."""
        with self._open(index) as file, open_image(file, self.name(index)) as image:
            shape = shape_of(image)
            if is_animated(image):
                self._animated.add(self._paths[index])
            return shape

    def read(
        self, index: int, channels: int, resize: Size | None, background: Colour = WHITE
    ) -> tuple[np.ndarray, int]:
        """Pixels and label."""
        with self._open(index) as file, open_image(file, self.name(index)) as image:
            return decode_image(image, self.name(index), channels, resize, background), self._labels[index]

    def _open(self, index: int) -> io.BufferedReader:
        name = self.name(index)
        if self._paths[index] in self._errors:
            raise CorruptImageError(f"{name}: {self._errors[self._paths[index]]}")
        if Path(name).suffix.lower() in _RAW:  # they look like TIFF, and hold a thumbnail as such
            raise CorruptImageError(f"{name}: a camera's raw file; convert it to PNG, JPEG or TIFF")
        try:
            return open(name, "rb")
        except OSError as error:
            if os.path.exists(name) and not isinstance(error, PermissionError):
                raise  # the disk's fault, or the network's
            reason = "a link to nowhere" if os.path.islink(name) else error.strerror
            raise CorruptImageError(f"{name}: {reason}") from error


def _pictures_of(folder: Path) -> tuple[list[Path], list[Path], set[str]]:
    """The pictures by their names, the other files, and the sub-folders; relative to folder, links followed."""

    def refuse(error: OSError) -> None:
        raise UserError(f"data.path: {error.filename}: {error.strerror}")

    pictures, others, folders = [], [], set()
    for base, names, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(base).relative_to(folder)
        names[:] = [name for name in names if not _leads_back(Path(base, name))]
        folders |= {name for name in names if _is_meant(name)} if not here.parts else set()
        meant = all(map(_is_meant, here.parts))
        for file in files:
            is_picture = meant and _is_meant(file) and _is_picture(Path(base, file))
            (pictures if is_picture else others).append(here / file)
    return pictures, sorted(others), folders


def _is_meant(name: str) -> bool:
    return not name.startswith(".") and name not in _SYSTEM


def _leads_back(path: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    return path.is_symlink() and Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(path))


def _is_picture(path: Path) -> bool:
    """By the ending of its name; by its first bytes where that says nothing."""
    suffix = path.suffix.lower()
    if suffix in _OTHERS or (os.path.exists(path) and not os.path.isfile(path)):  # a pipe would be waited for
        return False
    if suffix in _PICTURES or not suffix:
        return True
    with contextlib.suppress(CorruptImageError, PermissionError, FileNotFoundError), path.open("rb") as file:
        open_image(file, str(path))
        return True
    return False


def _numbered(folder: Path, classes: set[str], numbering: Numbering, allow_empty: bool) -> tuple[str, ...]:
    """The classes in the order of their numbers."""
    if numbering == "text":
        return tuple(sorted(classes))
    if numbering == "natural":
        return tuple(sorted(classes, key=natural_order))
    missing = set() if allow_empty else set(numbering) - classes
    check_class_names(str(folder), sorted(classes - set(numbering)), sorted(missing))
    return numbering


def check_class_names(where: str, strange: Sequence[str], missing: Sequence[str]) -> None:
    """Raises UserError if a data set has classes that the run has not, or lacks some of the run's."""
    if strange or missing:
        parts = [
            f"{_few(names)} {what}" for names, what in ((strange, "not of the run"), (missing, "missing")) if names
        ]
        raise UserError(f"the classes of {where} are not those of the run: {', '.join(parts)}")


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A key that sorts names with numbers in them as people count.

    >>> sorted(["b", "10", "9", "a2", "a10"], key=natural_order)
    ['9', '10', 'a2', 'a10', 'b']
    """
    parts: list[str | int] = [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
    return parts, name


def _few(names: Sequence[Any], number: int = 10) -> str:
    return ", ".join(map(str, names[:number])) + (f" and {len(names) - number} more" if len(names) > number else "")


class IdxRecords:
    """The files of (Fashion-)MNIST: {train,t10k}-images-idx3-ubyte and -labels-idx1-ubyte, plain or .gz.

    Images and labels are held as the files give them: `images` uint8 [n, h, w, 1], `labels` int32 [n].
    """

    num_classes = 10
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, path: str, split: str):
        if split not in ("train", "test"):
            raise UserError(f"data.split: {split}: fashion_mnist has train and test")
        folder = Path(expanded(path or FASHION_MNIST_FOLDER))
        prefix = {"train": "train", "test": "t10k"}[split]
        self.images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", dimensions=3)[..., None]
        self.labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", dimensions=1).astype(np.int32)
        if len(self.images) != len(self.labels):
            raise UserError(f"{folder}: {len(self.images)} {prefix} images but {len(self.labels)} labels")
        if self.labels.max() >= self.num_classes:
            raise UserError(f"{folder}: {prefix} labels up to {self.labels.max()}; 0 to 9 are what is read")
        self.shape: Shape = self.images.shape[1:]
        self.identity = f"{prefix} of {len(self.images)}"

    def leave_out(self, corrupt: Collection[int]) -> None:
        """There is nothing to drop: the files are read whole or refused."""
        del corrupt

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """The record's number."""
        return f"record {index}"

    def measure(self, index: int) -> tuple[int, int, int]:
        """Height, width and channels, the same for all."""
        del index
        return self.images.shape[1:]

    def read(
        self, index: int, channels: int, resize: Size | None, background: Colour = WHITE
    ) -> tuple[np.ndarray, int]:
        """Pixels and label."""
        del background
        image = Image.fromarray(self.images[index, ..., 0])
        return decode_image(image, self.name(index), channels, resize), int(self.labels[index])


def _read_idx(folder: Path, stem: str, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Reads an idx file: the bytes 0, 0, 8, dimensions; each dimension as big-endian uint32; the content."""
    path = next((folder / name for name in (f"{stem}.gz", stem) if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"data.path: no {stem}.gz in {folder}; Debian's package dataset-fashion-mnist puts the four files "
            f"into {FASHION_MNIST_FOLDER}, or set data.path to the folder that holds them"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
                raise UserError(f"{path}: not an idx file of {dimensions}-dimensional bytes")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = math.prod(shape)
            if not 0 < size <= MAX_IDX_BYTES:
                raise UserError(f"{path}: claims shape {shape}; 1 to {MAX_IDX_BYTES} bytes are read")
            content = file.read(size + 1)  # one more, to see that the file ends where it says
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); copy or install it again") from error
    if len(content) != size:
        raise UserError(f"{path}: {'fewer' if len(content) < size else 'more'} bytes than its shape {shape} says")
    return np.frombuffer(content, np.uint8).reshape(shape)


class TfdsRecords:
    """One split of a prepared TFDS data set: its features `image` and, if it has them, `label` and `text` or `caption`.

    TFDS hands over the encoded bytes, and the images are decoded here, bounded like any other.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, builder: Any, split: str, captioned: bool = False):
        import tensorflow_datasets as tfds

        features: dict[str, Any] = dict(builder.info.features)
        if not isinstance(features.get("image"), tfds.features.Image) or features["image"].np_dtype != np.uint8:
            raise UserError(
                f"data.name: {builder.info.full_name} has no 8-bit feature `image`; it has {', '.join(features)}"
            )
        self._has_label = isinstance(features.get("label"), tfds.features.ClassLabel)
        self.num_classes: int = features["label"].num_classes if self._has_label else 0
        self.class_names = tuple(features["label"].names) if self._has_label else ()
        try:
            self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except (ValueError, KeyError) as error:
            raise UserError(
                f"data.split: {split}: {builder.info.full_name} has {', '.join(builder.info.splits)}"
            ) from error
        except NotImplementedError as error:  # TFDS says so of formats without random access
            raise UserError(
                f"data.path: {builder.info.full_name} is stored as {builder.info.file_format.value}, which has "
                "no random access; prepare it again with --file_format=array_record"
            ) from error
        h, w, c = features["image"].shape
        self.shape: Shape = (h, w, c if c in (1, 3) else None)
        self._title = f"{builder.info.full_name} {split}"
        self.identity = f"{self._title} of {len(self._source)}, {builder.info.dataset_size} bytes"
        self._kept: Sequence[int] = range(len(self._source))
        self.captions: list[Captions] = []
        field = next((name for name in CAPTION_FIELDS if name in features), None)
        if captioned and field:
            self.captions = [_texts(example[field]) for example in self._source]

    def leave_out(self, corrupt: Collection[int]) -> None:
        """Drops records for good."""
        self._kept = [number for index, number in enumerate(self._kept) if index not in corrupt]
        self.captions = [texts for index, texts in enumerate(self.captions) if index not in corrupt]
        self.identity += f" without {sorted(corrupt)}"

    def __len__(self) -> int:
        return len(self._kept)

    def name(self, index: int) -> str:
        """Data set, version, split and the record's number."""
        return f"{self._title}, record {self._kept[index]}"

    def measure(self, index: int) -> tuple[int, int, int]:
        """Height, width and channels from the record's image header."""
        return shape_of(open_image(io.BytesIO(self._source[self._kept[index]]["image"]), self.name(index)))

    def read(
        self, index: int, channels: int, resize: Size | None, background: Colour = WHITE
    ) -> tuple[np.ndarray, int]:
        """Pixels and label."""
        example = self._source[self._kept[index]]
        image = open_image(io.BytesIO(example["image"]), self.name(index))
        label = int(example["label"]) if self._has_label else 0
        return decode_image(image, self.name(index), channels, resize, background), label


def _texts(value: Any) -> Captions:
    """The captions of a feature: a text, a sequence of them, or of dicts with one; () where they are none."""
    if isinstance(value, dict):
        value = next((value[name] for name in CAPTION_FIELDS if name in value), None)
    texts = [value] if isinstance(value, bytes | str) else list(value if value is not None else ())
    try:
        return captions_of([text.decode() if isinstance(text, bytes) else text for text in texts])
    except ValueError:
        return ()


def open_digits(path: str, split: str) -> TfdsRecords:
    """The digits of scikit-learn, prepared as a TFDS data set where they are not yet.

    Any number of processes may come first at once: each writes to a folder of its own, which is renamed into
    place when whole, and whoever finds the place taken uses what is there.
    """
    import tensorflow_datasets as tfds

    from jaxdiff.data.digits_tfds import JaxdiffDigits

    data_dir = _data_dir(path)
    builder = JaxdiffDigits(data_dir=data_dir, file_format="array_record")
    if not builder.data_path.exists():
        if path and any(p.suffix.lower() in _PICTURES for p in (*Path(path).glob("*"), *Path(path).glob("*/*"))):
            raise UserError(f"data.path {path} holds pictures, which data.name digits does not read; set it to folder")
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces itself on stdout
                builder.download_and_prepare()
        except OSError as error:
            if not builder.data_path.exists():
                raise UserError(
                    f"data.path: the digits cannot be written to {data_dir} ({error.strerror}); "
                    "set data.path or TFDS_DATA_DIR to a folder that can be written"
                ) from error
        builder = JaxdiffDigits(data_dir=data_dir, file_format="array_record")
    return TfdsRecords(builder, split)


def open_tfds(name: str, path: str, split: str, others: Collection[str] = (), captioned: bool = False) -> TfdsRecords:
    """A data set that TFDS has prepared under `path`, or under its own default folder; `others` are names known."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    data_dir = _data_dir(path)
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:  # ValueError: it is no name that TFDS can have
        if name.partition("/")[0].partition(":")[0] in tfds.list_builders(with_community_datasets=False):
            raise UserError(
                f"data.name: {name} is not prepared under {data_dir}; with the extra tfds-prepare installed, "
                f"run `tfds build {name} --file_format=array_record --data_dir={data_dir}`, or set data.path"
            ) from error
        prepared = {file.relative_to(data_dir).parts[0] for file in Path(data_dir).glob("*/*/features.json")}
        choices = [*others, *sorted(prepared)]
        nearest = difflib.get_close_matches(name, [*choices, *tfds.list_builders(with_community_datasets=False)], 1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(
            f"data.name: unknown data set {name}; {hint}known are {', '.join(choices)}, and what TFDS has "
            f"prepared under {data_dir}"
        ) from error
    return TfdsRecords(builder, split, captioned)


def _data_dir(path: str) -> str:
    """Where TFDS data sets lie: `path`, or TFDS's own default ($TFDS_DATA_DIR or ~/tensorflow_datasets)."""
    folder = expanded(path or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if any("\ud800" <= letter <= "\udfff" for letter in folder):
        raise UserError(f"data.path: {folder!a} is not UTF-8, which TFDS needs; choose another folder, or link to it")
    return folder
