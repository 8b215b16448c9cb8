"""Reading one checkpoint: all of it, verified, or an error that says what is wrong with it."""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding

from jaxdiff.errors import RunError, UserError
from jaxdiff.storage import in_bucket, nameable, place
from jaxdiff.training import integrity
from jaxdiff.training.storage_faults import kind, reason, remedy

ATTEMPTS = 3  # of a save or a read on a store that fails now and then
PATIENCE_S = 1.0  # before the second attempt; twice that before the third
MANIFEST_BYTES = 2**26
COMMITTED = "commit_success.txt"  # Orbax writes it last where folders cannot be renamed
CACHE = {"cache_pool": {"total_bytes_limit": 10**8}}
Index = tuple[slice, ...] | None


class CheckpointError(RunError):
    """The run cannot go on from, or cannot write, its checkpoints: one line, what happened and what to do."""


class Corrupt(Exception):
    """One checkpoint is not what was saved; the message names the leaf."""


def directory_of(workdir: os.PathLike | str, folder: str = "checkpoints") -> epath.Path:
    """Where a workdir keeps its checkpoints, or another kind of them; Orbax wants it absolute.

    Raises:
      UserError: its name is one that a library below takes for something else.
    """
    path = place(workdir)
    return epath.Path(path if in_bucket(path) else nameable(os.path.abspath(path))) / folder


def steps_in(directory: epath.Path) -> list[int]:
    """The whole ones. A local folder has its name only once it is whole; in an object store a file says so."""
    return sorted(int(path.name) for path, whole in numbered(directory) if whole)


def numbered(directory: epath.Path) -> list[tuple[epath.Path, bool]]:
    """The folders that have a step's name, and whether each is whole."""
    if not directory.exists():
        return []
    paths = [path for path in directory.iterdir() if re.fullmatch(r"0|[1-9][0-9]{0,17}", path.name)]
    remote = in_bucket(directory)
    return [(path, not remote or (path / COMMITTED).exists()) for path in paths]


def known_steps(directory: epath.Path) -> list[int]:
    """The same, none only where there never was one: a run whose checkpoints all failed never starts again from 0.

    A save that was interrupted left no whole manifest of its arrays. Where several are complete but for Orbax's word,
    something took the files.
    """
    folders = numbered(directory)
    steps = sorted(int(path.name) for path, whole in folders if whole)
    if not steps and sum((path / "state" / "manifest.ocdbt").exists() for path, _ in folders) > 1:
        raise CheckpointError(
            f"no checkpoint in {directory} is whole: none has its {COMMITTED}; put the files back, or remove the "
            "folder to start from step 0"
        )
    if not steps and directory.exists() and any(path.name.startswith("corrupt-") for path in directory.iterdir()):
        raise CheckpointError(
            f"every checkpoint in {directory} is corrupt (set aside as corrupt-*); put a good copy back, or remove "
            "the folder to start from step 0"
        )
    return steps


def candidates(directory: epath.Path, step: int | None) -> list[int]:
    """The steps to try, newest first."""
    steps = known_steps(directory)
    if not steps:
        raise UserError(f"no checkpoint in {directory}; train first, or name the workdir of a run")
    if step is None:
        return steps[::-1]
    if step not in steps:
        raise UserError(f"no checkpoint of step {step} in {directory}; it has {', '.join(map(str, steps))}")
    return [step]


def newest_meta(directory: epath.Path) -> dict[str, Any]:
    """What was saved beside the newest checkpoint that has a manifest, without its arrays; {} where none has."""
    for step in steps_in(directory)[::-1]:
        with contextlib.suppress(Corrupt):
            return _manifest(directory / str(step) / "meta" / "metadata", step).meta
    return {}


