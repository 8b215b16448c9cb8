"""The handwritten digits of scikit-learn as a TFDS data set: real images, no download, no TensorFlow."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_HELD_OUT_EVERY = 5


class JaxdiffDigits(tfds.core.GeneratorBasedBuilder):
    """1,797 grey 8x8 images of ten classes: 1,437 in `train`, 360 in `test`, each class in the same proportion.

    The values 0..16 become 0..255. The split is a rule rather than a draw: of the images sorted by class (in
    their own order within one), every fifth is held out. The images reach TFDS as Pillow images, since its
    encoder of arrays is the one part of preparing an ArrayRecord data set that needs TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 (TFDS wants a plain class attribute)
    # Nothing is downloaded; to look for checksums TFDS 4.9.10 imports a package that it does not depend on.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Optical recognition of handwritten digits, the test part, as scikit-learn ships it.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, held_out: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits  # seconds to import, and only ever needed once

        values, labels = load_digits(return_X_y=True)
        pixels = np.round(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        for position, index in enumerate(np.argsort(labels, kind="stable")):
            if (position % _HELD_OUT_EVERY == 0) == held_out:
                yield int(index), {"image": Image.fromarray(pixels[index]), "label": int(labels[index])}
