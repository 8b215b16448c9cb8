"""Conditioners: what a network is told beside x_t and t."""

from jaxdiff.conditioning.base import Cond, Conditioner, hidden, nothing
from jaxdiff.conditioning.classes import classes
from jaxdiff.conditioning.text import text
from jaxdiff.family import Family

CONDITIONERS = Family("conditioner", {"nothing": nothing, "classes": classes}, given=("num_classes", "names"))

__all__ = ["CONDITIONERS", "Cond", "Conditioner", "classes", "hidden", "nothing", "text"]
