"""The plan of a run: its real train step compiled for TPU slices that are not there, and what follows."""

import dataclasses
import math
from typing import Any

import jax

from jaxdiff.assembly.assemble import assemble
from jaxdiff.assembly.training_program import Program
from jaxdiff.config import Config
from jaxdiff.data.description import expect_dataset
from jaxdiff.errors import UserError
from jaxdiff.plan.chips import parse_topology, topology_devices
from jaxdiff.plan.compiling import Compiled, compile_for
from jaxdiff.plan.flops import count_flops
from jaxdiff.plan.largest import Largest, largest_batch
from jaxdiff.plan.roofline import Roofline, roofline


@dataclasses.dataclass(frozen=True)
class Change:
    """What another setting would do.

    Attributes:
      setting: such as "model.remat=True".
      compiled: what compiling with it came to.
      flops: of a step.
    """

    setting: str
    compiled: Compiled
    flops: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will be on one topology. Bytes are a device's (on tpu7x, half a chip's).

    Attributes:
      topology: GENERATION:SHAPE[@SLICES].
      chips: of all slices.
      hosts: machines.
      slices: joined by the data-center network.
      devices: JAX devices.
      mesh: devices along each axis.
      batch_size: images a step, over all devices.
      parameters: of the network.
      state_bytes: of parameters, average and moments on a device, counted from shapes and shardings.
      flops: of a step, counted from its jaxpr, recomputation included.
      model_flops: of a step without recomputation.
      compiled: what the compiler said.
      estimate: a roofline, not a measurement; None where it does not fit.
      largest: the largest batch that fits; None where it was not looked for.
      changes: what rematerialisation and fsdp would do; empty where not looked for.
    """

    topology: str
    chips: int
    hosts: int
    slices: int
    devices: int
    mesh: dict[str, int]
    batch_size: int
    parameters: int
    state_bytes: int
    flops: int
    model_flops: int
    compiled: Compiled
    estimate: Roofline | None
    largest: Largest | None
    changes: tuple[Change, ...]


def plan(
    config: Config,
    topology: str,
    *,
    batch_per_chip: int | None = None,
    quick: bool = False,
    images: Any = None,
) -> Plan:
    """Compiles the train step of a config for a TPU topology, on any machine, and says what it needs and may reach.

    Args:
      config: a valid config; parallel.mode is mesh.
      topology: such as "v5e:16x16", or "v5e:16x16@2" for two slices.
      batch_per_chip: in place of train.batch_size: so many images a chip.
      quick: compile this step only: no search for the largest batch, no other settings.
      images: the data, or its shape and num_classes; what TFDS says of config.data unless given.

    Raises:
      UserError: an unknown topology, one that the config does not fit, or no libtpu to compile with.
    """
    where = parse_topology(topology)
    if config.parallel.mode != "mesh":
        raise UserError("a plan is of parallel.mode=mesh, whose numbers pmap shares; set it to mesh")
    devices = topology_devices(where)
    if batch_per_chip is not None:
        config = changed(config, "train.batch_size", batch_per_chip * where.chips)
    if images is None:
        data = config.data
        images = expect_dataset(data.name, data.path, data.split, data.resize)

    def with_setting(name: str, value: Any) -> tuple[Program, Compiled]:
        """The step with another setting, and what compiling it came to."""
        other = assemble(changed(config, name, value), images, devices).program
        return other, compile_for(other.lower(), where)

    run = assemble(config, images, devices)
    program, compiled = run.program, compile_for(run.program.lower(), where)
    flops, model_flops = step_flops(program), step_flops(run.plain())
    batch_size, largest, changes = config.train.batch_size, None, []
    if not quick:
        unit = config.train.accumulate * where.devices
        largest = largest_batch(lambda size: with_setting("train.batch_size", size)[1], batch_size, compiled, unit)
        fsdp = 1 if config.parallel.fsdp > 1 else where.devices // where.slices
        for name, value in (("model.remat", not config.model.remat), ("parallel.fsdp", fsdp)):
            other, result = with_setting(name, value)
            changes.append(Change(f"{name}={value}", result, step_flops(other)))
    return Plan(
        topology=str(where),
        chips=where.chips,
        hosts=len({device.process_index for device in devices}),
        slices=where.slices,
        devices=where.devices,
        mesh=dict(program.mesh.shape),
        batch_size=batch_size,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params)),
        state_bytes=state_bytes(program.abstract),
        flops=flops,
        model_flops=model_flops,
        compiled=compiled,
        estimate=roofline(compiled, where, flops, model_flops, batch_size) if compiled.fits else None,
        largest=largest,
        changes=tuple(changes),
    )


def state_bytes(abstract: Any) -> int:
    """Bytes of a state on one device, from its shapes, dtypes and shardings, without the compiler's padding."""
    leaves = jax.tree.leaves(abstract)
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)


def step_flops(program: Program) -> int:
    """Of one step, over all devices."""
    return count_flops(
        program.plain_step, program.abstract, program.batch, program.keys["train"], program.abstract_frozen
    )


def changed(config: Config, name: str, value: Any) -> Config:
    """The config with another value of GROUP.FIELD.

    >>> changed(Config(), "train.batch_size", 3).train.batch_size
    3
    """
    group, _, field = name.partition(".")
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{field: value})})
