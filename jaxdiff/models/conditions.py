"""Conditions of a network: arrays by name, and whether they are those that it was made for.

    label     int [batch]                     class 0 .. num_classes, the last for "none said"
    text      float [batch, tokens, width]    an embedded text, to which attention blocks attend
    mask      bool [batch, tokens]            which tokens of the text count; without it all do
    pooled    float [batch, width]            the text as one vector
    image     float [batch, h, w, c]          of x's sides, concatenated to its channels
    guidance  float [batch]                   the guidance scale that a distilled network imitates
    r         float [batch]                   the time that a network of two times leads to
    augment   float [batch, width]            what augmentation did to x, see `jaxdiff.augmentations`

A network has the parameters of those names that it was initialised with.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

Cond = Mapping[str, Array] | Array | None

_FORMS = {  # dtype and shape of each, past the batch
    "label": (jnp.integer, (), "one integer an image"),
    "text": (jnp.floating, ("tokens", "width"), "floats [batch, tokens, width]"),
    "mask": (jnp.bool_, ("tokens",), "booleans [batch, tokens], as many as the text has"),
    "pooled": (jnp.floating, ("width",), "floats [batch, width]"),
    "image": (jnp.floating, ("h", "w", "channels"), "floats [batch, h, w, c] of x's sides"),
    "guidance": (jnp.floating, (), "one number an image"),
    "r": (jnp.floating, (), "one number an image"),
    "augment": (jnp.floating, ("width",), "floats [batch, width]"),
}
VECTORS = ("pooled", "r", "augment")  # what is added to the time embedding
_MODULES = {"text": "cross_attention"} | {name: name for name in (*VECTORS, "guidance")}  # where parameters of each are


def by_name(cond: Cond) -> dict[str, Array]:
    """Conditions as a dict: {} for None; of a bare array, integers are labels and floats a text.

    >>> list(by_name(jnp.array([3, 1])))
    ['label']
    """
    if cond is None:
        return {}
    if isinstance(cond, Mapping):
        return dict(cond)
    return {"label" if jnp.issubdtype(cond.dtype, jnp.integer) else "text": cond}


def check_names(names: Iterable[str], num_classes: int) -> None:
    """Refuse names that no network knows, and labels where there are no classes or none where there are.

    >>> check_names(["label"], 0)
    Traceback (most recent call last):
    ...
    ValueError: num_classes is 0; label must be None then, or num_classes the number of classes
    """
    names = set(names)
    if unknown := sorted(names - _FORMS.keys()):
        raise ValueError(f"cond has {', '.join(unknown)}; its names must be of {', '.join(_FORMS)}")
    if num_classes and "label" not in names:
        raise ValueError(
            f"num_classes is {num_classes}; pass cond with a label, 0 to {num_classes} ({num_classes}: no class)"
        )
    if "label" in names and not num_classes:
        raise ValueError("num_classes is 0; label must be None then, or num_classes the number of classes")
    if "mask" in names and "text" not in names:
        raise ValueError("cond has a mask and no text; pass the text that it is of")


def check_arrays(cond: Mapping[str, Array], x: Array, t: Array, params: Mapping[str, Any], channels: int) -> None:
    """Refuse arrays of the wrong form, and conditions that the parameters were not made for.

    Args:
      cond: the conditions, of checked names.
      x: images [batch, h, w, c].
      t: times [batch]; a step's number is refused as far as it can be seen under jit.
      params: of the network; none while it is initialised.
      channels: of x and the condition image together, for which the parameters were made.
    """
    if t.shape != x.shape[:1]:
        raise ValueError(f"t has shape {t.shape}; it must be one time an image, {x.shape[:1]}")
    if jnp.issubdtype(t.dtype, jnp.integer) or (not isinstance(t, Tracer) and t.size and np.asarray(t).max() > 2):
        raise ValueError(f"a network takes times in [0, 1], t/T of step t in 0..T; got {t}")
    sizes = {"h": x.shape[1], "w": x.shape[2]}
    if "text" in cond and cond["text"].ndim == 3:
        sizes["tokens"] = cond["text"].shape[1]
    for name, value in cond.items():
        dtype, axes, right = _FORMS[name]
        shape = tuple(sizes.get(axis, size) for axis, size in zip(axes, value.shape[1:], strict=False))
        if value.shape != (*t.shape, *shape) or len(shape) != len(axes) or not jnp.issubdtype(value.dtype, dtype):
            raise ValueError(f"cond's {name} is {value.dtype}{list(value.shape)}; it must be {right}")
    if not params:
        return
    modules = {entry.key for path, _ in jax.tree_util.tree_leaves_with_path(params) for entry in path}
    for name, module in _MODULES.items():
        if (name in cond) != (module in modules):
            made, how = ("with", "pass it") if module in modules else ("without", "leave it out")
            raise ValueError(f"the network was initialised {made} the condition {name}; {how}")
    given = x.shape[-1] + (cond["image"].shape[-1] if "image" in cond else 0)
    if given != channels:
        raise ValueError(f"x and cond's image have {given} channels; the network was initialised with {channels}")
