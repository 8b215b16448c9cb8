"""What turns images into the features that distances are measured in, and says which features they are."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdiff.codecs import from_uint8
from jaxdiff.errors import UserError
from jaxdiff.interop import names, weights
from jaxdiff.models import Classifier

CLASSIFIER = Path(__file__).parent / "fashion_mnist_classifier.safetensors"
"""Weights of the classifier: 92.1 % of Fashion-MNIST's test images right (scripts/train_classifier.py)."""


class Extractor(NamedTuple):
    """Features of images, and their identity.

    Attributes:
      name: what is computed.
      digest: SHA-256 of the weights, 16 hexadecimal digits.
      resize: how images of other sizes are brought to the network's; "none" if they are not.
      shape: (h, w, c) that images must have; None where they are resized.
      params: the weights.
      apply: (params, uint8 images [batch, h, w, c]) -> (features [batch, d], logits [batch, classes]).
    """

    name: str
    digest: str
    resize: str
    shape: tuple[int, int, int] | None
    params: Any
    apply: Callable[[Any, Array], tuple[Array, Array]]


def fashion_mnist_classifier(path: Path = CLASSIFIER) -> Extractor:
    """The 96 features of the classifier that comes with jaxdiff, for grey images of 28x28; or of one like it.

    Args:
      path: its weights, as scripts/train_classifier.py writes them.

    Raises:
      UserError: the file is damaged, or of another network.

    >>> extractor = fashion_mnist_classifier()
    >>> extractor.apply(extractor.params, jnp.zeros((1, 28, 28, 1), jnp.uint8))[0].shape
    (1, 96)
    """
    tensors = read_tensors(path)
    net = Classifier(10)
    wanted = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))["params"]
    shapes = {name: leaf.shape for name, leaf in names.leaf_paths(wanted)}
    if {name: value.shape for name, value in tensors.items()} != shapes:
        raise UserError(f"{path} does not hold the classifier of scripts/train_classifier.py")
    params = nest({name: np.asarray(value, np.float32) for name, value in tensors.items()})

    def apply(params: Any, images: Array) -> tuple[Array, Array]:
        return net.apply({"params": params}, from_uint8(images))  # type: ignore[return-value]

    return Extractor(path.stem, digest(tensors), "none", (28, 28, 1), params, apply)


def pixels() -> Extractor:
    """The pixels themselves in [-1, 1], of tiny images; the Inception score is then 1 of any images.

    >>> pixels().apply(None, jnp.zeros((2, 8, 8, 1), jnp.uint8))[0].shape
    (2, 64)
    """

    def apply(params: Any, images: Array) -> tuple[Array, Array]:
        del params
        return from_uint8(images).reshape(len(images), -1), jnp.zeros((len(images), 2))

    return Extractor("pixels", "1", "none", None, {}, apply)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, or of a state dict of torch.

    Raises:
      UserError: there is no such file, or it is neither.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file; features are weights, .safetensors or .pth")
    return weights.read_file(path)


def digest(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 of the names and bytes of tensors, 16 hexadecimal digits."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(tensors[name]))
    return sha.hexdigest()[:16]


def nest(tensors: dict[str, Any]) -> dict[str, Any]:
    """{"a/b": x} to {"a": {"b": x}}.

    >>> nest({"conv/kernel": 1, "conv/bias": 2})
    {'conv': {'kernel': 1, 'bias': 2}}
    """
    tree: dict[str, Any] = {}
    for name, value in tensors.items():
        *path, leaf = name.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = value
    return tree
