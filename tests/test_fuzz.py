"""What fuzzing found (scripts/fuzz.py), one input each; and a bounded campaign of it."""

import importlib.util
import json
from pathlib import Path

import pytest

from jaxdiff.commands import main

_spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parent.parent / "scripts" / "fuzz.py")
fuzz = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz)


def safetensors_of(shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    return len(header).to_bytes(8, "little") + header


TINY = "from jaxdiff.config import *\nconfig = Config(data=Data(name='folder'))\n"


@pytest.mark.parametrize(
    ("argv", "files", "words"),
    [
        (["train", "digits", "--data.name", "s3://b/../x"], {}, "unknown data set s3://b/../x"),
        (["train", "digits", "--data.name", "1"], {}, "unknown data set 1"),
        (["train", "c.py", "--data.path", "~nobody-at-all/x"], {"c.py": TINY}, "~nobody-at-all/x is not a folder"),
        (["train", "c.py", "--data.path", "."], {"c.py": TINY.encode("utf-16")}, "save it as UTF-8"),
        (["convert", "x.pt", "out", "--project", "guided-diffusion", "--flags", "'"], {"x.pt": "x"}, "--flags"),
        (["convert", "x.safetensors", "out"], {"x.safetensors": safetensors_of([0, 10**30])}, "shape that cannot be"),
        (["convert", "x.safetensors", "out"], {"x.safetensors": safetensors_of([0, 2**62, 9])}, "shape that cannot be"),
    ],
)
def test_what_fuzzing_found_is_one_line(argv, files, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    for name, content in files.items():
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, said = main(argv), capsys.readouterr()
    assert code == 2 and said.err.count("\n") == 1 and words in said.err, said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


@pytest.mark.slow
def test_a_minute_of_fuzzing_finds_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tried, finds = fuzz.fuzz(seconds=60)
    assert not finds and all(tried.values()) and len(tried) == len(fuzz.KINDS), finds
