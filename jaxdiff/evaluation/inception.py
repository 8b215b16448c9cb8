"""The features of FID: InceptionV3 with the published weights, of images of any size, resized as its graph did.

The weights are a file that you have: pt_inception-2015-12-05-6726825d.pth, the TensorFlow graph's in torch's layout, as
pytorch-fid and torch-fidelity load it; or its tensors as safetensors. Nothing is downloaded.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdiff.evaluation.extractors import Extractor, digest, read_tensors
from jaxdiff.interop import names
from jaxdiff.models import Inception
from jaxdiff.models.inception import SIDE

MARK = "Mixed_5b.branch1x1.conv.weight"
"""A tensor by which its files are known."""
_EPSILON = 1e-3  # of the batch norms


def inception(path: os.PathLike | str) -> Extractor:
    """The 2048 features of FID and 1008 logits, of colour or grey images of any size.

    Args:
      path: the published weights, .pth or .safetensors.

    Raises:
      UserError: the file is damaged, or not of this network; every tensor that does not fit is named.
    """
    path = Path(path)
    net = Inception()
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    wanted = jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    leaves = [leaf for leaf, _ in names.leaf_paths(wanted)]
    table = {leaf: names.Source(leaf.replace("/kernel", ".weight").replace("/", ".")) for leaf in leaves}
    tensors = read_tensors(path)
    params = names.load(wanted, table, folded(tensors), str(path))

    def apply(params: Any, images: Array) -> tuple[Array, Array]:
        x = resize(images.astype(jnp.float32), SIDE)
        x = jnp.broadcast_to(x, (*x.shape[:3], 3)) if x.shape[-1] == 1 else x
        return net.apply({"params": params}, (x - 128) / 128)  # type: ignore[return-value]

    how = f"bilinear to {SIDE}x{SIDE} as TensorFlow 1 does"
    return Extractor("inception-2015-12-05", digest(tensors), how, None, params, apply)


def folded(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convolutions with the batch norms after them as their kernels and biases, in float64 until the end.

        gamma (k x - mean)/sqrt(var + eps) + beta = (s k) x + beta - s mean,   s = gamma/sqrt(var + eps)       (1)

    Names are theirs with "_" for "." inside a module's; what is not such a pair stays as it is.
    """
    out = {}
    for name, value in tensors.items():
        module, conv, last = name.rpartition(".conv.")
        norm = {part: tensors.get(f"{module}.bn.{part}") for part in ("weight", "bias", "running_mean", "running_var")}
        if (
            conv
            and last == "weight"
            and all(part is not None and part.shape == value.shape[:1] for part in norm.values())
        ):
            gamma, beta, mean, var = (np.asarray(part, np.float64) for part in norm.values())
            scale = gamma / np.sqrt(var + _EPSILON)
            kernel = np.asarray(value, np.float64) * scale.reshape(-1, *[1] * (value.ndim - 1))
            out[f"{module.replace('.', '_')}.weight"] = kernel.astype(np.float32)
            out[f"{module.replace('.', '_')}.bias"] = (beta - scale * mean).astype(np.float32)
        elif ".bn." not in name and name != "fc.bias":  # the Inception score takes logits without bias
            out[name] = value
    return out


def resize(x: Float[Array, "batch h w c"], side: int) -> Float[Array, "batch side side c"]:
    """Bilinear, as TensorFlow 1 did it by default: output i is read at i h/side, without half a pixel of offset.

    >>> resize(jnp.arange(2.0).reshape(1, 2, 1, 1), 4)[0, :, 0, 0].tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    for axis in (2, 1):
        at = np.arange(side, dtype=np.float32) * np.float32(x.shape[axis] / side)
        low = np.minimum(at.astype(np.int32), x.shape[axis] - 1)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        first, second = (jnp.take(x, np.minimum(low + i, x.shape[axis] - 1), axis) for i in (0, 1))
        x = first + (second - first) * share
    return x
