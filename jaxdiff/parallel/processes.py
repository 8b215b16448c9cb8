"""Several processes as one job: they meet before anything is computed, notice when one is lost, and end together.

JAX's coordination service hears from every process all the time, from threads that do not wait for Python. One
that is silent for HEARTBEAT_SECONDS makes it abort all others, in the middle of whatever they wait for: code 134 and
a page of C++. Here the abort becomes one line with the cause, and exit code LOST. jaxlib has a callback for this,
but calling it fails (std::bad_cast in 0.12), hence the handler of SIGABRT (decision 0004).

What a process knows about its own end it tells the others through the service's key-value store, and a thread of
theirs, which reads it every second, ends them too. So no process waits for one that is gone.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax._src import clusters, distributed  # what jax.distributed detects and its key-value store have no public names

from jaxdiff.errors import RunError, UserError, explain

LOST = 76  # the exit code of a process that ends because of another
HEARTBEAT_SECONDS = 10
COMPILE_SECONDS = 3600  # between the first process that has compiled and the last
_START_SECONDS = 300  # for all processes to come
_PERIOD = 1.0  # of reading the others' news
_SILENT = 4.0  # without news, who is one of those that the service misses
_FAREWELL = 5.0  # for the others to read why this process ends


_meetings = itertools.count()  # the same in all processes


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process finds the others and which one it is; all None where JAX detects it, or there is one."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def check(self) -> None:
        """Raises UserError unless all three are given, or none, and fit each other."""
        given = [value is not None for value in dataclasses.astuple(self)]
        if any(given) != all(given):
            raise UserError("--coordinator, --num-processes and --process-id go together; give all three or none")
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            return
        host, colon, port = self.coordinator.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
            raise UserError(f"--coordinator {self.coordinator} must be HOST:PORT, where process 0 listens")
        if not 0 <= self.process_id < self.num_processes:
            raise UserError(f"--process-id {self.process_id} must lie in 0..{self.num_processes - 1} (--num-processes)")


def run(place: Place, program: str, body: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """body() as one process of a job: of that which `place` names, or JAX detects, or alone.

    JAX detects TPU pods, SLURM, Open MPI and Kubernetes; a job of one process is not joined.

    Args:
      place: from the command line.
      program: how messages start.
      body: returns the exit code and the closing line. Every process gives the same code 0 or 75; one that gives
        another, or raises, ends all.

    Returns:
      What body does; the line is empty but in process 0, whose job it is to say it. The call does not return
      where the job ends otherwise: the process then ends with body's own code, or 1 if it raised, or with LOST (2
      after wrong input), because another one did.

    Raises:
      UserError: the place makes no sense.
    """
    place.check()
    cluster, own = ("", place) if place.coordinator else _detected()
    if own.coordinator is None:
        return body()
    line = f"process {own.process_id} of {own.num_processes}; waiting up to {_START_SECONDS} s for all at"
    print(f"{cluster}{line} {own.coordinator}", file=sys.stderr, flush=True)
    if failure := _connect(place, program):
        return LOST, failure
    watch = _Watch(program)
    try:
        code, line = body()
    except Exception as error:  # of any kind: the others must hear that this process has failed
        if not isinstance(error, UserError | RunError) and _is_about_another(error):
            time.sleep(HEARTBEAT_SECONDS + _FAREWELL)  # the service will say about which, or its process does
        code, line = explain(error)
    if code not in (0, 75):
        watch.leave(code, line)
    jax.distributed.shutdown()  # waits for the others
    watch.close()
    return code, line if watch.leads else ""


def _detected() -> tuple[str, Place]:
    """The cluster of several processes that JAX finds in the environment, "Slurm: ", and the place of this one in it.

    All None where there is none. A cluster that cannot be read is none, and a note says so.

    Raises:
      UserError: there are several processes, and the rest cannot be read.
    """
    for kind in (kind for kind in clusters.ClusterEnv._cluster_types if not kind.opt_in_only_method):
        name, count = kind.__name__.removesuffix("Cluster"), 1
        with warnings.catch_warnings(record=True) as said:  # JAX's own advice is a paragraph
            try:
                if kind.is_env_present():
                    count = int(kind.get_process_count())
                    if count == 1:
                        break
                    port = os.environ.get("JAX_COORDINATOR_PORT")
                    where = kind.get_coordinator_address(timeout_secs=None, override_coordinator_port=port)
                    place = Place(where, count, int(kind.get_process_id()))
                    place.check()
                    return f"{name}: ", place
                trouble = str(said[0].message) if said else ""
            except Exception as error:  # of whichever client library, token or variable
                trouble = f"{type(error).__name__}: {error}"
        trouble = " ".join(trouble.split())[:160]
        if count > 1:
            raise UserError(
                f"{name} has {count} processes, but {trouble}; mend that, or give --coordinator, "
                "--num-processes and --process-id"
            )
        if trouble:
            print(f"note: {name} cannot be read ({trouble}); running as one process", file=sys.stderr, flush=True)
    return "", Place()


def _connect(place: Place, program: str) -> str | None:
    """Joins the others; a line that says what happened where they do not come."""
    alone = f"{program}: not all processes came within {_START_SECONDS} s; start the job again\n"
    late = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: sys.stderr.write(alone) and _exit(LOST))
    _on_abort(ctypes.cast(late, ctypes.c_void_p))  # jaxlib's way to say so
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.num_processes,
            place.process_id,
            cluster_detection_method="deactivate" if place.coordinator else None,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError) as error:
        at = distributed.global_state.coordinator_address
        return f"the processes did not come together at {at}: {str(error).partition(chr(10))[0]}"
    finally:
        _on_abort(None)
    return None


def _is_about_another(error: Exception) -> bool:
    """Whether an exception comes from waiting for other processes rather than from this one."""
    text = str(error)
    return any(word in text for word in ("Gloo", "NCCL", "barrier", "coordination", "CoordinationService"))


def agree(what: dict[str, Any]) -> None:
    """Compares named JSON values between all processes; every one learns the same.

    Raises:
      UserError: in every process, naming what differs, if anything does.
    """
    if jax.process_count() == 1:
        return
    _meet(f"agree {next(_meetings)} on {', '.join(what)[:40]}", what)


def _meet(name: str, mine: dict[str, Any]) -> None:
    client, index = distributed.global_state.client, jax.process_index()
    assert client is not None
    client.key_value_set(f"jaxdiff/{name}/{index}", json.dumps(mine))
    everyone = [
        json.loads(client.blocking_key_value_get(f"jaxdiff/{name}/{i}", _START_SECONDS * 1000))
        for i in range(jax.process_count())
    ]
    first = everyone[0]
    differing = []
    for field in sorted({field for values in everyone for field in values}):
        for i, values in enumerate(everyone):
            if values.get(field) != first.get(field):
                differing.append(f"{field} is {first.get(field)!r} in process 0 and {values.get(field)!r} in {i}")
                break
    if differing:
        raise UserError(f"the processes differ: {'; '.join(differing)}; start all with the same arguments")


def from_first(value: Any) -> Any:
    """Process 0's JSON value, in every process; all of them call this in the same order."""
    if jax.process_count() == 1:
        return value
    client, name = distributed.global_state.client, f"jaxdiff/of process 0/{next(_meetings)}"
    assert client is not None
    if jax.process_index() == 0:
        client.key_value_set(name, json.dumps(value))
        return value
    return json.loads(client.blocking_key_value_get(name, COMPILE_SECONDS * 1000))


