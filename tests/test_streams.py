"""A run outlasts its log: closed pipes, full disks, encodings without the letters, streams that were never open."""

import io
import os
import subprocess
import sys
import warnings

import pytest

from jaxdiff.commands import exit_code, main
from jaxdiff.streams import lasting


@pytest.fixture
def streams(monkeypatch):
    """(standard output, standard error) -> sets them; "closed pipe", "full disk", or an encoding in memory."""
    opened = []

    def make(kind):
        if kind == "closed pipe":
            read, write = os.pipe()
            os.close(read)
            opened.append(os.fdopen(write, "w"))
        elif kind == "full disk":
            opened.append(open("/dev/full", "w"))
        elif kind is None:
            return None
        else:
            opened.append(io.TextIOWrapper(io.BytesIO(), encoding=kind, errors="strict"))
        return opened[-1]

    def use(out, err):
        out, err = make(out), make(err)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return out, err

    yield use
    monkeypatch.undo()
    for stream in opened:
        stream.close()  # of one that failed, what it still held goes nowhere


def said(stream):
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


def work():
    """A run that speaks on both streams, at length."""
    for step in range(1000):
        print(f"step {step}", flush=True)
        print("of 1000", file=sys.stderr)
    return 0, "done"


LOST = "train.py: standard output cannot be written (no space left on device); its lines are lost\n"


@pytest.mark.parametrize("out", ["closed pipe", "full disk", None])
@pytest.mark.parametrize("err", ["closed pipe", "full disk", "utf-8", None])
def test_a_run_outlasts_its_log(streams, out, err):
    _, err_stream = streams(out, err)
    assert exit_code("train.py", work) == 0
    if err == "utf-8":
        lines = said(err_stream)
        assert lines.count("of 1000\n") == 1000
        assert lines.replace("of 1000\n", "") == (LOST if out == "full disk" else "")


@pytest.mark.parametrize(("out", "code"), [("closed pipe", 0), ("full disk", 1)])
def test_a_result_that_is_not_written_is_no_success_unless_nobody_reads_it(streams, out, code):
    _, err = streams(out, "utf-8")
    assert exit_code("train.py", lambda: (0, "the table")) == code
    assert said(err) == (LOST if code else "")
    with pytest.raises(SystemExit):
        main(["convert", "--help"])


def test_letters_that_the_encoding_lacks_are_escaped(streams):
    out, err = streams("ascii", "ascii")
    assert exit_code("train.py", lambda: (0, "größe 日 \udcff")) == 0
    assert said(out) == "gr\\xf6\\xdfe \\u65e5 \\udcff\n"
    out, err = streams("latin-1", "utf-8")
    assert exit_code("sample.py", lambda: (2, "größe \udcff")) == 2
    assert said(out) == "" and said(err) == "sample.py: größe \\udcff\n"


def test_the_streams_are_as_before_afterwards_and_warnings_take_a_line(streams):
    out, err = streams("utf-8", "utf-8")
    with lasting("x"):
        assert warnings.formatwarning("this\n  and that", UserWarning, "file", 1) == "warning: this and that\n"
    assert "file:1" in warnings.formatwarning("this", UserWarning, "file", 1)
    assert sys.stdout is out and sys.stderr is err


def test_no_file_gets_the_number_of_a_stream_that_was_closed(tmp_path):
    """Or what a library writes to standard error lies in a checkpoint."""
    code = "from jaxdiff.streams import lasting\nwith lasting('x'):\n    open('file', 'w').fileno() > 2 or exit(1)"
    command = f'exec {sys.executable} -c "{code}" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 0
