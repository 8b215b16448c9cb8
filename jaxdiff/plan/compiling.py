"""Compiles a program for a topology and keeps what came of it: fits or not, memory, collectives.

A compilation can take many minutes, so its result is kept in the user's cache folder, beside the compiled programs,
under the hash of the program's StableHLO, the topology and the compiler's version.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import re
import time
from typing import Any

import jax

from jaxdiff.pictures import write_whole
from jaxdiff.plan.chips import Topology
from jaxdiff.plan.collectives import Collective, collectives
from jaxdiff.plan.memory import step_memory
from jaxdiff.storage import cache_folder

_FORMAT = 1  # of the files in the cache
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50, "E": 2**60}
_OOM = re.compile(r"\(([\d.]+)([KMGTPE]?)\) exceeds available HBM \(([\d.]+)([KMGTPE]?)\)")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What compiling a program for a device came to; all bytes are a device's.

    Attributes:
      fits: whether it fits in the device's memory.
      peak: bytes it takes there: arguments, outputs, temporaries and code; of one that does not fit, what the
        compiler asked for.
      available: bytes there are.
      arguments: passed in (state and batch); 0, as the next four, where it did not fit.
      outputs: what comes out beside donated arguments.
      temporaries: what it works with.
      code: the program.
      collectives: what it sends.
      seconds: the compilation took, when it was done.
      stablehlo: SHA-256 of what went into the compiler.
      compiler: name and version.
    """

    fits: bool
    peak: int
    available: int
    arguments: int
    outputs: int
    temporaries: int
    code: int
    collectives: tuple[Collective, ...]
    seconds: float
    stablehlo: str
    compiler: str


def stablehlo_hash(lowered: Any) -> str:
    """SHA-256 of a lowered program's StableHLO: the program itself, apart from where its lines were written."""
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


def compile_for(lowered: Any, topology: Topology) -> Compiled:
    """Compiles, or finds what an equal compilation came to. Running out of memory is a result, not an error."""
    compiler = f"libtpu {importlib.metadata.version('libtpu')}, jaxlib {importlib.metadata.version('jaxlib')}"
    stablehlo = stablehlo_hash(lowered)
    key = hashlib.sha256(f"{_FORMAT} {stablehlo} {topology} {compiler}".encode()).hexdigest()
    folder = cache_folder()
    path = folder and folder / "plans" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError):  # none of ours: compile
        return _decode(json.loads(path.read_text() if path else ""))
    result = _compile(lowered, topology, stablehlo, compiler)
    with contextlib.suppress(OSError):  # a cache is no reason to stop
        if path:
            write_whole(path, json.dumps(dataclasses.asdict(result)).encode())
    return result


def _compile(lowered: Any, topology: Topology, stablehlo: str, compiler: str) -> Compiled:
    began = time.monotonic()
    available = topology.hbm
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        match = _OOM.search(str(error))
        if match is None:
            raise
        needed, available = (int(float(n) * _UNITS[unit]) for n, unit in (match.groups()[:2], match.groups()[2:]))
        seconds = time.monotonic() - began
        return Compiled(False, needed, available, 0, 0, 0, 0, (), seconds, stablehlo, compiler)
    seconds = time.monotonic() - began
    memory = step_memory(compiled)
    code = compiled.memory_analysis().generated_code_size_in_bytes
    sent = collectives(compiled.as_text(), topology.devices)
    peak = memory.total + code
    return Compiled(peak <= available, peak, available, *memory, code, sent, seconds, stablehlo, compiler)


def _decode(values: dict[str, Any]) -> Compiled:
    sent = tuple(Collective(*entry) for entry in values.pop("collectives"))
    return Compiled(**values, collectives=sent)