def barrier(name: str, seconds: float = _START_SECONDS) -> None:
    """Returns when every process has come here; the name is used once.

    To be called where processes may come at very different times, before what waits for all of them on the devices:
    Gloo gives up after 30 s, and nothing can change that.

    Raises:
      RunError: not all came within so many seconds. One that is lost ends the job sooner.
    """
    if jax.process_count() == 1:
        return
    client = distributed.global_state.client
    assert client is not None
    try:
        client.wait_at_barrier(f"jaxdiff/{name}", int(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise RunError(f"not all processes came within {seconds:.0f} s to: {name}; start the job again") from error


def barrier_after_compiling(name: str) -> None:
    """`barrier` with a limit that a slow compiler does not reach; names may come again."""
    barrier(f"{name} is compiled ({next(_meetings)})", COMPILE_SECONDS)


class _Watch:
    """Tells the other processes about this one, reads about them, and ends it when one of them is lost."""

    def __init__(self, program: str):
        state = distributed.global_state
        assert state.client is not None and state.coordinator_address is not None
        self._client, self._coordinator = state.client, state.coordinator_address
        self._program, self._index = program, state.process_id
        self.leads = self._index == 0
        self._about: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "end": None, "beat": 0}
        self._others: dict[int, dict[str, Any]] = {}
        self._heard: dict[int, float] = {}
        self._round = time.monotonic()
        self._ending = threading.Lock()
        self._closed, self._code = False, LOST
        self._period = max(_PERIOD, state.num_processes / 64)  # all read of all, from one
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)  # kept alive by self
        _on_abort(ctypes.cast(self._handler, ctypes.c_void_p))
        self._thread = threading.Thread(target=self._read, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The job is over, in every process."""
        self._closed = True
        _on_abort(None)

    def leave(self, code: int, line: str) -> NoReturn:
        """Ends this process, and has the others follow."""
        self._end(code, line, [2 if code == 2 else LOST, f"process {self._index} stopped: {line}"])

    def _read(self) -> None:
        while not self._closed:
            with contextlib.suppress(Exception):  # no connection: the service's own threads decide what that means
                self._tell()
                for key, text in self._client.key_value_dir_get("jaxdiff/about"):
                    self._hear(int(key.rpartition("/")[2]), json.loads(text))
                self._round = time.monotonic()
            ends = [about["end"] for about in self._others.values() if about["end"]]
            if ends and not self._closed:
                code, line = ends[0]
                self._end(code, line, [code, line])
            time.sleep(self._period)

    def _tell(self) -> None:
        self._about["beat"] += 1
        self._client.key_value_set(f"jaxdiff/about/{self._index}", json.dumps(self._about), allow_overwrite=True)

    def _hear(self, index: int, about: dict[str, Any]) -> None:
        if index != self._index and about != self._others.get(index):
            self._others[index], self._heard[index] = about, time.monotonic()

    def _end(self, code: int, line: str, news: list[Any]) -> NoReturn:
        """Says line, waits until the others have the news, and ends the process with code."""
        if not self._ending.acquire(blocking=False):
            time.sleep(2 * _FAREWELL)  # another thread is at it
        self._code = code
        print(f"{self._program}: {line}", file=sys.stderr, flush=True)
        self._about["end"] = news
        with contextlib.suppress(Exception):
            deadline = time.monotonic() + _FAREWELL
            self._tell()
            while time.monotonic() < deadline:
                ends = [json.loads(text)["end"] for _, text in self._client.key_value_dir_get("jaxdiff/about")]
                if len(ends) == jax.process_count() and all(ends):
                    time.sleep(0.5 if self.leads else 0)  # who coordinates goes last
                    break
                time.sleep(0.1)
        _exit(code)

    def _aborted(self, number: int) -> None:
        """What SIGABRT does, in the thread that raised it: jaxlib's, if a process is lost."""
        del number
        if self._closed:
            return
        if self._ending.locked():  # the coordinator went first
            _exit(self._code)
        line = self._cause()
        if line is None:  # an abort of our own
            _on_abort(None)
            return
        print(f"{self._program}: {line}; start the job again, it goes on from its last checkpoint", file=sys.stderr)
        _exit(LOST)

    def _cause(self) -> str | None:
        """Which process is lost, or None if all are there."""
        now = time.monotonic()
        silence = {i: now - heard for i, heard in self._heard.items() if now - heard > _SILENT}
        if not _listens(self._coordinator):
            return f"lost {self._name(0)}, which coordinates the others: nobody answers at {self._coordinator}"
        if now - self._round > _SILENT:  # nothing can be heard of anybody
            silence = {0: now - self._round}
        if not silence:
            return None
        longest = max(silence.values())
        lost = [i for i, seconds in silence.items() if seconds > longest - _PERIOD]
        return "lost " + ", ".join(map(self._name, sorted(lost))) + f": no sign of life for {longest:.0f} s"

    def _name(self, index: int) -> str:
        about = self._others.get(index)
        return f"process {index}" + (f" ({about['host']}, pid {about['pid']})" if about else "")


def _on_abort(handler: Any) -> None:
    """Sets the C handler of SIGABRT: Python's own would run after the process is gone."""
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    function(signal.SIGABRT, handler)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _exit(code: int) -> NoReturn:
    """Ends the process at once, its worker processes first: threads that wait for a lost process never return."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
