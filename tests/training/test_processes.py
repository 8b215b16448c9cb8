"""Several real processes on this machine, over Gloo: the same run, one end for all, whatever happens to one of them.

Time limits are counted from the blow to the end of the survivors: ten seconds are the heartbeat's.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdiff.commands import main
from jaxdiff.errors import UserError
from jaxdiff.parallel import processes
from jaxdiff.training.checkpoints import restore

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CONFIG = """
from jaxdiff.config import *
config = Config(
    data=Data(name="folder", path={path!r}),
    model=Model(channels=4, channel_mults=(1,), blocks=1, attention_resolutions=(), num_classes=2),
    optimizer=Optimizer(learning_rate=1e-2, warmup_steps=2),
    train=Train(steps=4, batch_size=8, checkpoint_every=2, log_every=1, sample_every=4, ema_decay=0.9),
    sampling=Sampling(steps=2),
)
"""
ON_WORKERS = (  # a small data set read like one that memory does not hold: by worker processes
    "import sys; from jaxdiff.data import batches as data, sources; sources.MEMORY_LIMIT, data._MAX_WORKERS = 0, 1\n"
    "from jaxdiff.commands import main; raise SystemExit(main(['train', *sys.argv[1:]]))"
)
ENDLESS = ("--train.steps", "1000000", "--train.checkpoint_every", "1000000", "--train.sample_every", "0")


class Job:
    """`n` processes of a command, each with so many devices; their output is in files."""

    def __init__(self, folder, n, devices, command, options=(), *, of_each=None, environment=None):
        folder.mkdir(parents=True)
        self._folder, address = folder, f"127.0.0.1:{_free_port()}"
        flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        self.processes = []
        for i in range(n):
            place = [] if n == 1 else ["--coordinator", address, "--num-processes", str(n), "--process-id", str(i)]
            variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
            if environment:
                place, variables = [], {**variables, **environment(i, address)}
            with (folder / f"{i}.out").open("w") as out, (folder / f"{i}.err").open("w") as err:
                arguments = [*command, *options, *place, *(of_each[i] if of_each else ())]
                process = subprocess.Popen(
                    [sys.executable, *arguments], stdout=out, stderr=err, cwd=ROOT, env={**os.environ, **variables}
                )
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()

    def wait(self, timeout=400):
        """The exit codes of all."""
        deadline = time.monotonic() + timeout
        with self:
            return [process.wait(deadline - time.monotonic()) for process in self.processes]

    def survivors(self, victim, timeout):
        """The exit codes of all but one, which have to come within a time."""
        deadline = time.monotonic() + timeout
        others = [process for process in self.processes if process is not self.processes[victim]]
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in others]

    def text(self, i, stream="err"):
        """What process i wrote."""
        return (self._folder / f"{i}.{stream}").read_text()

    def until(self, ready, timeout=400):
        """Returns when something is so, which must be before any process ends."""
        deadline = time.monotonic() + timeout
        while not ready():
            assert time.monotonic() < deadline
            for i, process in enumerate(self.processes):
                assert process.poll() is None, self.text(i)
            time.sleep(0.1)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config whose data are 24 grey images of 2 classes; the processes of these tests share what they compile."""
    folder = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 4, 4), np.uint8)
    for i, image in enumerate(pixels):
        path = folder / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "tiny.py").write_text(CONFIG.format(path=str(folder / "images")))
    return str(folder / "tiny.py")


