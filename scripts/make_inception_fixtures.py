"""Makes tests/fixtures/inception with torch-fidelity: features, logits and resizes of FID's network, random weights.

    /tmp/torchenv/bin/pip install --no-deps torch-fidelity
    /tmp/torchenv/bin/python scripts/make_inception_fixtures.py

The environment is that of make_interop_fixtures.py. torch-fidelity's network is the one whose numbers agree with the
TensorFlow graph of the FID paper. Weights are not kept: tests make them again from the tensors' names.
"""

import importlib.metadata
import importlib.util
import json
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import torch

package = types.ModuleType("torch_fidelity")  # its own __init__ would import torchvision
package.__path__ = importlib.util.find_spec("torch_fidelity").submodule_search_locations
sys.modules["torch_fidelity"] = package
from torch_fidelity import feature_extractor_inceptionv3 as theirs  # noqa: E402
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x  # noqa: E402

ROOT = Path(__file__).parent.parent / "tests" / "fixtures" / "inception"
SIZES = ((32, 32), (20, 45), (299, 299), (640, 400))


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that tests can make again from the name; activations keep their size from layer to layer."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    spread = 0.2 if len(shape) == 1 else 2.4 / np.sqrt(np.prod(shape[1:]))
    value = spread * np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    return (value + (len(shape) == 1 and name.endswith(("weight", "running_var")))).astype(np.float32)


def images(height: int, width: int) -> np.ndarray:
    """Two images, smooth and noisy."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    smooth = 127.5 + 127.5 * np.sin(0.2 * rows + 0.1 * columns)[..., None] * np.cos([0.0, 1.0, 2.0])
    noise = np.random.RandomState(height).randint(0, 256, (height, width, 3))
    return np.stack([smooth.astype(np.uint8), noise.astype(np.uint8)])


def main() -> None:
    """Writes all fixtures and says how large they are."""
    ROOT.mkdir(parents=True, exist_ok=True)
    theirs.load_state_dict_from_url = lambda *args, **kwargs: {}
    kind = theirs.FeatureExtractorInceptionV3
    load, kind.load_state_dict = kind.load_state_dict, lambda self, state: None
    net = kind("inception", ["2048", "logits_unbiased"])
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    load(net, {name: torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()})
    with torch.no_grad():
        features, logits = net(torch.from_numpy(images(32, 32)).permute(0, 3, 1, 2))
    arrays = {"features": features.numpy(), "logits": logits.numpy()}
    for height, width in SIZES:
        x = torch.from_numpy(images(height, width)).permute(0, 3, 1, 2).float()
        x = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
        arrays[f"resized_{height}_{width}"] = x.permute(0, 2, 3, 1).numpy()[:, ::23, ::29]
    (ROOT / "tensors.json").write_text(json.dumps(shapes) + "\n")
    np.savez_compressed(ROOT / "io.npz", **arrays)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torch-fidelity", "numpy")}
    (ROOT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    size = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    print(f"{ROOT}: {size / 1e6:.2f} MB, features up to {features.max():.3f}, {versions}")


if __name__ == "__main__":
    main()
