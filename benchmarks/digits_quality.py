"""Are the samples of a digits run what was asked for, and are they its own?

    uv run benchmarks/digits_quality.py [WORKDIR] [options of sample.py, e.g. --guidance 2]

An SVM trained on the real training images says what each of 500 class-conditional samples shows; the share that it
reads as the class asked for is to be >= 98 %. That they are no copies: their mean distance to the nearest training
image is to be >= 0.85 of what it is for the held-out real images. The exit code is 1 where either fails. Whether they
vary as they should, and are not the mean of their class, the Fréchet distance of pixels to the training images says.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from jaxdiff import commands
from jaxdiff.data.sources import open_dataset
from jaxdiff.evaluation.frechet import frechet_distance
from jaxdiff.evaluation.moments import Gaussian

NUM = 500
LEAST_READ, LEAST_DISTANCE = 0.98, 0.85


def real(split: str) -> tuple[np.ndarray, np.ndarray]:
    source = open_dataset("digits", split=split)
    records = source.gather(np.arange(len(source)))
    return _flat(records["image"]), records["label"]


def drawn(arguments: list[str]) -> tuple[np.ndarray, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "samples.npz"
        code = commands.main(["sample", *arguments, "--num", str(NUM), "--batch-size", str(NUM), "--out", str(out)])
        if code:
            raise SystemExit(code)
        with np.load(out) as arrays:
            return _flat(arrays["images"]), arrays["labels"]


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64) / 255 * 16  # the values 0..16 of the data set


def nearest(images: np.ndarray, others: np.ndarray) -> float:
    """The mean distance of an image to the nearest of the others."""
    squares = (images**2).sum(1)[:, None] - 2 * images @ others.T + (others**2).sum(1)
    return float(np.sqrt(squares.min(axis=1).clip(0)).mean())


def gaussian(images: np.ndarray) -> Gaussian:
    return Gaussian(len(images), images.mean(axis=0), np.cov(images, rowvar=False))


def main() -> int:
    workdir, *options = sys.argv[1:] or ["runs/digits"]
    samples, asked = drawn([workdir, *options])
    (train, labels), (held_out, held_out_labels) = real("train"), real("test")
    svm = SVC(gamma=0.001).fit(train, labels)
    read = float((svm.predict(samples) == asked).mean())
    ceiling = float((svm.predict(held_out) == held_out_labels).mean())
    distance, reference = nearest(samples, train), nearest(held_out, train)
    print(f"read as the class asked for   {read:.1%} of {NUM} samples (held-out real images: {ceiling:.1%})")
    print(f"distance to nearest training  {distance:.2f} (held-out: {reference:.2f}), ratio {distance / reference:.3f}")
    apart, floor = (frechet_distance(gaussian(images), gaussian(train)) for images in (samples, held_out))
    print(f"Fréchet distance of pixels    {apart:.1f} (held-out: {floor:.1f})")
    return int(read < LEAST_READ or distance / reference < LEAST_DISTANCE)


if __name__ == "__main__":
    raise SystemExit(main())