@pytest.fixture
def start(config, tmp_path):
    """Starts a job on tmp_path/run; what is left of it ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(n, devices, *options, command=("train.py",), **more):
            options = (config, "--workdir", str(tmp_path / "run"), *options)
            folder = tmp_path / f"job{len(list(tmp_path.glob('job*')))}"
            return stack.enter_context(Job(folder, n, devices, command, options, **more))

        yield start


@pytest.fixture(scope="module")
def pair(config, tmp_path_factory):
    """A run of 2 processes of 2 devices, from its start to its end."""
    folder = tmp_path_factory.mktemp("pair")
    job = Job(folder / "job", 2, 2, ["train.py", config], ["--workdir", str(folder / "run"), "--parallel.fsdp", "2"])
    assert job.wait() == [0, 0], job.text(0) + job.text(1)
    return job, folder / "run"


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The same run in this process, on its 8 devices."""
    workdir = tmp_path_factory.mktemp("alone")
    assert main(["train", config, "--workdir", str(workdir)]) == 0
    return workdir


def _metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"]: (line["loss"], line["grad_norm"]) for line in lines}
    assert len(values) == len(lines)
    return values


def _same(one, other):
    """Two runs on other layouts: losses to 1e-5 (float32 sums in another order), parameters after 4 steps to 1e-4."""
    a, b = _metrics(one), _metrics(other)
    assert a.keys() == b.keys()
    np.testing.assert_allclose([a[step] for step in a], [b[step] for step in a], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(restore(one)), jax.tree.leaves(restore(other)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)


def _steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_two_processes_give_the_numbers_of_one(pair, alone):
    _same(pair[1], alone)
    assert _steps(pair[1]) == _steps(alone) == [2, 4]


def test_process_0_alone_speaks_logs_and_draws(pair):
    job, workdir = pair
    assert "step 4/4" in job.text(0, "out") and "done: 4 steps" in job.text(0, "out")
    own = [line for line in job.text(1, "out").splitlines() if "peer ranks" not in line]  # Gloo's, cut anywhere
    assert own == []
    for i in range(2):
        assert re.fullmatch(rf"process {i} of 2; waiting up to 300 s for all at 127.0.0.1:\d+\n", job.text(i))
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
    assert [path.name for path in (workdir / "samples").iterdir()] == ["step_0000004.png"]


@pytest.mark.slow
def test_restored_on_4_then_1_then_2_processes_and_other_meshes(start, alone, tmp_path):
    for n, devices, steps, *options in (
        (4, 1, 2, "--parallel.fsdp", "2"),
        (1, 4, 3, "--parallel.fsdp", "4"),
        (2, 2, 4, "--parallel.mode", "pmap"),
    ):
        job = start(n, devices, *options, "--train.steps", str(steps), "--train.sample_every", "0")
        assert job.wait() == [0] * n, [job.text(i) for i in range(n)]
        assert int(restore(tmp_path / "run").step) == steps
    _same(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_config_that_differs_stops_all_and_nothing_is_written(start, tmp_path):
    job = start(2, 1, of_each=[["--seed", "1"], ["--optimizer.learning_rate", "0.5"]])
    assert job.wait() == [2, 2]
    for i in range(2):
        (line,) = [line for line in job.text(i).splitlines() if line.startswith("train.py: ")]
        assert "optimizer.learning_rate is 0.01 in process 0 and 0.5 in 1" in line
        assert "seed is 1 in process 0 and 0 in 1" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_wrong_input_that_one_process_sees_ends_all(start, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    job = start(2, 1)
    assert job.wait() == [2, 2]
    assert "holds checkpoints but no config.json" in job.text(0)
    assert "process 0 stopped: " in job.text(1) and "no config.json" in job.text(1)
    assert os.listdir(tmp_path / "run" / "checkpoints") == []


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_dead_or_frozen_process_ends_the_others_with_its_name(start, tmp_path, victim, blow):
    metrics = tmp_path / "run" / "metrics.jsonl"
    job = start(3, 1, *ENDLESS, "--train.batch_size", "6")
    job.until(lambda: metrics.exists() and metrics.read_text().count("\n") > 10)
    struck = time.monotonic()
    job.processes[victim].send_signal(blow)
    assert job.survivors(victim, 25) == [processes.LOST] * 2, [job.text(i) for i in range(3)]
    assert time.monotonic() - struck < 15 + os.getloadavg()[0] / 4  # 15 s on a quiet machine
    for i in {0, 1, 2} - {victim}:
        ours = [line for line in job.text(i).splitlines() if line.startswith("train.py: ")]
        assert len(ours) == 1, job.text(i)
        assert f"lost process {victim} (" in ours[0] and f"pid {job.processes[victim].pid})" in ours[0]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(start, tmp_path, alone):
    run = tmp_path / "run"
    job = start(2, 1, *ENDLESS)
    job.until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") > 10)
    job.processes[1].terminate()
    assert job.wait(60) == [75, 75], job.text(0) + job.text(1)
    (step,) = _steps(run)
    assert max(_metrics(run)) == step
    assert f"stopped by SIGTERM after step {step} of 1000000, all saved" in job.text(0)
    again = start(2, 1, *ENDLESS)
    again.until(lambda: max(_metrics(run), default=0) > step + 3)
    again.processes[0].send_signal(signal.SIGINT)
    assert again.wait(60) == [75, 75], again.text(0) + again.text(1)
    values = _metrics(run)
    assert list(values) == list(range(1, max(values) + 1))
    straight = _metrics(alone)
    np.testing.assert_allclose(values[3], straight[3], rtol=1e-5)


def _workers(pid):
    """The worker processes of a process, from /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_data_worker_that_dies_ends_the_job(start, tmp_path):
    """Each host reads through Grain's workers; one of process 1 is killed. Five seconds, and no worker stays behind."""
    metrics = tmp_path / "run" / "metrics.jsonl"
    job = start(2, 1, *ENDLESS, command=("-c", ON_WORKERS))
    job.until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    workers = [_workers(process.pid) for process in job.processes]
    assert all(workers)
    struck = time.monotonic()
    os.kill(workers[1][0], signal.SIGKILL)
    assert job.wait(30) == [processes.LOST, 1], job.text(0) + job.text(1)
    assert time.monotonic() - struck < 5 + os.getloadavg()[0] / 4  # 5 s on a quiet machine
    assert "a data worker process died with exit code -9" in job.text(1)
    assert "process 1 stopped: " in job.text(0) and "a data worker process died" in job.text(0)
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pids in workers for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert json.loads(metrics.read_text().splitlines()[0])["seconds"]["data_wait"] >= 0


@pytest.mark.slow
def test_a_process_that_does_not_come_is_no_reason_to_wait_for_ever(start, tmp_path):
    impatient = "import sys; from jaxdiff.parallel import processes; processes._START_SECONDS = 3\n"
    impatient += "from jaxdiff.commands import main; raise SystemExit(main(['train', *sys.argv[1:]]))"
    job = start(2, 1, command=("-c", impatient))
    job.processes[1].kill()
    assert job.survivors(1, 60) == [processes.LOST], job.text(0)
    assert "train: not all processes came within 3 s" in job.text(0)
    assert not (tmp_path / "run").exists()


SLOW = (  # process 1 compiles 33 s longer than process 0: more than the 30 s after which Gloo gives up
    "import sys, time; from jaxdiff.assembly.training_program import Program; from jaxdiff.commands import main\n"
    "compiled = Program.compiled\n"
    "Program.compiled = lambda self: (time.sleep(33 if sys.argv[-1] == '1' else 0), compiled(self))[1]\n"
    "raise SystemExit(main(['train', *sys.argv[1:]]))"
)


@pytest.mark.slow
def test_one_process_may_compile_for_longer_than_gloo_waits(start, alone, tmp_path):
    job = start(2, 1, "--train.sample_every", "0", command=("-c", SLOW))
    assert job.wait(300) == [0, 0], job.text(0) + job.text(1)
    _same(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_process_that_never_comes_to_the_first_step_ends_the_job(start, tmp_path):
    impatient = "from jaxdiff.parallel import processes; processes.COMPILE_SECONDS = 3\n" + SLOW.replace("33", "9")
    job = start(2, 1, command=("-c", impatient))
    assert job.wait(120)[0] == 1, job.text(0)
    assert re.search(r"not all processes came within 3 s to: the step is compiled \(\d+\); start the job", job.text(0))
    assert not _steps(tmp_path / "run")


@pytest.mark.slow
def test_samples_of_two_processes_are_those_of_one(pair, tmp_path):
    def draw(n, devices):
        out = tmp_path / f"{n}.npz"
        options = [str(pair[1]), "--num", "7", "--batch-size", "4", "--out", str(out)]
        job = Job(tmp_path / f"of{n}", n, devices, ["sample.py"], options)
        assert job.wait() == [0] * n, [job.text(i) for i in range(n)]
        assert all(job.text(i, "out").count("7 samples") == (i == 0) for i in range(n))
        with np.load(out) as arrays:
            return arrays["images"].astype(int), arrays["labels"].tolist()

    (two, labels), (one, same_labels) = draw(2, 2), draw(1, 1)
    assert two.shape == (7, 4, 4, 1) and labels == same_labels
    assert np.abs(two - one).max() <= 1 and len({image.tobytes() for image in two}) == 7


@pytest.mark.slow
def test_scores_of_two_processes_are_those_of_one(pair, tmp_path):
    """Of the same samples and the same test images; 130 of them, which no number of devices divides."""
    pixels = np.random.default_rng(1).integers(0, 256, (140, 4, 4), np.uint8)
    for i, image in enumerate(pixels):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    photos = ["--data-path", str(tmp_path / "photos"), "--test-path", str(tmp_path / "photos")]
    numbers = ["--num", "130", "--bits-num", "5", "--batch-size", "48", "--features", "tests.toy_features:features"]

    def measure(n, devices):
        run = Path(shutil.copytree(pair[1], tmp_path / f"run{n}"))
        options = [str(run), "--metrics", "fid,recall,is,sw,bpd", *photos, *numbers]
        job = Job(tmp_path / f"of{n}", n, devices, ["-m", "jaxdiff.evaluate"], options)
        assert job.wait() == [0] * n, [job.text(i) for i in range(n)]
        assert all(("bits per dimension" in job.text(i, "out")) == (i == 0) for i in range(n))
        content = json.loads((run / "evaluation" / "scores.json").read_text())
        assert [score["what"] == "test" for score in content["scores"]] == [True, False]
        return [*(score["values"] for score in content["scores"]), {"bpd": content["bits"][0]["value"]}]

    for two, one in zip(measure(2, 2), measure(1, 1), strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-6)  # float32 features, in batches of other sizes


@pytest.mark.slow
def test_slurm_is_found_by_its_variables(start, tmp_path):
    def environment(i, address):
        job_id = str(int(address.rpartition(":")[2]))  # JAX derives the port from it
        return {
            "SLURM_JOB_ID": job_id,
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i),
            "SLURM_STEP_NUM_NODES": "1",
        }

    job = start(2, 1, "--train.sample_every", "0", environment=environment)
    assert job.wait() == [0, 0], job.text(0) + job.text(1)
    assert "done: 4 steps" in job.text(0, "out") and "done" not in job.text(1, "out")
    assert _steps(tmp_path / "run") == [2, 4]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (processes.Place("host:1"), "give all three or none"),
        (processes.Place("host", 2, 0), "--coordinator host must be HOST:PORT"),
        (processes.Place("host:1", 2, 2), r"--process-id 2 must lie in 0\.\.1"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(place, words):
    with pytest.raises(UserError, match=words):
        processes.run(place, "train.py", lambda: (0, "done"))


def test_a_job_of_one_process_is_not_joined(monkeypatch):
    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "JOB_ID": "7", "STEP_NODELIST": "a"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert processes.run(processes.Place(), "train.py", lambda: (0, "done")) == (0, "done")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    assert processes._detected() == ("Slurm: ", processes.Place("a:61447", 3, 0))
