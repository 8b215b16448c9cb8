"""Batches: a pure function of (seed, step), the same for any number of hosts, and no hang whatever dies."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import batches as data
from jaxdiff.data import sources
from jaxdiff.data.batches import Batches
from jaxdiff.data.sources import MemorySource, RecordSource, open_dataset
from jaxdiff.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (240, 4, 4, 1), np.uint8)
SOURCE = MemorySource(PIXELS[:100], np.arange(100, dtype=np.int32), 100, set())


def _equal(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def test_a_batch_has_the_contracts_names_shapes_and_types():
    batch = Batches(SOURCE, 0, 8, flip=True)[5]
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert shapes == {"image": ((8, 4, 4, 1), "uint8"), "label": ((8,), "int32"), "row": ((8,), "int32")}
    assert np.array_equal(batch["row"], np.arange(8))


@pytest.mark.parametrize("batch_size", [7, 100, 150])
def test_every_epoch_shows_each_record_once_in_an_order_of_its_own(batch_size):
    batches = Batches(SOURCE, 3, batch_size)
    shown = np.concatenate([batches[step]["label"] for step in range(-(-300 // batch_size))])[:300].reshape(3, 100)
    assert np.array_equal(np.sort(shown, axis=1), np.tile(np.arange(100), (3, 1)))
    assert len({tuple(epoch) for epoch in shown}) == 3
    assert all((epoch == np.arange(100)).sum() < 10 for epoch in shown)
    assert not np.array_equal(Batches(SOURCE, 4, 100)[0]["label"], Batches(SOURCE, 3, 100)[1]["label"])


def test_the_order_is_uniform_over_places():
    """Chi-square of where record 0 comes, over 2,000 seeds and ten bins: 9 degrees of freedom, 99.9 % below 27.9."""
    small = MemorySource(PIXELS[:10], np.arange(10, dtype=np.int32), 10, set())
    places = [int(np.argmin(Batches(small, seed, 10)[1]["label"])) for seed in range(2000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9


def test_images_keep_their_labels_and_flips_are_fair_and_only_mirror():
    plain, flipped = Batches(SOURCE, 0, 100), Batches(SOURCE, 0, 100, flip=True)
    mirrored = []
    for step in range(20):
        before, after = plain[step], flipped[step]
        assert np.array_equal(before["image"], PIXELS[before["label"]])
        assert np.array_equal(before["label"], after["label"])
        same = (after["image"] == before["image"]).all((1, 2, 3))
        assert np.array_equal(after["image"][~same], before["image"][~same, :, ::-1])
        mirrored.append(~same)
    assert abs(np.mean(mirrored) - 0.5) < 4 * 0.5 / np.sqrt(2000)
    assert len({tuple(flips) for flips in mirrored}) == 20
    assert np.array_equal(SOURCE[7]["image"], PIXELS[7])  # the data set itself is not touched


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_the_hosts_shares_make_up_the_same_global_batch(hosts):
    whole = Batches(SOURCE, 9, 16, flip=True)
    share = 16 // hosts
    parts = [Batches(SOURCE, 9, 16, flip=True, rows=slice(host * share, (host + 1) * share)) for host in range(hosts)]
    for step in (0, 6, 7):  # 6 reaches over the end of the first epoch
        together = [part[step] for part in parts]
        joined = {name: np.concatenate([batch[name] for batch in together]) for name in together[0]}
        assert _equal(joined, whole[step])


def test_a_run_from_step_k_is_the_run_from_step_0_after_k():
    batches = Batches(SOURCE, 1, 12, flip=True)
    with batches.iterate(0) as straight:
        seen = [next(straight) for _ in range(20)]
    assert all(_equal(seen[step], batches[step]) for step in range(20))
    with Batches(SOURCE, 1, 12, flip=True).iterate(13) as resumed:
        assert all(_equal(next(resumed), seen[step]) for step in range(13, 20))


CAPTIONS = tuple(tuple(f"{index} {letter}" for letter in "abcd"[: 1 + index % 4]) for index in range(100))


def _tokens(texts):
    """A text of CAPTIONS as (record, which of its captions)."""
    said = [(int(number), ord(letter) - ord("a")) for number, letter in map(str.split, texts)]
    return {"tokens": np.array(said, np.int32), "cut": np.array([letter == 3 for _, letter in said])}


def test_each_row_has_one_of_its_records_captions_drawn_by_seed_step_and_row():
    captioned = MemorySource(PIXELS[:100], np.arange(100, dtype=np.int32), 100, set(), captions=CAPTIONS)
    calls = []
    batches = Batches(captioned, 3, 100, captions=lambda texts: calls.append(texts) or _tokens(texts))
    assert [len(texts) for texts in calls] == [250] and batches.cut == 25
    shown = {index: [] for index in range(100)}
    for step in range(400):
        batch = batches[step]
        assert batch.keys() == {"image", "label", "row", "tokens"} and batch["tokens"].dtype == np.int32
        assert np.array_equal(batch["tokens"][:, 0], batch["label"])
        for label, which in batch["tokens"].tolist():
            shown[label].append(which)
    for number in (1, 2, 3, 4):  # each caption as often as the others: within 4 standard errors of 10,000 draws
        drawn = np.concatenate([which for index, which in shown.items() if index % 4 == number - 1])
        assert np.abs(np.bincount(drawn, minlength=number) / len(drawn) - 1 / number).max() < 4 * 0.5 / 100
    flipped = Batches(captioned, 3, 100, flip=True, captions=_tokens)[5]
    mirrored = (flipped["image"] != batches[5]["image"]).any((1, 2, 3))
    halves = [
        which == mirror for (label, which), mirror in zip(flipped["tokens"], mirrored, strict=True) if label % 4 == 1
    ]
    assert 4 < np.sum(halves) < 21  # of 25 with two captions: the draw is not the flip's
    parts = [Batches(captioned, 3, 100, rows=slice(i, i + 50), captions=_tokens)[5]["tokens"] for i in (0, 50)]
    assert np.array_equal(np.concatenate(parts), batches[5]["tokens"])
    assert np.array_equal(flipped["tokens"], batches[5]["tokens"])
    assert not calls[1:]
    several = [label % 4 == 3 for label in batches[5]["label"]]
    assert len({tuple(batches[step]["tokens"][several, 1]) for step in range(20)}) == 20


def test_records_without_a_caption_cannot_be_drawn():
    some = MemorySource(PIXELS[:2], np.zeros(2, np.int32), 0, set(), captions=(("0 a",), ()))
    with pytest.raises(ValueError, match="captioned=True"):
        Batches(some, 0, 2, captions=_tokens)


class Slow(MemorySource):
    """Takes 20 ms a batch and counts them; the thirteenth raises."""

    def __init__(self):
        super().__init__(PIXELS, np.zeros(240, np.int32), 0, set())
        self.made = 0

    def gather(self, indices):
        self.made += 1
        if self.made > 12:
            raise OSError("the disk is gone")
        time.sleep(0.02)
        return super().gather(indices)


def test_prefetch_is_bounded_measures_the_wait_and_ends_its_thread():
    source = Slow()
    prefetch = Batches(source, 0, 4).iterate(0)
    for _ in range(4):
        next(prefetch)
    assert 0.06 < prefetch.wait_seconds < 0.5
    time.sleep(0.2)
    assert source.made == 6  # two ahead, no more
    waited = prefetch.wait_seconds
    next(prefetch), next(prefetch)
    assert prefetch.wait_seconds - waited < 0.015
    prefetch.close()
    prefetch.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    assert source.made <= 8


def test_what_the_thread_raises_reaches_the_loop_in_its_place():
    prefetch = Batches(Slow(), 0, 4).iterate(0)
    taken = 0
    with pytest.raises(OSError, match="the disk is gone"):
        for _ in prefetch:
            taken += 1
    assert taken == 12
    with pytest.raises(StopIteration):
        next(prefetch)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.fixture
def records(tmp_path, monkeypatch):
    """240 images on disk, treated as too many for memory, the damaged record 100 among them."""
    for index in range(240):
        Image.fromarray(PIXELS[index, ..., 0]).save(tmp_path / f"{index:03}.png")
    damaged = tmp_path / "100.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    return tmp_path


def test_workers_give_the_same_batches_report_what_they_substituted_and_are_missed_when_killed(records):
    source = open_dataset("folder", str(records), on_error="substitute")
    alone = Batches(open_dataset("folder", str(records), on_error="substitute"), 5, 60, flip=True)
    assert type(source) is RecordSource
    batches = Batches(source, 5, 60, flip=True).iterate(2)
    for step in range(2, 6):  # an epoch, so record 100 is met
        assert _equal(next(batches), alone[step])
    assert source.substituted == {100}
    victim, *_ = multiprocessing.active_children()
    start = time.perf_counter()
    victim.kill()
    victim.join()
    with pytest.raises(RuntimeError, match="a data worker process died with exit code -9"):
        next(batches)  # though batches that were made before are waiting
    assert time.perf_counter() < start + 5
    assert not multiprocessing.active_children()


def test_a_worker_killed_while_the_loop_waits_ends_it_within_five_seconds(records, monkeypatch):
    monkeypatch.setattr(data, "_MAX_WORKERS", 1)
    batches = Batches(open_dataset("folder", str(records), on_error="substitute"), 5, 60).iterate(0)
    next(batches)
    (victim,) = multiprocessing.active_children()
    os.kill(victim.pid, signal.SIGSTOP)
    start = time.perf_counter()
    threading.Timer(1.0, victim.kill).start()
    with pytest.raises(RuntimeError, match="a data worker process died with exit code -9"):
        while True:
            next(batches)
    assert 0.9 < time.perf_counter() - start < 6
    assert not multiprocessing.active_children()


def test_workers_do_not_outlive_a_process_that_is_killed(records):
    script = (
        "import multiprocessing, os, signal\n"
        "from jaxdiff.data import batches as data, sources\n"
        "data._MAX_WORKERS, sources.MEMORY_LIMIT = 1, 0\n"
        f"source = sources.open_dataset('folder', {str(records)!r}, on_error='substitute')\n"
        "next(data.Batches(source, 0, 60).iterate(0))\n"
        "print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=120)
    assert run.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{int(run.stdout)}"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_corrupt_image_met_by_a_worker_stops_the_loop_and_is_named(records, monkeypatch):
    monkeypatch.setattr(data, "_MAX_WORKERS", 1)
    batches = Batches(open_dataset("folder", str(records)), 5, 60).iterate(0)
    with pytest.raises(UserError, match=r"100\.png: a damaged image.*data\.on_error=substitute"):
        for _ in range(4):
            next(batches)
    assert not multiprocessing.active_children()


def test_workers_end_when_closed(records, monkeypatch):
    monkeypatch.setattr(data, "_MAX_WORKERS", 1)
    with Batches(open_dataset("folder", str(records), on_error="substitute"), 5, 60).iterate(0) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == 1
    assert not multiprocessing.active_children()
