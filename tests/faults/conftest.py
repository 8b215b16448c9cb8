"""One starter and one uninterrupted run for all tests of this folder."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.harness import CONFIG, Starter, write_images


@pytest.fixture(scope="session")
def starter(tmp_path_factory):
    """Starts train.py; its programs are compiled once for all tests."""
    starter = Starter(tmp_path_factory.mktemp("starter"))
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def config(images):
    """The path of a config: 41,345 parameters, 40 steps, a checkpoint every 10."""
    path = images.parent / "tiny.py"
    path.write_text(CONFIG.format(images=str(images)))
    return str(path)


@pytest.fixture(scope="session")
def straight(starter, config, tmp_path_factory):
    """The workdir of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    ended = starter.run(config, "--workdir", str(workdir))
    assert ended.code == 0, ended.err
    return workdir


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of Google's kind on this machine: gs://bucket for this process, and the variables for others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    env = {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs's name for it
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TENSORSTORE": "none",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_ROOT": "127.0.0.1:1",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    script = str(Path(__file__).with_name("bucket.py"))
    server = subprocess.Popen([sys.executable, script, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield env
    server.kill()
    server.wait()
