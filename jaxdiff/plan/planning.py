"""The plan of a run: its real train step compiled for TPU slices that are not there, and what follows."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax

from jaxdiff.assembly.training_program import Images, Program
from jaxdiff.config import Config
from jaxdiff.data.description import expect_dataset
from jaxdiff.errors import UserError
from jaxdiff.plan.chips import Topology, parse_topology, topology_devices
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
    images: Images | None = None,
) -> Plan:
    """Compiles the train step of a config for a TPU topology, on any machine, and says what it needs and may reach.

    Args:
      config: a valid config; parallel.mode is mesh.
      topology: such as "v5e:16x16", or "v5e:16x16@2" for two slices.
      batch_per_chip: in place of train.batch_size: so many images a chip.
      quick: compile this step only: no search for the largest batch, no other settings.
      images: the data; what TFDS says of config.data unless given.

    Raises:
      UserError: an unknown topology, one that the config does not fit, or no libtpu to compile with.
    """
    where = parse_topology(topology)
    if config.parallel.mode != "mesh":
        raise UserError("a plan is of parallel.mode=mesh, whose numbers pmap shares; set it to mesh")
    devices = topology_devices(where)
    if batch_per_chip is not None:
        config = with_batch(config, batch_per_chip * where.chips)
    if images is None:
        data = config.data
        images = expect_dataset(data.name, data.path, data.split, data.resize)

    def compile_config(config: Config) -> tuple[Program, Compiled]:
        program = Program(config, images, devices)
        return program, compile_for(program.lower(), where)

    program, compiled = compile_config(config)
    flops, model_flops = step_flops(program), step_flops(Program(without_remat(config), images, devices))
    largest, changes = None, ()
    if not quick:
        unit = config.train.accumulate * where.devices
        largest = largest_batch(
            lambda size: compile_config(with_batch(config, size))[1], config.train.batch_size, compiled, unit
        )
        changes = tuple(
            Change(setting, result, step_flops(other))
            for setting, changed in _changes(config, where)
            for other, result in [compile_config(changed)]
        )
    return Plan(
        topology=str(where),
        chips=where.chips,
        hosts=len({device.process_index for device in devices}),
        slices=where.slices,
        devices=where.devices,
        mesh=dict(program.mesh.shape),
        batch_size=config.train.batch_size,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(program.abstract.params)),
        state_bytes=state_bytes(program.abstract),
        flops=flops,
        model_flops=model_flops,
        compiled=compiled,
        estimate=roofline(compiled, where, flops, model_flops, config.train.batch_size) if compiled.fits else None,
        largest=largest,
        changes=changes,
    )


def plans(config: Config, topologies: Iterable[str], **options: Any) -> list[Plan]:
    """A plan for each topology; the names are checked before anything is compiled."""
    names = list(topologies)
    for name in names:
        parse_topology(name)
    return [plan(config, name, **options) for name in names]


def state_bytes(abstract: Any) -> int:
    """Bytes of a state on one device, from its shapes, dtypes and shardings, without the compiler's padding."""
    leaves = jax.tree.leaves(abstract)
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)


def step_flops(program: Program) -> int:
    """Of one step, over all devices."""
    return count_flops(
        program.plain_step, program.abstract, program.batch, program.keys["train"], program.abstract_frozen
    )


def with_batch(config: Config, batch_size: int) -> Config:
    """The config with another train.batch_size."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch_size))


def without_remat(config: Config) -> Config:
    """The config with model.remat off."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=False))


def _changes(config: Config, topology: Topology) -> list[tuple[str, Config]]:
    """The settings that trade time for memory, each the other way round: (its name, the config with it)."""
    remat = not config.model.remat
    fsdp = 1 if config.parallel.fsdp > 1 else topology.devices // topology.slices
    model, parallel = config.model, config.parallel
    return [
        (f"model.remat={remat}", dataclasses.replace(config, model=dataclasses.replace(model, remat=remat))),
        (f"parallel.fsdp={fsdp}", dataclasses.replace(config, parallel=dataclasses.replace(parallel, fsdp=fsdp))),
    ]
