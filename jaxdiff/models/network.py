"""The contract of a network in a config: its options, what they fit, and the module."""

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array

from jaxdiff.family import Family
from jaxdiff.models import conditions
from jaxdiff.models.conditions import Cond


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """The options of a network; a member of the family is a subclass."""

    family: ClassVar[Family]
    draws: ClassVar[bool] = True
    """Whether it predicts, and samples can be drawn with it."""
    num_classes: int = 0
    """Classes to condition on; 0 for an unconditional model."""
    dropout: float = 0.0
    """Dropout rate."""
    remat: bool = False
    """Compute activations again in the backward pass rather than keep them."""

    def check(self, shape: tuple[int, ...], cond: Mapping[str, Any] | Iterable[str] = ()) -> None:
        """Refuse options that do not fit each other, the images or the conditions.

        Args:
          shape: of x, (h, w, c).
          cond: names of the conditions, see `jaxdiff.models.conditions`.

        Raises:
          ValueError: FIELD is VALUE; and what would be right.
        """
        raise NotImplementedError

    def module(self, out_channels: int) -> Any:
        """The Linen module of these options, for images of so many channels (a learned variance has twice as many).

        It takes (x, t, cond=None, *, dropout_keys=None), all float32, and gives [batch, h, w, out_channels], float32:

          x: noisy images [batch, h, w, c], in about [-1, 1] at t = 0.
          t: noise time in [0, 1], one an image.
          cond: conditions by name, see `jaxdiff.models.conditions`; integers alone are labels, floats alone a text.
            A label if and only if there are classes; one beyond the last gives NaN.
          dropout_keys: one key an example; None turns dropout off.

        It raises ValueError for sizes that do not fit (see `check`), t not [batch], and conditions that are missing,
        unknown or misshapen.
        """
        raise NotImplementedError

    def project(self, params: Any) -> Any:
        """What parameters are brought to after every update, such as weights of norm 1; by default they stay."""
        return params


def check_common(own: Any, kind: type, shape: tuple[int, ...], **ranges: tuple[float, float]) -> None:
    """Refuses what is no choice of a Literal, out of its range, or no shape (h, w, c).

    Args:
      own: the options, or a module that has their fields.
      kind: the class of the options.
      shape: of x.
      **ranges: of numbers, ends included; None is no number. Dropout has its own.

    Raises:
      ValueError: FIELD is VALUE; and what would be right.
    """
    for field, hint in typing.get_type_hints(kind).items():
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
        if choices and getattr(own, field) not in choices:
            raise ValueError(f"{field} is {getattr(own, field)!r}; it must be one of {', '.join(map(str, choices))}")
    for field, (low, high) in ranges.items():
        if (value := getattr(own, field)) is not None and not low <= value <= high:
            raise ValueError(f"{field} is {value}; it must be in {low}..{high}")
    if not 0.0 <= own.dropout < 1.0:
        raise ValueError(f"dropout is {own.dropout}; it must be in [0, 1)")
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"images have shape {tuple(shape)}; it must be (h, w, c), all positive")


def checked_input(
    module: Any, options: NetworkOptions, x: Array, t: Array, cond: Cond, channels: Callable[[Mapping], int]
) -> tuple[Array, dict[str, Array]]:
    """x with the condition image beside its channels, and the conditions by name.

    Args:
      module: the network, when it is called.
      options: of it.
      x: images.
      t: times.
      cond: conditions.
      channels: the network's parameters -> the channels for which they were made.

    Raises:
      ValueError: what does not fit the options, or the parameters.
    """
    by_name = conditions.by_name(cond)
    options.check(x.shape[1:], by_name)
    params = {} if module.is_initializing() else module.variables["params"]
    conditions.check_arrays(by_name, x, t, params, channels(params) if params else 0)
    if "image" in by_name:
        x = jnp.concatenate([x, by_name["image"].astype(x.dtype)], axis=-1)
    return x, by_name
