"""Where images come from: a folder, idx files, a prepared TFDS data set; each a random-access list of records."""

import contextlib
import difflib
import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxdiff.errors import UserError
from jaxdiff.training.decoding import channels_of, decode_image, open_image

FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"
MAX_IDX_BYTES = 2**31
OWN_NAMES = ("digits", "fashion_mnist", "folder")


Shape = tuple[int | None, int | None, int | None]
"""(h, w, c) of all records; None where one has to look."""


@runtime_checkable
class Records(Protocol):
    """Images and labels by index, decoded when asked for; picklable, so that worker processes can hold them."""

    shape: Shape
    num_classes: int
    identity: str
    """What the records are, without their pixels: a fingerprint's cheap half."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """How errors call a record."""
        ...

    def measure(self, index: int) -> tuple[int, int, int]:
        """The (h, w, c) of a record from its header alone. Raises CorruptImageError."""
        ...

    def read(self, index: int, channels: int, resize: int | None) -> tuple[UInt8[np.ndarray, "h w channels"], int]:
        """A record's pixels and label. Raises CorruptImageError."""
        ...


class FolderRecords:
    """The images of a folder, in the order of their paths; its sub-folders, if it has any, are the classes.

    Hidden files are passed over; any other file counts as a record, so that one which is no image is noticed.
    """

    shape: Shape = (None, None, None)

    def __init__(self, path: str, split: str):
        if split != "train":
            raise UserError(
                f"data.split: {split}: a folder of images has one split, train; set data.path to the other images"
            )
        folder = Path(path).expanduser()
        if not path or not folder.is_dir():
            raise UserError(f"data.path: {path or '(empty)'} is not a folder; give the folder that holds the images")
        paths = sorted(
            Path(base, file).relative_to(folder)
            for base, _, files in os.walk(folder, followlinks=True)
            for file in files
        )
        paths = [found for found in paths if not any(part.startswith(".") for part in found.parts)]
        if not paths:
            raise UserError(f"data.path: {folder} holds no files; PNG, JPEG or WebP images are what is read")
        loose = [found for found in paths if len(found.parts) == 1]
        classes = sorted({found.parts[0] for found in paths if len(found.parts) > 1})
        if loose and classes:
            raise UserError(
                f"data.path: {folder} holds both files ({loose[0]}) and sub-folders ({classes[0]}); "
                "either all images lie in the folder itself, or each in the sub-folder of its class"
            )
        self._folder = folder
        self._paths = [found.as_posix() for found in paths]
        self._labels = [classes.index(found.parts[0]) if classes else 0 for found in paths]
        self.num_classes = len(classes)
        self.identity = "\n".join(f"{found} {(folder / found).stat().st_size}" for found in self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self._folder / self._paths[index])

    def measure(self, index: int) -> tuple[int, int, int]:
        """Height, width and channels from the file's header."""
        with open(self.name(index), "rb") as file, open_image(file, self.name(index)) as image:
            return image.height, image.width, channels_of(image)

    def read(self, index: int, channels: int, resize: int | None) -> tuple[np.ndarray, int]:
        """Pixels and label."""
        with open(self.name(index), "rb") as file, open_image(file, self.name(index)) as image:
            return decode_image(image, self.name(index), channels, resize), self._labels[index]


