"""Files of torch.save, read without torch and without executing anything in them.

Such a file is a pickle, which is a program. Ours may name six things only, none of them callable into anything: an
ordered dict, tensors as (storage, offset, shape, strides), and the storages' types. Every other name becomes an object
that does nothing (`_Inert`): trainers keep their arguments beside the weights. Nothing is ever imported.
Both containers are read: the zip of torch >= 1.6, and the older one.

Format: torch/serialization.py of torch 2.13, `_save` and `_legacy_save`.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop.file_kinds import what_is

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
_MAX_NAMES, _MAX_DICTS, _MAX_DEPTH = 1000, 100, 4  # of one file, beyond any that a trainer writes
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


class _Inert:
    """An object of a class that is not known here: whatever a pickle does to it does nothing."""

    kind: ClassVar[str] = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        del args, kwargs
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        del args, kwargs
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        del key, value

    def __setstate__(self, state: Any) -> None:
        del state

    def append(self, value: Any) -> None:
        """As of a list or a set."""
        del value

    extend = add = append


class _Reader(pickle.Unpickler):
    """An unpickler that knows dicts, tensors and storages; every other name is `_Inert`.

    Attributes:
      dtypes: of the storages that were referred to, by key.
    """

    _names: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): _OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        **{("torch", name): dtype for name, dtype in STORAGES.items()},
    }

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}
        self._others: dict[tuple[str, str], type[_Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name; nothing is ever imported."""
        if (module, name) in self._names:
            return self._names[module, name]
        if len(self._others) == _MAX_NAMES:
            raise pickle.UnpicklingError(f"it names more than {_MAX_NAMES} classes")
        return self._others.setdefault((module, name), type("_Inert", (_Inert,), {"kind": f"{module}.{name}"[:120]}))

    def persistent_load(self, pid: Any) -> _Storage:
        """A reference to a storage."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("it refers to something that is not a storage")
        self.dtypes[key] = dtype
        return _Storage(key, dtype)


def read(path: os.PathLike | str) -> dict[str, np.ndarray]:
    """The tensors of a state dict that torch.save wrote, or of a trainer's checkpoint with such dicts in it.

    Of several dicts the names begin with where they are, "ema/conv_in.weight"; the optimizer's are left out.

    Args:
      path: a .pt, .pth, .ckpt or .bin file.

    Raises:
      UserError: it is damaged, or holds no tensors by name; says what it is, or how to convert it.
    """
    path = Path(path)
    if what := what_is(path):
        raise UserError(f"{path} {what}")
    try:
        if zipfile.is_zipfile(path):
            tree, storage = _zip(path)
        else:
            tree, storage = _legacy(path)
        dicts = _state_dicts(tree)
        if len(dicts) == 1 and not (only := next(iter(dicts.values()))).keys() <= {*map(str, range(len(only)))}:
            dicts = {"": only}  # not a list, whose place is all the name there is
        return {
            f"{where}/{name}" if where else name: _array(tensor, storage)
            for where, tensors in dicts.items()
            for name, tensor in tensors.items()
        }
    except _NoWeightsError as error:
        raise UserError(f"{path} {error}") from None
    except (*_BROKEN, zipfile.BadZipFile, OSError, MemoryError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a plain state dict of torch ({error}); with torch, convert it: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
        ) from None


class _NoWeightsError(Exception):
    """An honest file of something else."""


def _state_dicts(tree: Any) -> dict[str, dict[str, _Tensor]]:
    """The dicts of tensors, and the lists, in a tree of dicts, by where they are, "a/b"."""
    dicts: dict[str, dict[str, _Tensor]] = {}
    known: dict[int, dict[str, _Tensor]] = {}
    todo, optimizers = [("", tree)] if isinstance(tree, dict | list) else [], []
    for where, node in todo:
        if id(node) not in known:  # a pickle may hold a dict twice, or in itself
            entries = list(node.items() if isinstance(node, dict) else enumerate(node))
            known[id(node)] = {str(name): value for name, value in entries if isinstance(value, _Tensor)}
            if isinstance(node, dict) and node.keys() >= {"state", "param_groups"}:
                optimizers.append(where)
            elif where.count("/") < _MAX_DEPTH:
                inside = [(str(name), value) for name, value in entries if isinstance(value, dict | list) and value]
                todo += [(f"{where}/{name}" if where else name, value) for name, value in inside]
        if tensors := known[id(node)]:
            dicts[where] = tensors
            if len(dicts) > _MAX_DICTS:
                raise ValueError(f"it holds more than {_MAX_DICTS} dicts of tensors")
    if not dicts:
        raise _nothing(tree, optimizers)
    # beside whole dicts a single tensor is a counter, or the state of a generator
    return {where: tensors for where, tensors in dicts.items() if len(tensors) > 1} or dicts


def _nothing(tree: Any, optimizers: list[str]) -> Exception:
    if "" in optimizers:
        return _NoWeightsError(
            "is the state of an optimizer (state, param_groups), not a network: give the weights saved beside it "
            "(of guided-diffusion ema_RATE_STEP.pt, the average, or modelSTEP.pt)"
        )
    if isinstance(tree, _Inert):
        return ValueError(
            f"it is one object of {tree.kind}: where its code is and you trust the file, save its state_dict() alone"
        )
    if isinstance(tree, dict) and tree:
        kinds = [f"{str(k)[:40]} ({v.kind if isinstance(v, _Inert) else type(v).__name__})" for k, v in tree.items()]
        return ValueError(f"no entry of it is a tensor by name, or a dict of such: {', '.join(kinds[:8])}")
    return ValueError(f"it holds {f'a {type(tree).__name__}' if tree else 'nothing'}, no dict of tensors")


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
        tree = reader.load()
        places = {}
        for key in _Reader(file).load():
            count = int.from_bytes(file.read(8), "little")
            places[key] = file.tell(), count
            if file.seek(count * reader.dtypes[key].itemsize, os.SEEK_CUR) > path.stat().st_size:
                raise ValueError("it is cut")

    def storage(of: _Storage) -> np.ndarray:
        offset, count = places[of.key]
        return np.fromfile(path, of.dtype, count, offset=offset)

    return tree, storage
