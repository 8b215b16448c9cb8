"""The shell around the jobs: the boundary of errors, arguments, places, config files, caches and clusters."""

import importlib
import itertools
import os
import sys
import warnings
from pathlib import Path

import jax
import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError
from gcsfs.retry import HttpError
from s3fs.errors import translate_boto_error

from jaxdiff import commands, errors
from jaxdiff.commands import COMMANDS, exit_code, main, parser
from jaxdiff.commands.parser import CONFIGS, parse
from jaxdiff.commands.sample import SampleArguments
from jaxdiff.config import Config, Data
from jaxdiff.config.files import expand_paths, load
from jaxdiff.errors import RunError, UserError, command, program
from jaxdiff.family import Family
from jaxdiff.job import sampling as sampling_job
from jaxdiff.objectives import Consistency
from jaxdiff.parallel import processes
from jaxdiff.storage import check_writable, expanded, place
from jaxdiff.training.checkpoints import report
from jaxdiff.training.logs import Progress


def raising(error):
    def body():
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("two\n lines"), 2, "two lines"),
        (RunError("lost"), 1, "lost"),
        (FileNotFoundError(2, "No such file or directory", "a/b.png"), 1, "a/b.png: no such file or directory"),
        (OSError(40, "Too many levels of symbolic links", "loop"), 1, "loop: too many levels of symbolic links"),
        (MemoryError("want 9 GiB"), 1, "out of memory; work on fewer images at a time (want 9 GiB)"),
        (RuntimeError("Unable to initialize backend 'tpu': none"), 2, "JAX_PLATFORMS=cpu is not to be had here"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 1"), 1, "out of device memory"),
        (KeyboardInterrupt(), 75, "stopped; run the same command again"),
        (ConnectTimeoutError(endpoint_url="https://b/run"), 1, 'Connect timeout on endpoint URL: "https://b/run"; see'),
        (
            translate_boto_error(ClientError({"Error": {"Code": "403", "Message": "no"}}, "get")),
            1,
            "no; see docs/launch",
        ),
        (HttpError({"code": 401, "message": "Anonymous caller"}), 1, "Anonymous caller, 401; see docs/launch"),
    ],
)
def test_whatever_ends_a_command_is_one_line(error, code, line, capsys):
    assert exit_code("jaxdiff train", raising(error)) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith(f"jaxdiff train: {line}")


