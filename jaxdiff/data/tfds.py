"""Data sets that TFDS has prepared, and the digits of scikit-learn as one of them."""

import contextlib
import difflib
import io
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data.captions import CAPTION_FIELDS, Captions, captions_of
from jaxdiff.data.decoding import WHITE, Colour, Size, decode_image, open_image, shape_of
from jaxdiff.data.folder import PICTURES
from jaxdiff.data.records import Shape
from jaxdiff.errors import UserError
from jaxdiff.storage import expanded


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
        if path and any(p.suffix.lower() in PICTURES for p in (*Path(path).glob("*"), *Path(path).glob("*/*"))):
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