class IdxRecords:
    """The files of (Fashion-)MNIST: {train,t10k}-images-idx3-ubyte and -labels-idx1-ubyte, plain or .gz.

    Images and labels are held as the files give them: `images` uint8 [n, h, w, 1], `labels` int32 [n].
    """

    num_classes = 10

    def __init__(self, path: str, split: str):
        if split not in ("train", "test"):
            raise UserError(f"data.split: {split}: fashion_mnist has train and test")
        folder = Path(path or FASHION_MNIST_FOLDER).expanduser()
        prefix = {"train": "train", "test": "t10k"}[split]
        self.images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", dimensions=3)[..., None]
        self.labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", dimensions=1).astype(np.int32)
        if len(self.images) != len(self.labels):
            raise UserError(f"{folder}: {len(self.images)} {prefix} images but {len(self.labels)} labels")
        if self.labels.max() >= self.num_classes:
            raise UserError(f"{folder}: {prefix} labels up to {self.labels.max()}; 0 to 9 are what is read")
        self.shape: Shape = self.images.shape[1:]
        self.identity = f"{prefix} of {len(self.images)}"

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """The record's number."""
        return f"record {index}"

    def measure(self, index: int) -> tuple[int, int, int]:
        """Height, width and channels, the same for all."""
        del index
        return self.images.shape[1:]

    def read(self, index: int, channels: int, resize: int | None) -> tuple[np.ndarray, int]:
        """Pixels and label."""
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
    """One split of a prepared TFDS data set: its features `image` and, if it has one, `label`.

    TFDS hands over the encoded bytes, and the images are decoded here, bounded like any other.
    """

    def __init__(self, builder: Any, split: str):
        import tensorflow_datasets as tfds

        features: dict[str, Any] = dict(builder.info.features)
        if not isinstance(features.get("image"), tfds.features.Image) or features["image"].np_dtype != np.uint8:
            raise UserError(
                f"data.name: {builder.info.full_name} has no 8-bit feature `image`; it has {', '.join(features)}"
            )
        self._has_label = isinstance(features.get("label"), tfds.features.ClassLabel)
        self.num_classes: int = features["label"].num_classes if self._has_label else 0
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

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        """Data set, version, split and the record's number."""
        return f"{self._title}, record {index}"

    def measure(self, index: int) -> tuple[int, int, int]:
        """Height, width and channels from the record's image header."""
        image = open_image(io.BytesIO(self._source[index]["image"]), self.name(index))
        return image.height, image.width, channels_of(image)

    def read(self, index: int, channels: int, resize: int | None) -> tuple[np.ndarray, int]:
        """Pixels and label."""
        example = self._source[index]
        image = open_image(io.BytesIO(example["image"]), self.name(index))
        label = int(example["label"]) if self._has_label else 0
        return decode_image(image, self.name(index), channels, resize), label


def open_digits(path: str, split: str) -> TfdsRecords:
    """The digits of scikit-learn, prepared as a TFDS data set where they are not yet.

    Any number of processes may come first at once: each writes to a folder of its own, which is renamed into
    place when whole, and whoever finds the place taken uses what is there.
    """
    import tensorflow_datasets as tfds

    from jaxdiff.training.digits_tfds import JaxdiffDigits

    data_dir = _data_dir(path)
    builder = JaxdiffDigits(data_dir=data_dir, file_format="array_record")
    if not builder.data_path.exists():
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


def open_tfds(name: str, path: str, split: str) -> TfdsRecords:
    """A data set that TFDS has prepared under `path`, or under its own default folder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    data_dir = _data_dir(path)
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        if name.partition("/")[0].partition(":")[0] in tfds.list_builders(with_community_datasets=False):
            raise UserError(
                f"data.name: {name} is not prepared under {data_dir}; with the extra tfds-prepare installed, "
                f"run `tfds build {name} --file_format=array_record --data_dir={data_dir}`, or set data.path"
            ) from error
        found = {file.relative_to(data_dir).parts[0] for file in Path(data_dir).glob("*/*/features.json")}
        choices = [*OWN_NAMES, *sorted(found)]
        nearest = difflib.get_close_matches(name, [*choices, *tfds.list_builders(with_community_datasets=False)], 1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(
            f"data.name: unknown data set {name}; {hint}known are {', '.join(choices)}, and what TFDS has "
            f"prepared under {data_dir}"
        ) from error
    return TfdsRecords(builder, split)


def _data_dir(path: str) -> str:
    """Where TFDS data sets lie: `path`, or TFDS's own default ($TFDS_DATA_DIR or ~/tensorflow_datasets)."""
    return os.path.expanduser(path or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