def test_a_bug_names_its_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(errors.tempfile, "tempdir", str(tmp_path))
    assert exit_code("jaxdiff train", raising(KeyError("beta"))) == 1
    (file,) = tmp_path.iterdir()
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"internal error: KeyError: 'beta' (where: {file}" in line
    assert "Traceback" in file.read_text() and "in body" in file.read_text()
    monkeypatch.setattr(errors.tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert exit_code("jaxdiff train", raising(KeyError("beta"))) == 1
    assert "JAXDIFF_DEBUG=1 shows where" in capsys.readouterr().err
    monkeypatch.setenv("JAXDIFF_DEBUG", "1")
    with pytest.raises(KeyError):
        exit_code("jaxdiff train", raising(KeyError("beta")))


def test_a_thread_of_a_save_that_failed_says_nothing(capsys, monkeypatch):
    """TensorStore's threads end after the loop that waited for them; anything else of that kind is still said."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    exit_code("x", lambda: (0, ""))

    class Ends:
        def __init__(self, text):
            self.text = text

        def __del__(self):
            raise RuntimeError(self.text)

    for text in ("Event loop is closed", "another"):
        Ends(text)
    said = capsys.readouterr().err
    assert "RuntimeError: another" in said and "Event loop" not in said


def test_every_command_has_its_help_and_a_wrong_one_its_neighbour(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name}" in listed
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0 and f"jaxdiff {name} [-h]" in capsys.readouterr().out
        assert callable(importlib.import_module(f"jaxdiff.commands.{name.replace('-', '_')}").run)
    assert main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err
    assert main(["horse"]) == 2
    assert "did you mean" not in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"jaxdiff 0.1.0, jax {jax.__version__}, cpu (")


def test_the_list_has_every_family_and_config(capsys):
    assert main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("jaxdiff.")]
    families = [value for module in modules for value in vars(module).values() if isinstance(value, Family)]
    for name in itertools.chain(*(family.members for family in families), (p.stem for p in CONFIGS.glob("*.py"))):
        assert any(line.startswith(f"  {name} ") for line in lines), name


def test_quiet_leaves_out_progress_and_notes(capsys):
    for option, shown in (("--quiet", ""), ("--log-level=error", ""), ("--log-level=warning", "n"), ("--seed=0", "pn")):
        parse(SampleArguments, ["run", option], "sample.py")
        Progress(0, 10, 1).update(1, 0.5, 1.0)
        report("note: n")
        said = capsys.readouterr()
        assert [bool(said.out), bool(said.err)] == ["p" in shown, "n" in shown]


def test_help_lists_the_configs(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert all(path.stem in out for path in parser.CONFIGS.glob("*.py")) and "Handwritten digits of scikit-learn" in out


@pytest.mark.parametrize(
    ("typed", "name", "how"),
    [
        ("/clone/train.py", "sample.py", "uv run sample.py"),
        ("/venv/bin/jaxdiff", "jaxdiff sample", "jaxdiff sample"),
        ("/lib/jaxdiff/__main__.py", "python -m jaxdiff sample", "python -m jaxdiff sample"),
    ],
)
def test_messages_name_the_command_that_was_typed(typed, name, how, monkeypatch):
    monkeypatch.setattr(sys, "argv", [typed])
    assert (program("sample"), command("sample")) == (name, how)
    assert program("evaluate").endswith("jaxdiff evaluate")


@pytest.mark.parametrize(
    ("argv", "right"),
    [
        (["sample"], "WORKDIR is missing: the folder of a run"),
        (["sample", "a", "b"], "unexpected argument 'b'; see --help"),
        (["sample", "a", "--steps", "many"], "--steps: no type matching INT could be instantiated from ['many']"),
        (["sample", "a", "--dtype", "int8"], "--dtype 'int8' must be one of"),
        (["sample", "a", "--seed"], "--seed needs a value"),
        (["convert", "a"], "target is missing"),
        (["convert", "a", "b", "--to", "keras"], "--to 'keras' must be one of workdir, diffusers, safetensors"),
        (["convert", "gs://a/b", "c"], "folders of this machine"),
        (["plan", "--topology", "v5e:2x2", "--plan-outt", "x"], "did you mean --plan-out?"),
        (["plan", "--quick"], "--quick needs --topology"),
        (["train", "--quick"], "--quick needs --dry-run"),
        (["evaluate", "a", "--metrics=--x y", "--samplar", "3"], "unknown option --samplar; did you mean --sampler?"),
    ],
)
def test_wrong_arguments_are_one_line(argv, right, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and right in error
    assert not any(tmp_path.iterdir())


def test_a_word_with_a_space_is_a_value():
    convert = importlib.import_module("jaxdiff.commands.convert")
    flags = "--image_size 64 --class_cond True"
    asked = parser.parse(convert.ConvertArguments, ["a", "b", "--flags", flags, "--null-class"], "convert")
    assert (asked.flags, asked.null_class, asked.source) == (flags, True, "a")


def test_home_is_expanded_by_one_rule(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/runs") == "/home/me/runs" == str(place("~/runs"))
    assert [expanded(name) for name in ("", "a/~", "~nobody-at-all/x", "gs://b/~")] == [
        "",
        "a/~",
        "~nobody-at-all/x",
        "gs://b/~",
    ]
    config = Config(workdir="~/w", data=Data(path="~/d"), objective=Consistency(start="~/s"))
    config = expand_paths(config)
    assert (config.workdir, config.data.path, config.objective.start) == ("/home/me/w", "/home/me/d", "/home/me/s")
    sample, evaluate = (importlib.import_module(f"jaxdiff.commands.{name}") for name in ("sample", "evaluate"))
    assert parser.parse(sample.SampleArguments, ["~/r", "--out", "~/p.png"], "sample").out == "/home/me/p.png"
    asked = parser.parse(evaluate.EvaluateArguments, ["~/r", "--test-path=~/t", "--features", "~/f.pth"], "evaluate")
    assert (*asked.workdir, asked.test_path, asked.features) == ("/home/me/r", "/home/me/t", "/home/me/f.pth")
    for home in ("", "relative"):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(UserError, match="no home folder"):
            expanded("~/runs")
    monkeypatch.setattr(os.path, "expanduser", lambda name: name)  # nobody's home is known
    with pytest.raises(UserError, match="no home folder"):
        expanded("~/runs")


def test_places_to_write_are_tried_and_nothing_stays(tmp_path):
    check_writable(tmp_path / "a" / "b" / "c.png", "--out")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("mine")
    check_writable(tmp_path / "file", "--out")
    for name, why in (
        ("folder.png", "is a directory"),
        ("file/x.png", "its folder is a file"),
        ("x" * 260, "too long"),
    ):
        with pytest.raises(UserError, match=f"--out .* cannot be written: .*{why}"):
            check_writable(tmp_path / name, "--out")
    with pytest.raises(UserError, match="cannot be written"):
        check_writable(Path("/proc/here/x.png"), "--out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"] and not any(
        (tmp_path / "folder.png").iterdir()
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_out_is_tried_before_anything_is_read(tmp_path, monkeypatch):
    for out in (tmp_path / "many", tmp_path / "grid.png"):
        sampling_job.check_out(sampling_job.Request(tmp_path), out, 2)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "many", tmp_path / "file" / "grid.png"):
        with pytest.raises(UserError, match="cannot be written"):
            sampling_job.check_out(sampling_job.Request(tmp_path), out, 2)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("home", "xdg", "where"),
    [
        ("/home/me", "/cache", "/cache/jaxdiff/xla"),
        ("/home/me", "", "/home/me/.cache/jaxdiff/xla"),
        ("/home/me", "relative", "/home/me/.cache/jaxdiff/xla"),
        ("~", "", None),
        ("relative", "", None),
    ],
)
def test_the_cache_lies_where_xdg_says_or_nowhere(home, xdg, where, monkeypatch):
    options = {}
    monkeypatch.setattr(jax.config, "update", options.__setitem__)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setattr(os.path, "expanduser", lambda name: name.replace("~", home))
    with warnings.catch_warnings():
        commands.use_compilation_cache()
    assert options["jax_compilation_cache_dir"] == where


TINY = b"from jaxdiff.config import Config\nconfig = Config(seed=3)\n"


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + TINY,
        b"# -*- coding: latin-1 -*-\n# gr\xf6\xdfe\n" + TINY,
        TINY.replace(b"\n", b"\r\n"),
        b"from beside_it import seed\nfrom jaxdiff.config import Config\nconfig = Config(seed=seed)\n",
    ],
)
def test_config_files_are_read_as_python_reads_them(content, tmp_path):
    (tmp_path / "beside_it.py").write_text("seed = 3\n")
    (tmp_path / "mine.py").write_bytes(content)
    path = list(sys.path)
    assert load(str(tmp_path / "mine.py"), tmp_path).seed == 3 and load("mine", tmp_path).seed == 3
    assert sys.path == path


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("import os\nos.environ['NOT_THERE']\n", r"does not run \(mine.py, line 2\): KeyError: 'NOT_THERE'"),
        ("import broken_sibling\n", r"does not run \(broken_sibling.py, line 2\): ZeroDivisionError"),
        ("raise SystemExit('set STEPS')\n", "SystemExit: set STEPS"),
        ("x = 'gr\xf6\xdfe'\n", r"mine.py does not run.*(codec|utf-8)"),
        ("x = (\n", r"SyntaxError: .*line 1"),
        ("import nothing_of_that_name\n", r"\(mine.py, line 1\): ModuleNotFoundError"),
        ("config = 3\n", "must define config"),
    ],
)
def test_a_config_that_fails_says_where(text, right, tmp_path):
    (tmp_path / "broken_sibling.py").write_text("x = 0\n1 / x\n")
    (tmp_path / "mine.py").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=right):
        load(str(tmp_path / "mine.py"), tmp_path)


def slurm(monkeypatch, **values):
    values = {"JOB_ID": "7", "STEP_NODELIST": "a", "NTASKS": "2", "PROCID": "0", "LOCALID": "0", **values}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.mark.parametrize("count", ["", "two"])
def test_a_cluster_that_cannot_be_read_is_none(count, monkeypatch, capsys):
    slurm(monkeypatch, NTASKS=count)
    assert processes.run(processes.Place(), "train.py", lambda: (0, "done")) == (0, "done")
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and note.startswith(
        "note: Slurm cannot be read (ValueError: invalid literal for int()"
    )


@pytest.mark.parametrize(("name", "value"), [("PROCID", ""), ("PROCID", "2"), ("JOB_ID", "x"), ("STEP_NODELIST", "")])
def test_several_processes_of_which_the_rest_cannot_be_read_are_refused(name, value, monkeypatch):
    slurm(monkeypatch, **{name: value})
    with pytest.raises(UserError, match=r"Slurm has 2 processes, but .*; mend that, or give --coordinator"):
        processes.run(processes.Place(), "train.py", lambda: (0, "done"))


def test_a_pod_without_its_client_or_token_is_one_process(monkeypatch, capsys):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert processes._detected() == ("", processes.Place())
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and note.startswith("note: K8s cannot be read (Kubernetes environment detected, but")


def test_a_job_says_at_once_what_it_waits_for(monkeypatch, capsys):
    slurm(monkeypatch)
    monkeypatch.setattr(processes, "_connect", lambda place, program: "joined")
    assert processes.run(processes.Place(), "train.py", lambda: (0, "done")) == (processes.LOST, "joined")
    assert capsys.readouterr().err == "Slurm: process 0 of 2; waiting up to 300 s for all at a:61447\n"
    assert processes.run(processes.Place("h:1", 3, 2), "train.py", lambda: (0, "")) == (76, "joined")
    assert capsys.readouterr().err == "process 2 of 3; waiting up to 300 s for all at h:1\n"
