"""The safetensors format: 8 bytes of length, a JSON header, raw little-endian data. Read memory-mapped.

A header is data: every offset, shape and dtype in it is checked against the file before an array is made.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop.file_kinds import what_is

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_MAX_HEADER = 100_000_000  # bytes, the limit of the format


def read(path: os.PathLike | str) -> dict[str, np.ndarray]:
    """The tensors of a file by name, memory-mapped: what is not used is not read.

    Args:
      path: a .safetensors file, or the .safetensors.index.json that lists the files of a divided one.

    Raises:
      UserError: not a safetensors file, or a damaged one.
    """
    path = Path(path)
    if path.name.endswith(".index.json"):
        tensors: dict[str, np.ndarray] = {}
        for file in index_files(path):
            tensors |= read(file)
        return tensors
    if what := what_is(path):
        raise UserError(f"{path} {what}")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise UserError(f"{path} is not a safetensors file: its header would be {length} of {size} bytes")
        raw = file.read(length)
    header = _json(raw, path)
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)
    return {name: _tensor(name, entry, data, path) for name, entry in header.items()}


def _json(raw: bytes, path: Path) -> dict:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its JSON cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: its JSON is not an object")
    return value


def index_files(path: Path) -> list[Path]:
    """The files that an index, .safetensors.index.json or .bin.index.json, lists.

    Raises:
      UserError: no such index, or files of it are missing.
    """
    if (what := what_is(path)) and not what.startswith("is JSON"):
        raise UserError(f"{path} {what}")
    files = _json(path.read_bytes(), path).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
        raise UserError(f"{path} is damaged: weight_map must give a file name, in the same folder, a tensor")
    paths = [path.parent / name for name in sorted(set(files.values()))]
    if missing := [file.name for file in paths if not file.is_file()]:
        raise UserError(
            f"{path.parent / missing[0]} is missing, of {len(missing)} that {path.name} lists; copy them there"
        )
    return paths


def _tensor(name: str, entry: object, data: np.ndarray, path: Path) -> np.ndarray:
    match entry:
        case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            whole = all(type(n) is int and n >= 0 for n in shape)
        case _:
            kind, shape, begin, end, whole = "", [], 0, 0, False
    if kind not in DTYPES or not whole:
        raise UserError(f"{path}: tensor {name!r} has a header that cannot be read: {str(entry)[:80]}")
    if not 0 <= begin <= end <= len(data) or end - begin != math.prod(shape) * DTYPES[kind].itemsize:
        raise UserError(f"{path} is cut or damaged: tensor {name!r} needs bytes {begin}..{end} of {len(data)}")
    try:
        return data[begin:end].view(DTYPES[kind]).reshape(shape)
    except (ValueError, OverflowError):  # sides too long or too many for NumPy, some other one being 0
        raise UserError(f"{path}: tensor {name!r} has a shape that cannot be: {str(shape)[:80]}") from None


def write(path: os.PathLike | str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes tensors, in the order of their names, so that the same tensors give the same bytes.

    Args:
      path: where to.
      tensors: by name; float32 and the other dtypes of DTYPES.
      metadata: strings to keep in the header.
    """
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(tensors):
        begin, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": kinds[tensors[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # data starts at a multiple of 8
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name]).tobytes())
