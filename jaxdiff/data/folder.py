"""A folder of images, its sub-folders the classes, with captions beside the images or in a metadata file."""

import contextlib
import io
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from jaxdiff.data.captions import METADATA, Captions, folder_captions
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
from jaxdiff.data.records import Numbering, Shape, check_class_names, few, natural_order
from jaxdiff.errors import UserError
from jaxdiff.storage import expanded

_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"}
PICTURES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
PICTURES |= {".heic", ".heif", ".hif", ".jp2", ".jxl", ".pbm", ".pgm", ".ppm", ".psd", ".svg", ".tga", *_RAW}
"""Endings of pictures, also of those that are not read: such a file is meant, and named where it cannot be."""
_OTHERS = {".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".html", ".md", ".yaml", ".db", ".ini"}
_OTHERS |= {
    ".log",
    ".mp4",
    ".mov",
    ".avi",
    ".mkv",
    ".mp3",
    ".wav",
    ".zip",
    ".pdf",
    ".npy",
    ".npz",
    ".parquet",
    ".py",
    ".exe",
}
"""Endings of what lies beside pictures, and is not even looked into."""
_SYSTEM = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
"""Folders that systems leave everywhere."""


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
                f"data.path: the class {few(empty)} of {folder} has no images; remove the folder, or set "
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
        return [f"files {what}: {len(files)} ({few(files, 3)})" for what, files in groups.items() if files]

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
    if suffix in PICTURES or not suffix:
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
