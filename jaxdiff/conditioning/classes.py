"""Classes: one label an example."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning.base import Conditioner, nothing


def classes(num_classes: int, names: Sequence[str] = ()) -> Conditioner:
    """cond["label"], int32 in 0..num_classes: the last says nothing.

    Args:
      num_classes: >= 0; of none, nothing is said.
      names: of the classes, which may stand for their numbers.

    >>> conditioner = classes(10, ["zero", "one"])
    >>> conditioner.parse(["3", "one"], 4)["label"].tolist(), conditioner.null(None, 2)["label"].tolist()
    ([3, 1, 3, 1], [10, 10])
    """

    if not num_classes:
        return nothing()

    def parse(words: Sequence[str], num: int) -> dict[str, np.ndarray]:
        labels = [_number(word, num_classes, names) for word in words] or range(num_classes)
        return {"label": np.array(labels, np.int32)[np.arange(num) % len(labels)]}

    def misfit(count: int) -> str:
        has = f"has {count} classes" if count else "has no classes"
        return "" if count == num_classes else f"model.num_classes={num_classes}, but the data {has}; set it to {count}"

    return Conditioner(
        {"label": jax.ShapeDtypeStruct((), jnp.int32)},
        lambda params, batch: {"label": batch["label"]},
        lambda params, num: {"label": jnp.full((num,), num_classes, jnp.int32)},
        parse,
        tuple(map(str, range(num_classes))),
        misfit=misfit,
    )


def _number(word: str, num_classes: int, names: Sequence[str]) -> int:
    number = names.index(word) if word in names else int(word) if word.lstrip("-").isdigit() else -1
    if not 0 <= number < num_classes:
        known = f"0..{num_classes - 1}" + (f" or {', '.join(names)}" if names else "")
        raise ValueError(f"{word} is not a class of this run; they are {known}")
    return number
