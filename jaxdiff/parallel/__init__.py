"""One mesh over all devices, one table that says what lies where, and the compiled step.

The mesh has two axes, ("data", "fsdp"). A batch is split over both; parameters, their average and the optimizer's
moments are split over "fsdp" and copied over "data" (Rajbhandari et al. 2020, ZeRO; a step gathers each parameter
once and keeps it for the backward pass). Which leaf is split how is data: (pattern, rule) pairs, the first pattern
found in the leaf's name decides. With a third axis, "tensor", transformer blocks are split too: heads and the MLP's
features over it, each device with every row of its batch (Shoeybi et al. 2019, Megatron-LM); the partitioner adds a sum
over the axis after attention and after the MLP.

Numbers do not depend on the layout beyond the order of float32 sums: with n terms of size |x_i| a sum differs by at
most n * 6e-8 * sum |x_i|, and in practice by a few 1e-7 relative.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from jaxdiff.errors import UserError
from jaxdiff.parallel.several_steps import make_call
from jaxdiff.training.state import TrainState, leaf_name

Rule = Callable[[tuple[int, ...], int], P]


def replicated(shape: tuple[int, ...], fsdp: int) -> P:
    """A whole copy on every device."""
    del shape, fsdp
    return P()


def largest_axis(shape: tuple[int, ...], fsdp: int) -> P:
    """Split the largest axis that `fsdp` divides (the last of equals); a copy where it divides none.

    >>> largest_axis((3, 3, 64, 128), 4)
    P(None, None, None, 'fsdp')
    >>> largest_axis((3, 5), 4)
    P()
    """
    divisible = [axis for axis, size in enumerate(shape) if size and size % fsdp == 0]
    if fsdp == 1 or not divisible:
        return P()
    chosen = max(divisible, key=lambda axis: (shape[axis], axis))
    return P(*[None] * chosen, "fsdp")


RULES: tuple[tuple[str, Rule], ...] = (
    (r"(^|/)(step|count)$|^objective/(?!teacher/)", replicated),
    (r"/(bias|scale)$", replicated),  # vectors: under 1 % of the bytes, not worth a collective each
    (r"^(params|ema_params|opt_state|posthoc|frozen|objective)/", largest_axis),
)


_BLOCK = r"(^|/)blocks/"
TENSOR: tuple[
    tuple[str, int], ...
] = (  # pattern, the axis that is split: outputs of the first product, inputs of the second
    (_BLOCK + r"(cross_)?attention/(query|key|value)/(kernel|bias)$", -1),
    (_BLOCK + r"(cross_)?attention/proj/kernel$", -2),
    (_BLOCK + r"dense1/(kernel|bias)$", -1),
    (_BLOCK + r"dense2/kernel$", -2),
)


def tensor_axis(name: str, shape: tuple[int, ...], mesh: Mesh) -> int | None:
    """Which axis of a leaf is split over "tensor", counted from the front; None for none.

    >>> mesh = make_mesh()
    >>> tensor_axis("params/blocks/dense1/kernel", (12, 8, 32), mesh) is None  # there is no such axis in the mesh
    True
    """
    size = mesh.shape.get("tensor", 1)
    axis = next((axis for pattern, axis in TENSOR if re.search(pattern, name)), None)
    return None if size == 1 or axis is None or shape[axis] % size else len(shape) + axis


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None, tensor: int = 1) -> Mesh:
    """The mesh ("data", "fsdp") over all devices; over several slices, "data" spans them and the rest stays inside one.

    Args:
      fsdp: devices that share one copy of the parameters, >= 1; it divides the devices (of a slice).
      devices: all of `jax.devices()` unless given.
      tensor: devices over which transformer blocks are split; above 1 the mesh has a third axis, "tensor".

    Returns:
      A mesh of shape (devices/fsdp, fsdp), or (devices/fsdp/tensor, fsdp, tensor), axis types Auto.

    Raises:
      UserError: fsdp, or fsdp times tensor, does not divide the number of devices.

    >>> make_mesh(fsdp=1).axis_names
    ('data', 'fsdp')
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    inside = len(devices) // slices
    if fsdp < 1 or inside % fsdp:
        legal = ", ".join(str(n) for n in range(1, inside + 1) if inside % n == 0)
        raise UserError(f"parallel.fsdp={fsdp} does not divide the {inside} devices of a slice; use one of {legal}")
    if tensor < 1 or (inside // fsdp) % tensor:
        raise UserError(f"parallel.tensor={tensor} does not divide the {inside // fsdp} devices that fsdp leaves")
    shape, names = (inside // fsdp, fsdp), ("data", "fsdp")
    if tensor > 1:
        shape, names = (inside // fsdp // tensor, fsdp, tensor), (*names, "tensor")
    if slices > 1:
        over = (slices, *[1] * (len(shape) - 1))
        grid = mesh_utils.create_hybrid_device_mesh(shape, over, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))


def state_shardings(state: Any, mesh: Mesh, rules: Sequence[tuple[str, Rule]] = RULES) -> Any:
    """The sharding of every leaf, by the first rule whose pattern is found in its name.

    Args:
      state: a TrainState of arrays or ShapeDtypeStructs.
      mesh: from `make_mesh`.
      rules: (regular expression, rule) pairs.

    Returns:
      The same tree of NamedShardings.

    Raises:
      ValueError: a leaf that no pattern covers.
    """

    def resolve(path: tuple, leaf: Any) -> NamedSharding:
        name = leaf_name(path)
        for pattern, rule in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, _with_tensor(name, leaf.shape, mesh, rule))
        raise ValueError(f"no sharding rule covers the leaf {name}; add a (pattern, rule) pair for it")

    return jax.tree_util.tree_map_with_path(resolve, state)


def _with_tensor(name: str, shape: tuple[int, ...], mesh: Mesh, rule: Rule) -> P:
    """What the rule says of the other axes, and the leaf's own axis over "tensor"."""
    axis = tensor_axis(name, shape, mesh)
    if axis is None:
        return rule(shape, mesh.shape["fsdp"])
    others = rule((*shape[:axis], 1, *shape[axis + 1 :]), mesh.shape["fsdp"])
    spec = [*others, *[None] * (len(shape) - len(others))]
    spec[axis] = "tensor"
    return P(*spec)


def abstract_state(init: Callable[..., TrainState], mesh: Mesh, *args: Any) -> TrainState:
    """Shapes, dtypes and shardings of `init(*args)`, without computing it: what restoring and compiling need."""
    shapes = jax.eval_shape(init, *args)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def abstract_frozen(frozen: Any, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of trees that a step takes and does not train, split as parameters are."""
    shardings = state_shardings({"frozen": frozen}, mesh)["frozen"]
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), frozen, shardings
    )


def _batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    return NamedSharding(mesh, P(*[None] * axis, ("data", "fsdp")))


def _local_devices(mesh: Mesh) -> list[Any]:
    return [device for device in mesh.devices.flat if device.process_index == jax.process_index()]


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " local"]:
    """The rows of the global batch that this process reads, ascending; all of them where there is one process.

    Args:
      mesh: from `make_mesh`.
      batch_size: rows of the global batch, a multiple of the number of devices.

    Raises:
      UserError: the devices do not divide the batch.

    >>> [int(row) for row in local_rows(make_mesh(), jax.device_count())] == list(range(jax.device_count()))
    True
    """
    size = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size < 1 or batch_size % size:
        legal = max(1, round(batch_size / size)) * size
        raise UserError(
            f"train.batch_size={batch_size} does not divide over {size} devices; use a multiple such as {legal}"
        )
    indices = _batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in indices]))


def shard_batch(batch: Any, mesh: Mesh, mode: str = "mesh") -> Any:
    """Put this process's rows of a batch (see `local_rows`) on its devices, in the layout of `compile_step`.

    Args:
      batch: a tree of NumPy arrays [local rows, ...].
      mesh: from `make_mesh`.
      mode: "mesh" gives global arrays [batch, ...]; "pmap" gives [local devices, rows a device, ...].
    """
    return _place(batch, 0, mesh, mode)


def shard_batches(batches: Sequence[Any], most: int, mesh: Mesh, mode: str = "mesh") -> tuple[np.int32, Any]:
    """(count, batches) of a call of up to `most` steps: as `shard_batch`, with an axis of `most` before the rows.

    >>> count, batches = shard_batches([{"row": np.arange(jax.device_count())}] * 2, 3, make_mesh())
    >>> int(count), batches["row"].shape == (3, jax.device_count())
    (2, True)
    """
    padded = [*batches, *[batches[-1]] * (most - len(batches))]
    return np.int32(len(batches)), _place(jax.tree.map(lambda *x: np.stack(x), *padded), 1, mesh, mode)


def _place(batch: Any, axis: int, mesh: Mesh, mode: str) -> Any:
    """Arrays on this process's devices, their rows on `axis` spread over all."""
    if mode == "mesh":
        sharding = _batch_sharding(mesh, axis)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
    devices = _local_devices(mesh)
    sharding = NamedSharding(Mesh(np.array(devices), ("batch",)), P("batch"))

    def spread(x: np.ndarray) -> jax.Array:
        pieces = x.reshape(*x.shape[:axis], len(devices), -1, *x.shape[axis + 1 :])
        return jax.device_put(np.moveaxis(pieces, axis, 0), sharding)

    return jax.tree.map(spread, batch)


def put(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array of which every process holds the whole; `jax.device_put` would have them compare it first."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def compile_step(
    step: Callable[..., tuple[TrainState, Any]],
    state: TrainState,
    mesh: Mesh,
    mode: str = "mesh",
    steps_per_call: int = 1,
    frozen: Any = (),
) -> Callable[..., tuple[TrainState, Any]]:
    """Compile a step of `make_train_step` for the mesh; the state passed in is donated, so use the one returned.

    Args:
      step: (state, batch, key, frozen=(), axis_name=None) -> (state, metrics).
      state: the state or its abstract twin, for its structure.
      mesh: from `make_mesh`.
      mode: "mesh" (jit with shardings) or "pmap" (the same numbers; no fsdp).
      steps_per_call: above 1, up to so many steps by one call, see `calls.make_call`.
      frozen: trees that the step takes and does not train, or their abstract twins; empty: it is called without.

    Returns:
      (state, batch, key[, frozen]) -> (state, metrics), with `.lower` for inspection; batch from `shard_batch`, or from
      `shard_batches` for several steps.

    Raises:
      ValueError: an unknown mode.
      UserError: pmap with fsdp > 1.
    """
    several = steps_per_call > 1
    step = make_call(step) if several else step
    if mode == "mesh":
        shardings = state_shardings(state, mesh)
        kept = [state_shardings({"frozen": frozen}, mesh)["frozen"]] if frozen else []
        everywhere = NamedSharding(mesh, P())
        batch = (everywhere, _batch_sharding(mesh, 1)) if several else _batch_sharding(mesh)

        # Left to itself, the partitioner splits layers by channel and sends activations around.
        def gather(tree: Any) -> Any:
            def whole(path: tuple, x: jax.Array) -> jax.Array:
                spec = _with_tensor(leaf_name(path), x.shape, mesh, replicated)
                return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

            return jax.tree_util.tree_map_with_path(whole, tree)

        return jax.jit(
            functools.partial(step, gather=gather),
            in_shardings=(shardings, batch, everywhere, *kept),
            out_shardings=(shardings, everywhere),
            donate_argnums=0,
        )
    if mode != "pmap":
        raise ValueError(f"mode={mode!r} is unknown; use 'mesh' or 'pmap'")
    if mesh.shape["fsdp"] > 1:
        raise UserError("parallel.mode=pmap copies the state to every device; set parallel.fsdp=1 or mode=mesh")
    return _compile_pmap(step, mesh, (None, 0) if several else 0, bool(frozen))


def _compile_pmap(
    step: Callable[..., tuple[TrainState, Any]], mesh: Mesh, batch_axes: Any, frozen: bool
) -> Callable[..., Any]:
    """The step under `jax.pmap`; the state is a copy on every device, as in mesh mode without fsdp."""
    lazy = jax.pmap(
        functools.partial(step, axis_name="batch"),
        axis_name="batch",
        in_axes=(None, batch_axes, None, *[None] * frozen),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )
    copies = NamedSharding(Mesh(mesh.devices.flatten(), ("batch",)), P())
    local = NamedSharding(Mesh(np.array(_local_devices(mesh)), ("batch",)), P())

    def run(state: TrainState, batch: Any, key: Any, *frozen: Any, pmapped: Any = lazy) -> tuple[TrainState, Any]:
        if jax.process_count() > 1:  # there pmap wants and gives local arrays, the library global ones
            return view(pmapped(view(state, local), batch, key, *view(frozen, local)), copies)
        if state.step.sharding != copies:  # once; else pmap would compile for the first call and again for the rest
            state = jax.device_put(state, copies)
        return pmapped(state, batch, key, *frozen)

    def view(tree: Any, sharding: NamedSharding) -> Any:
        """The same buffers under another sharding."""
        return jax.tree.map(
            lambda x: jax.make_array_from_single_device_arrays(
                x.shape, sharding, [shard.data for shard in x.addressable_shards]
            ),
            tree,
        )

    run.lower = lazy.lower
    return run
