"""What a checkpoint says about itself, and whether the arrays read back are the arrays that were saved.

A manifest (plain JSON, no code) lists each leaf's shape, dtype and checksum; a digest covers the manifest. Storage
layers restore a flipped bit without a word, so every leaf is summed again after reading.
"""

import hashlib
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt32

from jaxdiff.training.state import TrainState, leaf_name

FORMAT = 1
DTYPES = frozenset(("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "bfloat16", "float16", "float32"))
CHUNK = 2**16  # elements summed at a time: they stay in the cache
FIELDS = ("step", "params", "ema_params", "opt_state", "posthoc", "objective")


class Leaf(NamedTuple):
    """One array of the state as it was saved."""

    shape: tuple[int, ...]
    dtype: str
    checksum: int

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Manifest(NamedTuple):
    """A checkpoint's own description.

    Attributes:
      step: the step it was saved at.
      leaves: every array of the state by name.
      meta: what the run wrote beside it: config, data fingerprint and the like; JSON values.
    """

    step: int
    leaves: dict[str, Leaf]
    meta: dict[str, Any]


def checksum(x: jax.Array) -> tuple[int, bool]:
    """sum_i bits(x_i) w_i mod 2^32 with odd w_i = hash(i) | 1, and whether every value is finite.

    i is the index in the whole array, so the sum is the same however the array is spread over devices; of an array
    spread over processes, each computes its part. An odd weight has an inverse mod 2^32: any change within one
    element changes the sum; changes of several cancel with probability 2^-32.

    On the host, where saving brings the bytes anyway: a jitted sum would cost a compilation for each new shape.

    Args:
      x: an array of any shape and any dtype of `DTYPES`.

    >>> import jax.numpy as jnp
    >>> [checksum(jnp.asarray(x, jnp.float32)) for x in (0.0, -0.0, float("nan"))]
    [(0, True), (2147483648, True), (2143289344, False)]
    """
    total, finite = 0, True
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            block = np.asarray(shard.data)
            finite = finite and bool(np.isfinite(block).all())
            total += block_sum(block, shard.index, x.shape)
    return total % 2**32, finite


def block_sum(block: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """The part in `checksum` of one block, x[index], of an array x of that shape.

    >>> x = np.arange(6, dtype=np.float32).reshape(2, 3)
    >>> rows = [block_sum(x[i : i + 1], (slice(i, i + 1), slice(None)), x.shape) for i in (0, 1)]
    >>> sum(rows) % 2**32 == block_sum(x, (slice(None), slice(None)), x.shape)
    True
    """
    total, bits = 0, np.ascontiguousarray(block).reshape(-1).view(f"uint{8 * block.itemsize}")
    indices = _indices(index, shape).reshape(-1)
    for start in range(0, bits.size, CHUNK):
        part = slice(start, start + CHUNK)
        total += int(np.sum(bits[part] * _weights(indices[part]), dtype=np.uint32))
    return total % 2**32


def _indices(index: tuple[slice, ...], shape: tuple[int, ...]) -> UInt32[np.ndarray, "..."]:
    """The positions mod 2^32, in the whole row-major array, of the elements of one block of it."""
    blocks = [range(size)[part] for part, size in zip(index, shape, strict=True)]
    total = np.zeros([len(block) for block in blocks], np.uint32)
    for axis, block in enumerate(blocks):
        steps = np.arange(block.start, block.stop, dtype=np.uint64) * math.prod(shape[axis + 1 :])
        total += steps.astype(np.uint32).reshape([-1] + [1] * (len(shape) - axis - 1))
    return total


def _weights(index: UInt32[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """An odd hash of each index: two rounds of xor-shift and multiply."""
    index = index ^ (index >> np.uint32(16))
    index *= np.uint32(0x21F0AAAD)
    index ^= index >> np.uint32(15)
    index *= np.uint32(0x735A2D97)
    index ^= index >> np.uint32(15)
    index |= np.uint32(1)
    return index


def flatten(state: Any) -> dict[str, Any]:
    """A state as {leaf name: leaf}.

    Raises:
      ValueError: a key holds a slash or is a dot, so that the name could not be taken apart again.
    """
    flat = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = leaf_name(path)
        if len(name.split("/")) != len(path) or not _legal(name):
            raise ValueError(f"the leaf {name!r} has a key with a slash, a dot alone or nothing; rename that key")
        flat[name] = leaf
    return flat


def nest(flat: dict[str, Any]) -> TrainState:
    """A state from {leaf name: leaf}, its trees as nested dicts keyed by dict key, field name or position.

    The parameters of a Flax network are dicts, so they come back as they were; the optimizer's named tuples come
    back as dicts with the same leaves.

    >>> nest({"step": 3, "params/dense/bias": 1, "opt_state/0/mu/dense/bias": 2}).opt_state
    {'0': {'mu': {'dense': {'bias': 2}}}}
    """
    tree: dict[str, Any] = {field: {} for field in FIELDS}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return TrainState(**tree)


def measure(flat: dict[str, jax.Array]) -> tuple[dict[str, int], list[str]]:
    """The checksum of every leaf, and the names of the leaves that hold a value that is not finite.

    Every process calls it where arrays span several, and every process gets the same answer.
    """
    parts = np.array([checksum(leaf) for leaf in flat.values()], np.uint32).reshape(-1, 2)
    if not all(leaf.is_fully_addressable for leaf in flat.values()):
        parts = np.stack([1 - parts[:, 1], parts[:, 0]])  # count what is not finite: sums over processes work for both
        gathered = multihost_utils.process_allgather(parts)
        parts = np.stack([gathered[:, 1].sum(0, dtype=np.uint32), gathered[:, 0].sum(0) == 0], axis=1)
    sums = {name: int(total) for name, (total, _) in zip(flat, parts, strict=True)}
    return sums, [name for name, (_, finite) in zip(flat, parts, strict=True) if not finite]


def describe(step: int, flat: dict[str, jax.Array], sums: dict[str, int], meta: dict[str, Any]) -> dict[str, Any]:
    """The manifest as JSON values, with its digest."""
    leaves = {name: [list(leaf.shape), leaf.dtype.name, sums[name]] for name, leaf in flat.items()}
    body = {"format": FORMAT, "step": step, "leaves": leaves, "meta": meta}
    return {"body": body, "sha256": _digest(body)}


def parse(text: str) -> Manifest:
    """Read a manifest that anybody may have written.

    Raises:
      ValueError: it is not JSON, not as it was written, or describes no state.

    >>> parse("{}")
    Traceback (most recent call last):
    ValueError: the manifest is not one of this library
    """
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError("the manifest is nested too deeply") from error
    if not isinstance(document, dict) or set(document) != {"body", "sha256"}:
        raise ValueError("the manifest is not one of this library")
    body = document["body"]
    if not isinstance(body, dict) or set(body) != {"format", "step", "leaves", "meta"}:
        raise ValueError("the manifest is not one of this library")
    if _digest(body) != document["sha256"]:
        raise ValueError("the manifest differs from what was written")
    if body["format"] != FORMAT:
        raise ValueError(f"the manifest has format {body['format']!r}; this version reads {FORMAT}")
    if not _count(body["step"]) or not isinstance(body["meta"], dict) or not isinstance(body["leaves"], dict):
        raise ValueError("the manifest is not one of this library")
    leaves = {name: _leaf(name, entry) for name, entry in body["leaves"].items()}
    _check_names(leaves)
    return Manifest(body["step"], leaves, body["meta"])


def misfits(leaves: dict[str, Leaf], expected: dict[str, Any]) -> list[str]:
    """Every difference between the leaves saved and the leaves a run expects, in words; [] if it fits."""
    differences = [f"{name} is missing in the checkpoint" for name in expected if name not in leaves]
    differences += [f"{name} is not in this run" for name in leaves if name not in expected]
    for name, leaf in leaves.items():
        if name in expected:
            wanted = Leaf(tuple(expected[name].shape), jnp.dtype(expected[name].dtype).name, 0)
            if str(leaf) != str(wanted):
                differences.append(f"{name} is {leaf}, this run has {wanted}")
    return differences


def _digest(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _legal(name: str) -> bool:
    return all(part not in ("", ".", "..") and "\\" not in part and "\0" not in part for part in name.split("/"))


def _leaf(name: str, entry: Any) -> Leaf:
    """One checked entry of the table of leaves."""
    if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], list)):
        raise ValueError(f"the manifest's entry of {name!r} is not [shape, dtype, checksum]")
    shape, dtype, total = entry
    if not all(_count(size) for size in shape) or math.prod(shape) >= 2**48:
        raise ValueError(f"the manifest's shape {shape} of {name!r} is not a shape")
    if not isinstance(dtype, str) or dtype not in DTYPES or not _count(total):
        raise ValueError(f"the manifest's dtype or checksum of {name!r} is not one")
    return Leaf(tuple(shape), dtype, total)


def _check_names(leaves: dict[str, Leaf]) -> None:
    """Names form a tree of the four fields, and no name is also a folder of another."""
    if "step" not in leaves or str(leaves["step"]) != "int32[]":
        raise ValueError("the manifest has no step")
    for name in leaves:
        parents = name.split("/")[:-1]
        if not _legal(name) or name.split("/")[0] not in FIELDS:
            raise ValueError(f"the manifest's leaf {name!r} is no part of a state")
        if any("/".join(parents[:depth]) in leaves for depth in range(1, len(parents) + 1)):
            raise ValueError(f"the manifest's leaf {name!r} lies inside another leaf")
