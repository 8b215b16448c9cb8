"""TPU chips as published, the topologies one can rent, and their devices without the hardware."""

import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Any

import jax

from jaxdiff.errors import UserError

GiB = 2**30
_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")


@dataclass(frozen=True)
class Chip:
    """One generation of TPU, all numbers a chip.

    Attributes:
      devices: JAX devices a chip; they share its memory, arithmetic and links equally.
      hbm: bytes of memory that a program gets, as the compiler states when it runs out; published is a little more.
      flops: bf16 operations a second.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second that leave the chip over all its links (half of the bidirectional figure).
      shapes: the slices that are offered.
      options: what libtpu wants to know beside the shape.
    """

    devices: int
    hbm: int
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    shapes: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()


# Peaks: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read November 2026, except v4's links: 6 of 50 GB/s,
# Jouppi et al. 2023 (arXiv 2304.01433), table 4. Published memory: 32, 16, 95, 32 and 192 GB.
CHIPS = {
    "v4": Chip(1, int(30.75 * GiB), 275e12, 1200e9, 300e9, _CUBE, (("chip_config_name", "megacore"),)),
    "v5e": Chip(1, int(15.75 * GiB), 197e12, 819e9, 200e9, _PLANE),
    "v5p": Chip(1, int(95.73 * GiB), 459e12, 2765e9, 600e9, (*_CUBE, "16x16x24")),
    "v6e": Chip(1, int(31.24 * GiB), 918e12, 1638e9, 400e9, _PLANE),
    "tpu7x": Chip(2, int(2 * 94.74 * GiB), 2307e12, 7380e9, 600e9, _CUBE),
}


@dataclass(frozen=True)
class Topology:
    """One or more slices of one shape.

    Attributes:
      generation: a key of CHIPS.
      shape: of a slice, such as 16x16.
      slices: how many, joined by the data-center network.
    """

    generation: str
    shape: str
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """The generation's entry in CHIPS."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * math.prod(int(side) for side in self.shape.split("x"))

    @property
    def devices(self) -> int:
        """What JAX counts: on tpu7x two a chip."""
        return self.chips * self.chip.devices

    @property
    def hbm(self) -> int:
        """Bytes of memory a device."""
        return self.chip.hbm // self.chip.devices

    def __str__(self) -> str:
        return f"{self.generation}:{self.shape}" + (f"@{self.slices}" if self.slices > 1 else "")


def parse_topology(name: str) -> Topology:
    """A topology from its name, `GENERATION:SHAPE` or, for several slices, `GENERATION:SHAPE@SLICES`.

    Raises:
      UserError: there is none of that name; the known ones are listed.

    >>> parse_topology("v5e:16x16@2")
    Topology(generation='v5e', shape='16x16', slices=2)
    >>> parse_topology("v5e:3x3")
    Traceback (most recent call last):
    ...
    jaxdiff.errors.UserError: unknown topology v5e:3x3; v5e has 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16
    """
    slice_name, at, slices = name.partition("@")
    generation, _, shape = slice_name.partition(":")
    if generation not in CHIPS:
        known = "; ".join(f"{name}:{{{','.join(chip.shapes)}}}" for name, chip in CHIPS.items())
        raise UserError(f"unknown topology {name}; known are {known}; NAME@2 is two slices")
    shapes = CHIPS[generation].shapes
    if shape not in shapes:
        raise UserError(f"unknown topology {name}; {generation} has {', '.join(shapes)}")
    if at and not (slices.isascii() and slices.isdigit() and 1 <= int(slices) <= 256):
        raise UserError(f"unknown topology {name}; after @ comes the number of slices, 1 to 256")
    return Topology(generation, shape, int(slices or 1))


def topology_devices(topology: Topology) -> list[Any]:
    """Devices to compile for; nothing can run on them, and no TPU is needed.

    Raises:
      UserError: libtpu, which has the compiler, is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("a plan for TPUs needs libtpu: install the extra tpu (uv sync --extra tpu)")
    # libtpu looks for the machine it runs on, which here is none of its own, and says so at length.
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    quiet |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
    for variable, value in quiet.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    name = f"{topology.generation}:{topology.shape}"
    options: dict[str, Any] = dict(topology.chip.options)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"the installed libtpu does not know {name}: {first}; uv sync --extra tpu") from error