def read(
    directory: epath.Path, step: int, wanted: dict[str, Any] | None, sharding: Sharding | None = None
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """One checkpoint's leaves, verified, in the order of `wanted` (or of the manifest), and its meta."""
    placements = [sharding] if wanted is None else [getattr(leaf, "sharding", None) for leaf in wanted.values()]
    spans = not all(place is None or place.is_fully_addressable for place in placements)
    result: tuple[integrity.Manifest, dict[str, jax.Array]] | Corrupt
    try:
        manifest = _manifest(directory / str(step) / "meta" / "metadata", step)
        result = manifest, _arrays(directory / str(step) / "state", _placed(manifest, step, wanted, sharding))
    except Corrupt as error:
        result = error
    if spans and multihost_utils.process_allgather(np.int32(isinstance(result, Corrupt))).any():
        result = result if isinstance(result, Corrupt) else Corrupt("state: another process cannot read it")
    if isinstance(result, Corrupt):
        raise result
    manifest, flat = result
    sums, _ = integrity.measure(flat)
    wrong = [name for name, leaf in manifest.leaves.items() if sums[name] != leaf.checksum]
    if wrong:
        others = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
        raise Corrupt(f"{wrong[0]}{others}: the bits differ from those saved")
    return flat, manifest.meta


def _manifest(path: epath.Path, step: int) -> integrity.Manifest:
    """The checked manifest of a step."""

    def attempt() -> integrity.Manifest:
        with path.open("rb") as file:  # not its size by etils, which looks up the owner's name
            content = file.read(MANIFEST_BYTES + 1)
        if len(content) > MANIFEST_BYTES:
            raise Corrupt(f"meta: larger than {MANIFEST_BYTES} bytes")
        return integrity.parse(content.decode())

    try:
        manifest = _patiently(path, attempt)
    except (OSError, ValueError) as error:
        raise Corrupt(f"meta: {reason(error)}") from error
    if manifest.step != step:
        raise Corrupt(f"meta: it is of step {manifest.step}")
    return manifest


def _placed(
    manifest: integrity.Manifest, step: int, wanted: dict[str, Any] | None, sharding: Sharding | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """What to read and where to put it, once the manifest fits what is wanted."""
    if wanted is not None and (differences := integrity.misfits(manifest.leaves, wanted)):
        raise UserError(f"checkpoint {step} does not fit this run: " + "; ".join(differences))
    abstract = {}
    for name in manifest.leaves if wanted is None else wanted:
        leaf = manifest.leaves[name]
        place = sharding if wanted is None else getattr(wanted[name], "sharding", None)
        place = place or SingleDeviceSharding(jax.local_devices()[0])
        abstract[name] = jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(leaf.dtype), sharding=place)
    return abstract


def _arrays(path: epath.Path, abstract: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Read this process's shards from the files Orbax wrote: zarr arrays in one OCDBT store.

    Orbax's own restore waits for the other processes, which hang if one cannot read, does not say which array
    failed, and of several failures reports the rest on stderr later.
    """
    context = ts.Context(CACHE)

    def attempt() -> dict[str, jax.Array]:
        name, opening, reading, flat = "state", {}, {}, {}
        try:
            for name in abstract:
                opening[name] = _open(path, name, context)
            for name, leaf in abstract.items():
                reading[name] = _start(opening[name].result(), leaf)
            for name, leaf in abstract.items():
                flat[name] = _finish(reading[name], leaf)
            return flat
        except (OSError, ValueError) as error:
            if kind(error) == "corrupt":
                raise Corrupt(f"{name}: {reason(error)}") from error
            raise

    return _patiently(path, attempt)


def verify(directory: epath.Path, step: int, document: dict[str, Any]) -> None:
    """Reads a checkpoint back, from the disk rather than the memory that caches it, and compares all of it.

    Of several processes each reads its share of the leaves, one leaf after another. No device is touched.

    Args:
      directory: of the checkpoints.
      step: which.
      document: the manifest as it was to be written (`integrity.describe`).

    Raises:
      Corrupt: it is not what was saved.
      CheckpointError: the store cannot be read.
    """
    path = directory / str(step)
    if not path.exists():
        raise Corrupt("it is missing")
    if not in_bucket(path):
        _flush(os.fspath(path))
    manifest = _manifest(path / "meta" / "metadata", step)
    meant = integrity.parse(json.dumps(document))
    if jax.process_index() > 0:  # process 0 wrote it, and only its own meta
        meant = meant._replace(meta=manifest.meta)
    if manifest != meant:
        raise Corrupt("meta: it differs from what was saved")
    context = ts.Context(CACHE)
    for name in list(manifest.leaves)[jax.process_index() :: jax.process_count()]:
        leaf = manifest.leaves[name]
        block = _patiently(path, lambda name=name, leaf=leaf: _whole(path / "state", name, leaf, context))
        if integrity.block_sum(block, (slice(None),) * block.ndim, block.shape) != leaf.checksum:
            raise Corrupt(f"{name}: the bits differ from those saved")


def _flush(folder: str) -> None:
    """Has the system bring a folder to the disk and, where it can be told, forget its own copy of the files."""
    for base, _, files in os.walk(folder):
        for path in (*(os.path.join(base, file) for file in files), base):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                if path != base and hasattr(os, "posix_fadvise"):  # Linux
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _whole(path: epath.Path, name: str, leaf: integrity.Leaf, context: ts.Context) -> np.ndarray:
    """One leaf on the host."""
    try:
        stored = _open(path, name, context).result()
        _check_type(stored, leaf)
        return stored.read().result()
    except (OSError, ValueError) as error:
        if kind(error) == "corrupt":
            raise Corrupt(f"{name}: {reason(error)}") from error
        raise


def _open(path: epath.Path, name: str, context: ts.Context) -> ts.Future:
    """The zarr array of a leaf in Orbax's OCDBT store."""
    place = os.fspath(path)
    base = f"{place}/" if in_bucket(place) else {"driver": "file", "path": f"{place}/"}
    store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    return ts.open({"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}, context=context, open=True)


def _patiently[T](path: epath.Path, attempt: Callable[[], T]) -> T:
    """Read, and read again where the store failed for the moment; an error that lies in the files is passed on."""
    failures = 0
    while True:
        try:
            return attempt()
        except (OSError, ValueError) as error:
            failures += 1
            if kind(error) == "corrupt":
                raise
            if failures == ATTEMPTS or kind(error) == "hopeless":
                raise CheckpointError(f"cannot read {path}: {reason(error)}; {remedy(error)}") from error
        time.sleep(PATIENCE_S * 2 ** (failures - 1))


def _start(stored: ts.TensorStore, leaf: jax.ShapeDtypeStruct) -> dict[Index, ts.Future]:
    """Start to read each block of a leaf that this process holds, once however many devices copy it."""
    _check_type(stored, leaf)
    blocks = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    return {block: stored[block].read() for block in dict.fromkeys(blocks)}


def _check_type(stored: ts.TensorStore, leaf: jax.ShapeDtypeStruct | integrity.Leaf) -> None:
    if stored.shape != leaf.shape or stored.dtype.name != jnp.dtype(leaf.dtype).name:
        raise ValueError(f"stored as {stored.dtype.name}{list(stored.shape)}")


def _finish(reading: dict[Index, ts.Future], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """The leaf on its devices, when its blocks are read."""
    blocks = {block: future.result() for block, future in reading.items()}
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda block: blocks[block])
