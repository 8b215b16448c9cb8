"""Who owns a folder: in a bucket, whoever wrote last and goes on writing; here on files that know no more than one."""

import json
import threading
import time

import pytest

from jaxdiff.errors import UserError
from jaxdiff.job import workdir
from jaxdiff.storage import place


@pytest.fixture
def quick(monkeypatch):
    for name, value in (("BEAT_S", 0.05), ("LEASE_S", 0.4), ("SETTLE_S", 0.1)):
        monkeypatch.setattr(workdir, name, value)


def test_a_second_owner_is_refused_while_the_first_lives_and_not_after(quick, tmp_path):
    with workdir._lease(tmp_path / ".lock"):
        with pytest.raises(UserError, match=r"is in use by process \d+ on .*; wait for it, or choose another"):
            with workdir._lease(tmp_path / ".lock"):
                pass
    assert not (tmp_path / ".lock").exists()
    with workdir._lease(tmp_path / ".lock"):
        pass


def test_an_owner_that_was_killed_is_waited_for_and_no_longer(quick, tmp_path, capsys):
    (tmp_path / ".lock").write_text(json.dumps({"owner": "process 7 on a", "token": "x", "beat": 3}))
    began = time.monotonic()
    with workdir._lease(tmp_path / ".lock"):
        assert time.monotonic() - began >= 0.4
    assert "was in use by process 7 on a; waiting 0 s for a sign of life" in capsys.readouterr().err


def test_of_two_who_begin_at_once_one_has_it(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "SETTLE_S", 0.5)
    got, both = [], threading.Barrier(2)
    write = workdir._write_lease

    def at_once(file, token, number):
        if number == 0:
            both.wait()
        write(file, token, number)

    monkeypatch.setattr(workdir, "_write_lease", at_once)

    def try_it():
        try:
            with workdir._lease(tmp_path / ".lock"):
                got.append("owner")
                time.sleep(0.5)
        except UserError:
            got.append("refused")

    threads = [threading.Thread(target=try_it) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["owner", "refused"]


def test_an_owner_that_was_frozen_and_is_replaced_leaves(quick, tmp_path, monkeypatch):
    left = threading.Event()
    monkeypatch.setattr(workdir, "_leave", lambda line: left.set())
    with workdir._lease(tmp_path / ".lock"):
        (tmp_path / ".lock").write_text(json.dumps({"owner": "process 8 on b", "token": "y", "beat": 0}))
        assert left.wait(5)


@pytest.mark.parametrize("content", ["", "[]", "{", "7"])
def test_a_lock_that_says_nothing_is_somebodys(quick, tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    assert workdir._read_lease(tmp_path / ".lock") == {"owner": "another process"}


@pytest.mark.parametrize("name", ["ftp://host/run", "http://host/run", "memory://run"])
def test_other_addresses_are_refused(name):
    with pytest.raises(UserError, match="is no place for files"):
        place(name)


@pytest.mark.parametrize("name", [*"*?[]{}#%\\:~\n'\"|<>^`$&;", "\udcff", "..", "/a"])
def test_addresses_that_a_client_takes_for_a_pattern_or_quotes_are_refused(name):
    for address in (f"gs://bucket/runs/{name}", f"s3://bucket/runs/{name}/x"):
        with pytest.raises(UserError, match="not all that read and write buckets take literally"):
            place(address)
    assert str(place("gs://bucket/runs/a-b_c.d,e=1+(2)@x/größe/")) == "gs://bucket/runs/a-b_c.d,e=1+(2)@x/größe"
