"""FID's network: outputs and resizes recorded from torch-fidelity by scripts/make_inception_fixtures.py."""

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.inception import folded, inception, resize
from jaxdiff.interop import safetensors

ROOT = Path(__file__).parent.parent / "fixtures" / "inception"
IO = np.load(ROOT / "io.npz")


def weight(name, shape):
    """As scripts/make_inception_fixtures.py has it."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    spread = 0.2 if len(shape) == 1 else 2.4 / np.sqrt(np.prod(shape[1:]))
    value = spread * np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    return (value + (len(shape) == 1 and name.endswith(("weight", "running_var")))).astype(np.float32)


def images(height, width):
    """Likewise."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    smooth = 127.5 + 127.5 * np.sin(0.2 * rows + 0.1 * columns)[..., None] * np.cos([0.0, 1.0, 2.0])
    noise = np.random.RandomState(height).randint(0, 256, (height, width, 3))
    return np.stack([smooth.astype(np.uint8), noise.astype(np.uint8)])


def write_weights(path):
    """The random weights of the fixtures as a file."""
    shapes = json.loads((ROOT / "tensors.json").read_text())
    safetensors.write(path, {name: weight(name, tuple(shape)) for name, shape in shapes.items()}, {})
    return path


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return inception(write_weights(tmp_path_factory.mktemp("inception") / "weights.safetensors"))


def test_features_and_logits_are_those_of_torch_fidelity(extractor):
    x = images(32, 32)
    apply = jax.jit(extractor.apply, compiler_options={"xla_backend_optimization_level": 0})
    features, logits = apply(extractor.params, x)
    for found, name in ((features, "features"), (logits, "logits")):
        assert np.std(IO[name]) > 0.1
        assert np.abs(found - IO[name]).max() <= 2e-5 * np.abs(IO[name]).max(), name


@pytest.mark.parametrize("size", [(32, 32), (20, 45), (299, 299), (640, 400)])
def test_images_are_resized_as_tensorflow_1_did(size):
    resized = resize(jnp.asarray(images(*size), jnp.float32), 299)[:, ::23, ::29]
    np.testing.assert_allclose(resized, IO["resized_{}_{}".format(*size)], atol=1e-3)


def test_grey_images_are_colour_images_of_one_colour(extractor):
    """As traced: the grey image is repeated, so its features are those of the colour image."""
    grey = jax.eval_shape(extractor.apply, extractor.params, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.uint8))
    assert [leaf.shape for leaf in grey] == [(1, 2048), (1, 1008)]


def test_batch_norms_become_part_of_the_convolutions():
    random = np.random.default_rng(0)
    k, x = random.normal(size=(4, 3, 1, 1)), random.normal(size=3)
    gamma, beta, mean, var = random.uniform(0.5, 2, (4, 4))
    norm = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": var}
    found = folded({"a.b.conv.weight": k, "fc.weight": k} | {f"a.b.bn.{name}": value for name, value in norm.items()})
    assert found.keys() == {"a_b.weight", "a_b.bias", "fc.weight"}
    wanted = gamma * (k[:, :, 0, 0] @ x - mean) / np.sqrt(var + 1e-3) + beta
    np.testing.assert_allclose(found["a_b.weight"][:, :, 0, 0] @ x + found["a_b.bias"], wanted, atol=1e-6)


def test_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no file"):
        inception(tmp_path / "none.pth")
    tensors = {"Mixed_5b.branch1x1.conv.weight": np.zeros((64, 192, 1, 1), np.float32), "more": np.zeros(1, np.float32)}
    safetensors.write(tmp_path / "x.safetensors", tensors, {})
    with pytest.raises(UserError, match=r"missing: Mixed_7c_branch_pool\.weight.*unknown: more"):
        inception(tmp_path / "x.safetensors")
