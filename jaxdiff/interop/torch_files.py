"""Files of torch.save, read without torch and without executing anything in them.

Such a file is a pickle, which is a program. Ours may name six things only, none of them callable into anything: an
ordered dict, tensors as (storage, offset, shape, strides), and the storages' types. Anything else is refused.
Both containers are read: the zip of torch >= 1.6, and the older one.

Format: torch/serialization.py of torch 2.13, `_save` and `_legacy_save`.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# What a damaged or hostile pickle makes the unpickler raise.
_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    """A tensor whose data is yet to be read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    """torch._utils._rebuild_tensor_v2; gradients and hooks are left out."""
    del rest
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor is not made of a storage and natural numbers")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *rest: Any) -> Any:
    """torch._utils._rebuild_parameter: the tensor itself."""
    del rest
    return tensor


class _OrderedDict(dict):
    """collections.OrderedDict; what torch hangs on it (`state_dict()._metadata`, versions of modules) is left out."""

    def __setstate__(self, state: Any) -> None:
        del state


class _Reader(pickle.Unpickler):
    """An unpickler that knows dicts, tensors and storages, and refuses every other name."""

    _names: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): _OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        **{("torch", name): dtype for name, dtype in STORAGES.items()},
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name on the list; nothing is ever imported."""
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not a tensor")
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """A reference to a storage."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("it refers to something that is not a storage")
        return _Storage(key, dtype)


def read(path: os.PathLike | str) -> dict[str, np.ndarray]:
    """The tensors of a state dict that torch.save wrote.

    Args:
      path: a .pt, .pth or .bin file.

    Raises:
      UserError: it is damaged, or holds anything but tensors by name; says how to convert it.
    """
    path = Path(path)
    try:
        if zipfile.is_zipfile(path):
            found, storage = _zip(path)
        else:
            found, storage = _legacy(path)
        return {name: _array(tensor, storage) for name, tensor in _state_dict(found).items()}
    except (*_BROKEN, zipfile.BadZipFile, OSError, MemoryError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a plain state dict of torch ({error}); with torch, convert it: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
        ) from None


def _state_dict(found: Any) -> dict[str, _Tensor]:
    if isinstance(found, dict) and set(found) == {"state_dict"}:
        found = found["state_dict"]
    if not isinstance(found, dict) or not found:
        raise ValueError("it holds no dict of tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise ValueError(f"its entry {str(name)[:80]!r} is not a tensor")
    return found


def _array(tensor: _Tensor, storage: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    data = storage(tensor.storage)
    if len(tensor.shape) != len(tensor.strides):
        raise ValueError("a tensor has other numbers of sizes and strides")
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, data.dtype)
    if last >= len(data):
        raise ValueError(f"a tensor needs {last + 1} numbers of a storage of {len(data)}")
    strides = [stride * data.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides, writeable=False)


def _zip(path: Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    archive = zipfile.ZipFile(path)
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise ValueError("torch does not compress what it writes")
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("there is not one data.pkl in it")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")
    cache: dict[str, bytes] = {}

    def storage(of: _Storage) -> np.ndarray:
        if of.key not in cache:
            cache[of.key] = archive.read(f"{root}data/{of.key}")
        return np.frombuffer(cache[of.key], of.dtype)

    return _Reader(io.BytesIO(archive.read(pickles[0]))).load(), storage


def _legacy(path: Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    with path.open("rb") as file:
        magic, protocol, _ = (_Reader(file).load() for _ in range(3))
        if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
            raise ValueError("it does not start as torch's files do")
        reader = _Reader(file)
        found = reader.load()
        dtypes = _storages(found)
        data = {}
        for key in _Reader(file).load():
            count = int.from_bytes(file.read(8), "little")
            size = count * dtypes[key].itemsize
            if size > path.stat().st_size:
                raise ValueError("it is cut")
            data[key] = np.frombuffer(file.read(size), dtypes[key], count)
    return found, lambda of: data[of.key]


def _storages(found: Any) -> Mapping[str, np.dtype]:
    return {tensor.storage.key: tensor.storage.dtype for tensor in _state_dict(found).values()}
