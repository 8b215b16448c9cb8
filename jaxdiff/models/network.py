"""The contract of a network in a config: its options, what they fit, and the module."""

import dataclasses
from collections.abc import Collection
from typing import Any, ClassVar

from jaxdiff.family import Family


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """The options of a network; a member of the family is a subclass.

    Attributes:
      num_classes: labels are 0..num_classes, the last for "nothing said"; 0 for a network without classes.
      dropout: rate; above 0 the network takes dropout_keys in training.
      remat: compute activations again in the backward pass rather than keep them.
    """

    family: ClassVar[Family]
    draws: ClassVar[bool] = True
    """Whether it predicts, and samples can be drawn with it."""
    num_classes: int = 0
    dropout: float = 0.0
    remat: bool = False

    def check(self, shape: tuple[int, ...], cond: Collection[str]) -> None:
        """Refuses what does not fit x of shape (h, w, c) and a cond of these names.

        Raises:
          ValueError: FIELD is VALUE; and what would be right.
        """
        raise NotImplementedError

    def module(self, out_channels: int) -> Any:
        """The Linen module: apply(variables, x_t, t, cond, dropout_keys=None), cond a dict."""
        raise NotImplementedError

    def project(self, params: Any) -> Any:
        """What parameters are brought to after every update, such as weights of norm 1; by default they stay."""
        return params
