"""Memory of a compiled program, as XLA has planned it."""

from typing import Any, NamedTuple

import jax


class Memory(NamedTuple):
    """Bytes a device needs for a compiled program.

    Attributes:
      arguments: what is passed in; donated buffers are here and not in outputs.
      outputs: what comes out beside donated buffers.
      temporaries: what it works with.
    """

    arguments: int
    outputs: int
    temporaries: int

    @property
    def total(self) -> int:
        """All three."""
        return sum(self)


def step_memory(compiled: jax.stages.Compiled) -> Memory:
    """What XLA has planned for a program from `.lower(...).compile()`."""
    plan: Any = compiled.memory_analysis()
    outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Memory(plan.argument_size_in_bytes, outputs, plan.temp_size_in_bytes)
