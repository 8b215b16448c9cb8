"""Trains the classifier whose features measure Fashion-MNIST samples, and writes its weights as float16.

    uv run scripts/train_classifier.py FOLDER [OUT.safetensors] [--epochs 8]

FOLDER holds the four idx files. OUT is by default jaxdiff/evaluation/fashion_mnist_classifier.safetensors, which is in
the repository: numbers measured with other weights compare with nothing, so it is written again only for a new name.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff.data.batches import Batches
from jaxdiff.data.sources import open_dataset
from jaxdiff.interop import names, safetensors
from jaxdiff.models import Classifier

BATCH = 128


def accuracy(logits, images, labels) -> float:
    """The share of images whose largest logit is their label."""
    parts = np.array_split(np.arange(len(images)), 20)
    return float(np.mean(np.concatenate([np.argmax(logits(images[part]), 1) == labels[part] for part in parts])))


def main() -> None:
    """Trains, rounds, tests and writes."""
    default = Path(__file__).parent.parent / "jaxdiff" / "evaluation" / "fashion_mnist_classifier.safetensors"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out", type=Path, nargs="?", default=default)
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    train, test = (open_dataset("fashion_mnist", arguments.folder, split) for split in ("train", "test"))
    steps = arguments.epochs * len(train) // BATCH
    net = Classifier(train.num_classes)
    params = net.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 2e-3, 100, steps), weight_decay=0.05)

    def scale(images):
        return images.astype(jnp.float32) / 127.5 - 1.0

    def loss(params, images, labels):
        logits = net.apply({"params": params}, scale(images))[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        value, grads = jax.value_and_grad(loss)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    with Batches(train, 0, BATCH, flip=True).iterate(0) as batches:
        for i in range(steps):
            batch = next(batches)
            params, state, value = step(params, state, batch["image"], batch["label"])
            if i % 200 == 0 or i == steps - 1:
                print(f"step {i} of {steps}  loss {float(value):.4f}", flush=True)

    tensors = {path: np.asarray(value, np.float16) for path, value in names.leaf_paths(params)}
    rounded = jax.tree.map(lambda w: w.astype(jnp.float16).astype(jnp.float32), params)
    logits = jax.jit(lambda images: net.apply({"params": rounded}, scale(images))[1])
    records = test.gather(np.arange(len(test)))
    score = accuracy(logits, records["image"], records["label"])
    safetensors.write(arguments.out, tensors, {"data": "fashion_mnist", "test_accuracy": f"{score:.4f}"})
    print(f"test accuracy {score:.4f} with float16 weights; {arguments.out} has {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
