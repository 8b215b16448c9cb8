"""Batches as a pure function of (seed, step), made ahead of time by a thread and, if need be, by workers.

There is no iterator state: to resume at step n is to ask for batch n. Epochs follow each other without a ragged
batch. Example i of the run, counted over the rows of all global batches, is record order_e[i mod total] of epoch
e = i div total, and order_e is a permutation drawn from (seed, e).
"""

import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import chain, count
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Int32, Int64, UInt64

from jaxdiff.data.sources import RecordSource, Source, open_dataset
from jaxdiff.errors import RunError

__all__ = ["Batch", "Batches", "DeadWorkerError", "Prefetch", "open_dataset", "record_indices"]

Batch = dict[str, np.ndarray]
"""{"image": uint8 [rows, h, w, c], "label": int32 [rows], "row": int32 [rows], index in the global batch}, and a row of
each array that captions were made to."""

_SHUFFLE, _FLIP, _CAPTION = 0, 1, 2  # what a seed is folded with, so that no two draws share one
_AHEAD = 2  # batches made ahead of the one in use
_POLL_SECONDS = 0.5
_MAX_WORKERS = 8


class DeadWorkerError(RunError):
    """A process that reads data is gone."""


class Batches:
    """The batches of a run: `batches[n]` is a pure function of (source, seed, n) and the rows asked for.

    Args:
        source: From `open_dataset`.
        seed: Of the order and of the flips, >= 0.
        batch_size: Rows of the global batch, of all hosts together.
        flip: Mirror each image left to right with probability 1/2, drawn from (seed, n, row).
        rows: This host's rows of the global batch, as a slice or as their indices.
        captions: texts -> arrays with a row a text, see `Conditioner.tokenize`; called once, with all captions. Each
            row of a batch then has the arrays of one of its record's captions, drawn from (seed, n, row).

    Attributes:
        cut: How many of the distinct captions have more tokens than fit.

    >>> from jaxdiff.data.sources import MemorySource
    >>> source = MemorySource(np.zeros((10, 4, 4, 1), np.uint8), np.arange(10, dtype=np.int32), 10, set())
    >>> whole, half = Batches(source, 0, 4), Batches(source, 0, 4, rows=slice(2, 4))
    >>> whole[7]["label"][2:].tolist() == half[7]["label"].tolist(), half[7]["row"].tolist()
    (True, [2, 3])
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        batch_size: int,
        flip: bool = False,
        rows: slice | np.ndarray = slice(None),
        captions: Callable[[Sequence[str]], dict[str, np.ndarray]] | None = None,
    ):
        self.source = source
        self._seed, self._batch_size, self._flip = seed, batch_size, flip
        self._rows = np.arange(batch_size, dtype=np.int32)[rows]
        self.cut, self._captions = 0, None
        if captions is not None:
            numbers = {text: number for number, text in enumerate(dict.fromkeys(chain(*source.captions)))}
            tokens = captions(list(numbers))
            self.cut = int(tokens.pop("cut", np.zeros(0)).sum())
            each = np.array([numbers[text] for text in chain(*source.captions)], np.int64)
            counts = np.array([len(texts) for texts in source.captions], np.uint64)
            if set(np.flatnonzero(counts == 0).tolist()) - source.substituted:
                raise ValueError("records without a caption: open the data set with captioned=True")
            self._captions = _Captions(tokens, each, np.cumsum(counts) - counts, counts)

    def __getitem__(self, step: int) -> Batch:
        """The rows of batch `step`."""
        batch = self.source.gather(record_indices(self._seed, step, self._batch_size, self._rows, len(self.source)))
        record = batch.pop("record")
        if self._captions is not None:
            batch |= self._captions.draw(record, self._bits(_CAPTION, step))
        if self._flip:
            mirrored = (self._bits(_FLIP, step) >> np.uint64(63)).astype(bool)
            batch["image"][mirrored] = batch["image"][mirrored, :, ::-1]
        return {**batch, "row": self._rows}

    def iterate(self, start_step: int) -> "Prefetch":
        """Batches start_step, start_step + 1, ... for ever, made in the background."""
        workers: list[BaseProcess] = []
        if isinstance(self.source, RecordSource):
            return Prefetch(_from_workers(self, start_step, workers), workers, self.source)
        return Prefetch((self[step] for step in count(start_step)), workers, self.source)

    def _bits(self, purpose: int, step: int) -> UInt64[np.ndarray, " rows"]:
        return np.random.Philox(_seeds(self._seed, purpose, step)).random_raw(self._batch_size)[self._rows]


def record_indices(seed: int, step: int, batch_size: int, rows: np.ndarray, total: int) -> Int64[np.ndarray, " rows"]:
    """Which of `total` records are in those rows of batch `step`."""
    epochs, places = np.divmod(step * batch_size + rows.astype(np.int64), total)
    records = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        records[here] = _order(seed, int(epoch), total)[places[here]]
    return records


class _Captions(NamedTuple):
    """The captions of a source as a table: those of record i are each[start[i]], ..., each[start[i] + count[i] - 1]."""

    tokens: Batch  # a row a distinct caption
    each: Int64[np.ndarray, " captions"]  # its row
    start: UInt64[np.ndarray, " records"]
    count: UInt64[np.ndarray, " records"]

    def draw(self, record: Int32[np.ndarray, " rows"], bits: UInt64[np.ndarray, " rows"]) -> Batch:
        """The arrays of caption floor(u count) of each record, u the upper half of its bits as a fraction."""
        drawn = self.start[record] + ((bits >> np.uint64(32)) * self.count[record] >> np.uint64(32))
        return {name: table[self.each[drawn]] for name, table in self.tokens.items()}


@lru_cache(maxsize=2)  # a batch may reach over the end of an epoch
def _order(seed: int, epoch: int, total: int) -> Int64[np.ndarray, " total"]:
    """A permutation of the records: raw bits of Philox, which NumPy promises to keep, sorted."""
    return np.argsort(np.random.Philox(_seeds(seed, _SHUFFLE, epoch)).random_raw(total), kind="stable")


def _seeds(seed: int, purpose: int, number: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, purpose, number])


class Prefetch:
    """An iterator over batches that a thread makes ahead of their use.

    What the thread raises, `next` raises. A worker process that died is noticed by the next call of `next`, or
    within half a second of waiting in it. `close` it, or use it as a context manager.

    Attributes:
        wait_seconds: How long `next` has waited in all, so far.
    """

    def __init__(self, batches: Generator[Batch], workers: list[BaseProcess], source: Source):
        self._batches, self._workers, self._source = batches, workers, source
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead = deque(self._thread.submit(next, batches) for _ in range(_AHEAD))
        self.wait_seconds = 0.0

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Batch:
        """The next batch."""
        if not self._ahead:
            raise StopIteration
        start = time.perf_counter()
        try:
            while not self._ahead[0].done():
                self._check_workers()
                wait([self._ahead[0]], timeout=_POLL_SECONDS)
            self._check_workers()
            batch = self._ahead.popleft().result()
            if isinstance(self._source, RecordSource):  # noted when used: the count does not depend on what is ahead
                self._source.note_corrupt(batch.pop("corrupt").tolist())
        except Exception:  # whatever it is goes on its way; the thread and the workers end first
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - start
        self._ahead.append(self._thread.submit(next, self._batches))
        return batch

    def _check_workers(self) -> None:
        dead = [worker for worker in self._workers if worker.exitcode not in (None, 0)]
        if dead:
            for worker in self._workers:
                worker.kill()  # or closing would wait for each to say goodbye
            raise DeadWorkerError(
                f"a data worker process died with exit code {dead[0].exitcode} (-9: killed, often for want of "
                "memory); start the same command again"
            )

    def close(self) -> None:
        """Ends the thread and the worker processes; to close again is fine."""
        self._ahead.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._batches.close()

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


class _Steps:
    """The batches from a step on, as the random-access source that Grain shares out between its workers."""

    def __init__(self, batches: Batches, start_step: int):
        self._batches, self._start = batches, start_step

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Batch:
        batch = self._batches[self._start + index]
        return {**batch, "corrupt": np.array(sorted(self._batches.source.substituted), np.int64)}


def _end_with_parent(index: int, count: int) -> None:
    """Ends a worker when its parent is gone, even if killed; it would wait for ever for its batches to be taken."""
    del index, count
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _from_workers(batches: Batches, start_step: int, workers: list[BaseProcess]) -> Generator[Batch]:
    """The batches, each made whole by one of Grain's worker processes; appends the processes to `workers`."""
    import grain  # half a second, and only needed here

    if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which only absl's own main would parse
        flags.FLAGS.mark_as_parsed()
    dataset = grain.MapDataset.source(_Steps(batches, start_step)).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    )
    count = min(_MAX_WORKERS, os.cpu_count() or 1)
    before = multiprocessing.active_children()
    iterator = iter(
        dataset.mp_prefetch(grain.MultiprocessingOptions(count, per_worker_buffer_size=2), _end_with_parent)
    )
    try:
        while True:
            shared = next(iterator)
            if not workers:
                workers.extend(worker for worker in multiprocessing.active_children() if worker not in before)
            batch = {name: np.array(array) for name, array in shared.items()}  # out of the shared memory
            del shared
            yield batch
    finally:
        iterator.close()
