"""Conditioners: what a network is told beside x_t and t."""

from jaxdiff.conditioning.base import Cond, Conditioner, hidden, nothing, with_augmentation
from jaxdiff.conditioning.classes import classes
from jaxdiff.conditioning.text import frozen_text, text
from jaxdiff.family import Family

CONDITIONERS = Family(
    "conditioner",
    {"nothing": nothing, "classes": classes, "text": text},
    given=("num_classes", "names", "captions", "known"),
)

__all__ = [
    "CONDITIONERS",
    "Cond",
    "Conditioner",
    "classes",
    "frozen_text",
    "hidden",
    "nothing",
    "text",
    "with_augmentation",
]
