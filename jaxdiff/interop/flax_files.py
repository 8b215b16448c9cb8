"""Flax's msgpack files of arrays, as `flax.serialization` and `save_pretrained` of Flax models wrote them.

Every count, shape and dtype is checked against the bytes that are there before an array is made: Flax's own reader
takes a negative dimension for "whatever fits". Nothing but dicts of arrays is read.

Format: flax/serialization.py, `_MsgpackExtType` and `_chunk`.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop.safetensors import DTYPES

_ARRAY = 1  # code of the extension type
_DEPTH = 32  # of nested modules
_BY_NAME = {dtype.name: dtype for dtype in DTYPES.values()}
_LISTS = "down_blocks|up_blocks|resnets|attentions|transformer_blocks|downsamplers|upsamplers|to_out|net"
_CHUNKED = "__msgpack_chunked_array__"  # what holds a leaf of more than 1 GiB, in parts


def read(path: os.PathLike | str) -> dict[str, np.ndarray]:
    """The arrays of a file by path, "module/.../leaf".

    Raises:
      UserError: not such a file, or a damaged one.
    """
    raw = Path(path).read_bytes()
    limits = {f"max_{kind}_len": len(raw) for kind in ("str", "bin", "ext", "array", "map")}
    try:
        tree = msgpack.unpackb(raw, ext_hook=_array, raw=False, strict_map_key=True, **limits)
        return dict(_leaves(tree, "", _DEPTH))
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise UserError(f"{path} is no msgpack file of Flax, or a damaged one: {error}") from None


def _array(code: int, data: bytes) -> np.ndarray:
    if code != _ARRAY:
        raise ValueError(f"it holds an object of type {code}, not an array")
    match msgpack.unpackb(data, raw=False, strict_map_key=True, max_bin_len=len(data), max_array_len=64):
        case [[*shape], str(name), bytes(content)] if name in _BY_NAME:
            dtype = _BY_NAME[name]
        case _:
            raise ValueError("an array is not a shape, a known dtype and bytes")
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} and dtype {name} has {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape)


def _leaves(tree: Any, path: str, depth: int) -> Any:
    if isinstance(tree, np.ndarray):
        yield path, tree
    elif isinstance(tree, dict) and _CHUNKED in tree:
        yield path, _joined(tree, path)
    elif isinstance(tree, dict) and depth:
        for name, value in tree.items():
            yield from _leaves(value, f"{path}/{name}" if path else name, depth - 1)
    else:
        raise ValueError(f"{path or 'it'} is a {type(tree).__name__}, not an array or a dict, or too deep")


def _joined(tree: Mapping[str, Any], path: str) -> np.ndarray:
    """A large array from its flat chunks, {"0": ..., "1": ...}."""
    match tree:
        case {"shape": {**shape}, "chunks": {**chunks}}:
            sides = [shape.get(str(i), -1) for i in range(len(shape))]
            parts = [chunks.get(str(i)) for i in range(len(chunks))]
        case _:
            sides, parts = [-1], []
    arrays = [part.reshape(-1) for part in parts if isinstance(part, np.ndarray)]
    if not arrays or len(arrays) != len(parts) or not all(type(n) is int and n >= 0 for n in sides):
        raise ValueError(f"{path} is not an array in parts")
    whole = np.concatenate(arrays)
    if whole.size != math.prod(sides):
        raise ValueError(f"{path} of shape {sides} has {whole.size} entries")
    return whole.reshape(sides)


def as_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of diffusers' and transformers' Flax classes, under the names and in the layout of their torch classes.

    >>> list(as_torch({"down_blocks_0/attentions_1/to_out_0/kernel": np.zeros((2, 3))}).items())[0][1].shape
    (3, 2)
    >>> list(as_torch({"mid_block/resnets_1/norm2/scale": np.zeros(2)}))
    ['mid_block.resnets.1.norm2.weight']
    """
    out = {}
    for path, value in arrays.items():
        *modules, leaf = path.split("/")
        if leaf == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(leaf, leaf)
        out[re.sub(rf"\b({_LISTS})_(\d+)\b", r"\1.\2", ".".join([*modules, leaf]))] = value
    return out
