"""One pass over a stream of images that keeps what the metrics need of it, and no image.

FID needs moments, the Inception score sums of probabilities: both of a size that does not grow. KID, precision, recall,
density and coverage need features, the sliced Wasserstein distance projections: a row an image.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt8

from jaxdiff.codecs import from_uint8
from jaxdiff.evaluation import inception_score, moments
from jaxdiff.evaluation.extractors import Extractor
from jaxdiff.evaluation.sliced_wasserstein import directions, project
from jaxdiff.parallel import put

DIRECTIONS = 256
"""Random directions of the sliced Wasserstein distance, the same for every set."""


class Collected:
    """What was kept of the images of one set.

    Attributes:
      n: how many images there were.
      gaussian: mean and covariance of their features.
      inception_score: of their logits.
      features: float32 [kept, d], of the first `keep` images.
      projections: float32 [kept, DIRECTIONS], of their pixels in [-1, 1].
    """

    def __init__(self, state: "_State", features: list[np.ndarray], projections: list[np.ndarray]):
        self.gaussian = moments.finish(state[0])
        self.inception_score = inception_score.finish(state[1])
        self.n = self.gaussian.n
        self.features, self.projections = np.concatenate(features), np.concatenate(projections)


_State = tuple[moments.Moments, inception_score.ClassSums]


class Collector:
    """Collects sets of images of one shape, spread over the devices of a mesh; compiled once.

    Args:
      extractor: of the features.
      shape: (h, w, c) of every image.
      batch_size: images at a time, rounded up to a multiple of the devices.
      mesh: the devices. Every process of it gives the same images, and gets the same numbers.
    """

    def __init__(self, extractor: Extractor, shape: tuple[int, int, int], batch_size: int, mesh: Mesh):
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, P(mesh.axis_names))
        copies = NamedSharding(mesh, P())
        u = directions(jax.random.key(0, impl="threefry2x32"), int(np.prod(shape)), DIRECTIONS)
        self._directions = put(np.asarray(u), copies)
        self._params = jax.tree.map(lambda x: put(np.asarray(x), copies), extractor.params)

        def add(
            u: Array,
            state: _State,
            images: UInt8[Array, "b h w c"],
            features: Float[Array, "b d"],
            logits: Float[Array, "b classes"],
            weight: Float[Array, " b"],
        ) -> tuple[_State, Array]:
            projections = project(from_uint8(images), u)
            new = moments.add(state[0], features, weight), inception_score.add(state[1], logits, weight)
            return new, projections

        self._add = jax.jit(add, out_shardings=copies)
        self._apply = jax.jit(extractor.apply, out_shardings=(copies, self._rows))

    def collect(self, batches: Iterable[UInt8[np.ndarray, "b h w c"]], keep: int) -> Collected:
        """One pass over batches, of `batch_size` images each but the last.

        Args:
          batches: images.
          keep: of how many, from the first on, features and projections are kept.
        """
        state: _State | None = None
        features: list[np.ndarray] = []
        projections: list[np.ndarray] = []
        seen = 0
        for images in batches:
            n = len(images)
            padded = np.concatenate([images, np.zeros((self.batch_size - n, *images.shape[1:]), np.uint8)])
            weight = (np.arange(self.batch_size) < n).astype(np.float32)
            placed = put(padded, self._rows)
            extracted, logits = self._apply(self._params, placed)
            if state is None:
                shift = jnp.asarray(np.asarray(extracted)[:n].mean(axis=0))
                state = jax.tree.map(np.asarray, (moments.init(shift), inception_score.init(logits.shape[1])))
            state, projected = self._add(self._directions, state, placed, extracted, logits, put(weight, self._rows))
            left = max(0, min(keep - seen, n))
            features.append(np.asarray(extracted)[:left])
            projections.append(np.asarray(projected)[:left])
            seen += n
        if state is None:
            raise ValueError("there are no images to collect")
        return Collected(state, features, projections)
