"""What the images of a data set are, known without the images: enough to compile for, on a machine without data."""

from typing import Any, NamedTuple

from jaxdiff.data.sources import DATASETS, open_dataset
from jaxdiff.errors import UserError


class Expected(NamedTuple):
    """Images of a data set.

    Attributes:
      shape: (h, w, c) of every image.
      num_classes: 0 for none.
    """

    shape: tuple[int, int, int]
    num_classes: int


_OWN = {"digits": Expected((8, 8, 1), 10), "fashion_mnist": Expected((28, 28, 1), 10)}


def expect_dataset(
    name: str, path: str | None = None, split: str = "train", resize: int | tuple[int, int] | None = None
) -> Expected:
    """What `open_dataset` would give: from TFDS's description of a data set, prepared or not; others are opened.

    Raises:
      UserError: unknown, or of images whose size only the images tell.

    >>> expect_dataset("imagenet_resized/64x64")
    Expected(shape=(64, 64, 3), num_classes=1000)
    """
    size = (resize, resize) if isinstance(resize, int) else resize
    if name in _OWN:
        shape, num_classes = _OWN[name]
        return Expected((*size, 1) if size else shape, num_classes)
    if name in DATASETS.members:
        source = open_dataset(name, path, split, resize)
        return Expected(source.shape, source.num_classes)
    import tensorflow_datasets as tfds

    try:
        info: Any = tfds.builder(name, data_dir=path or None).info  # from its code, or from its files
    except (tfds.core.DatasetNotFoundError, ImportError):
        open_dataset(name, path, split, resize)  # says what is wrong
        raise
    features = dict(info.features)
    h, w, c = features["image"].shape
    h, w = size or (h, w)
    if not (h and w and c):
        raise UserError(f"data.name: the images of {name} have no common size; set data.resize to a side in pixels")
    label = features.get("label")
    return Expected((h, w, c), getattr(label, "num_classes", 0) or 0)
