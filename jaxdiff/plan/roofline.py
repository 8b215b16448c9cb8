"""The least time a step can take, from published peaks: an estimate, and an optimistic one."""

from typing import NamedTuple

from jaxdiff.plan.chips import Topology
from jaxdiff.plan.compiling import Compiled


class Roofline(NamedTuple):
    """Lower bounds of a step's time, each as if nothing else took any; their largest bounds the step.

    Attributes:
      compute: seconds for the arithmetic of convolutions and products at the bf16 peak.
      memory: seconds to read the state, write it, and write and read once what is kept in between.
      collectives: seconds to send what leaves a device, over all its links inside a slice; between slices it is
        slower, by how much is not estimated.
      step: the largest of the three: everything else hidden behind it.
      images: a second, at most, over all devices.
      mfu: model FLOPs utilisation at most: the arithmetic without recomputation, over the peak in the time of a step.
    """

    compute: float
    memory: float
    collectives: float
    step: float
    images: float
    mfu: float


def roofline(compiled: Compiled, topology: Topology, flops: int, model_flops: int, batch_size: int) -> Roofline:
    """The roofline of a step.

    Args:
      compiled: the step.
      topology: what it was compiled for.
      flops: of a step, over all devices.
      model_flops: of a step without recomputation.
      batch_size: images a step.
    """
    chip = topology.chip
    peak = chip.flops / chip.devices
    compute = flops / topology.devices / peak
    moved = 2 * (compiled.arguments + compiled.temporaries) + compiled.outputs
    memory = moved / (chip.hbm_bandwidth / chip.devices)
    sent = sum(collective.sent for collective in compiled.collectives) / (chip.ici_bandwidth / chip.devices)
    step = max(compute, memory, sent)
    return Roofline(compute, memory, sent, step, batch_size / step, model_flops / topology.devices / peak / step)
