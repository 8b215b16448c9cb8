"""A small convolutional classifier of 28x28 grey images, for its features: what distances between image sets use."""

import flax.linen as nn
from jaxtyping import Array, Float

FEATURES = 96


class Classifier(nn.Module):
    """Three convolutions and two dense layers; 6 MFLOP an image.

    Attributes:
      num_classes: of the logits.

    >>> import jax, jax.numpy as jnp
    >>> net = Classifier(10)
    >>> params = net.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    >>> [x.shape for x in net.apply(params, jnp.zeros((2, 28, 28, 1)))]
    [(2, 96), (2, 10)]
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch 28 28 1"]
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """Images in [-1, 1] to features (the last hidden layer, after its ReLU) and logits."""
        h = nn.relu(nn.Conv(32, (5, 5), 2, name="conv1")(x))
        h = nn.relu(nn.Conv(64, (3, 3), 2, name="conv2")(h))
        h = nn.relu(nn.Conv(64, (3, 3), name="conv3")(h))
        features = nn.relu(nn.Dense(FEATURES, name="dense1")(h.reshape(h.shape[0], -1)))
        return features, nn.Dense(self.num_classes, name="dense2")(features)
