"""Which features images are measured with: those asked for, or the ones that come with jaxdiff, if they fit."""

import importlib
import os
import sys
from pathlib import Path

from jaxdiff.errors import UserError
from jaxdiff.evaluation.extractors import Extractor, fashion_mnist_classifier, pixels, read_tensors
from jaxdiff.evaluation.inception import MARK, inception

_CHOICES = (
    "give --features FILE, the weights of FID's Inception (pt_inception-2015-12-05-6726825d.pth) or of a classifier of "
    "scripts/train_classifier.py, or --features MODULE:FUNCTION, which returns an Extractor, or pixels"
)


MOST_PIXELS = 1024  # a covariance is of their square


def choose(text: str | None, shape: tuple[int, int, int]) -> Extractor:
    """The extractor that a text names, for images of a shape.

    Args:
      text: a file of weights, or MODULE:FUNCTION, called without arguments, of a module in the current folder or
        installed; "pixels"; None for the classifier that comes with jaxdiff.
      shape: (h, w, c).

    Raises:
      UserError: there is no such thing, or it does not take such images.
    """
    if text == "pixels":
        extractor = pixels()
    elif text is None:
        extractor = fashion_mnist_classifier()
    elif ":" in text and not Path(text).exists():
        extractor = _imported(text)
    elif MARK in read_tensors(Path(text)):
        extractor = inception(text)
    else:
        extractor = fashion_mnist_classifier(Path(text))
    h, w, c = shape
    if text == "pixels" and h * w * c > MOST_PIXELS:
        raise UserError(f"the features 'pixels' are for tiny images, of {MOST_PIXELS} numbers; these are {h}x{w}x{c}")
    if extractor.shape not in (None, shape) or c not in (1, 3):
        own = "any with 1 or 3 channels" if extractor.shape is None else "x".join(map(str, extractor.shape))
        raise UserError(f"the features of {extractor.name} take images of {own}, and these are {h}x{w}x{c}; {_CHOICES}")
    return extractor


def _imported(text: str) -> Extractor:
    module, _, name = text.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        extractor = getattr(importlib.import_module(module), name)()
    except Exception as error:  # a stranger's function: whatever it raises, it gave no features
        raise UserError(f"--features {text}: {type(error).__name__}: {error}; {_CHOICES}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(extractor, Extractor):
        raise UserError(f"--features {text} gave a {type(extractor).__name__}, not a jaxdiff.evaluation.Extractor")
    return extractor
