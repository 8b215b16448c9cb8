"""Features of images of any size, for `--features tests.toy_features:features`: means of channels and of squares."""

import jax.numpy as jnp

from jaxdiff.evaluation.extractors import Extractor


def apply(params, images):
    x = images.astype(jnp.float32) * params
    features = jnp.concatenate([x.mean(axis=(1, 2)), (x**2).mean(axis=(1, 2))], axis=-1)
    return features, features


def features():
    return Extractor("means", "1", "none", None, jnp.float32(0.1), apply)
