"""One pass over images, against the features computed at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data.sources import open_dataset
from jaxdiff.errors import UserError
from jaxdiff.evaluation.collect import Collector
from jaxdiff.evaluation.extractors import Extractor, fashion_mnist_classifier
from jaxdiff.evaluation.features import choose
from jaxdiff.parallel import make_mesh

IMAGES = np.random.default_rng(0).integers(0, 256, (37, 4, 4, 1), dtype=np.uint8)


def pixels(params, images):
    flat = images.reshape(images.shape[0], -1).astype(jnp.float32)
    return flat[:, :3] * params, flat[:, :5] / 50.0


TOY = Extractor("toy", "0", "none", (4, 4, 1), jnp.float32(2.0), pixels)


def test_in_batches_with_a_short_last_one_over_eight_devices():
    mesh = make_mesh()
    assert mesh.size == 8
    collector = Collector(TOY, (4, 4, 1), 10, mesh)
    assert collector.batch_size == 16  # a multiple of the devices
    found = collector.collect((IMAGES[i : i + 16] for i in (0, 16, 32)), keep=20)
    features = 2.0 * IMAGES.reshape(37, -1)[:, :3].astype(np.float64)
    assert found.n == 37
    np.testing.assert_allclose(found.gaussian.mean, features.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.gaussian.covariance, np.cov(features.T), rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(found.features, features[:20], rtol=1e-6)
    assert found.projections.shape[0] == 20
    p = np.asarray(jax.nn.softmax(IMAGES.reshape(37, -1)[:, :5] / 50.0, axis=1), np.float64)
    kl = (p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()
    assert found.inception_score == pytest.approx(np.exp(kl), rel=1e-4)


def test_no_images():
    with pytest.raises(ValueError, match="no images"):
        Collector(TOY, (4, 4, 1), 8, make_mesh()).collect([], keep=1)


def test_classifier_is_the_published_one_and_small():
    extractor = fashion_mnist_classifier()
    assert extractor.digest == "26daa837a5db049c"  # numbers measured with other weights compare with nothing
    with pytest.raises(UserError, match="take images of 28x28x1, and these are 32x32x3; give --features FILE"):
        choose(None, (32, 32, 3))


def test_classifier_accuracy_on_the_test_split():
    """As stated: 92.13 %; where the data set is."""
    folder = "/usr/share/datasets/fashion-mnist"
    try:
        source = open_dataset("fashion_mnist", folder, "test")
    except UserError:
        pytest.skip("Fashion-MNIST is not there")
    extractor = fashion_mnist_classifier()
    apply = jax.jit(lambda images: jnp.argmax(extractor.apply(extractor.params, images)[1], axis=1))
    records = source.gather(np.arange(len(source)))
    guesses = np.concatenate([apply(records["image"][i : i + 1000]) for i in range(0, 10_000, 1000)])
    assert np.mean(guesses == records["label"]) == pytest.approx(0.9213, abs=0.0005)
