"""The idx files of MNIST and Fashion-MNIST."""

import gzip
import math
import struct
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxdiff.data.decoding import WHITE, Colour, Size, decode_image
from jaxdiff.data.records import Shape
from jaxdiff.errors import UserError
from jaxdiff.storage import expanded

FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"
MAX_IDX_BYTES = 2**31


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
