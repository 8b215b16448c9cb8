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


@pytest.fixture(params=["gs", "s3"])
def bucket(request, monkeypatch, tmp_path):
    """A bucket on this machine: its address, and the variables by which others find it; this process knows them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, ca = f"http://127.0.0.1:{port}", tmp_path / "ca.pem"
    env = {
        "gs": {
            "STORAGE_EMULATOR_HOST": url,  # gcsfs's name for it
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TENSORSTORE": "none",
            "NO_GCE_CHECK": "true",
            "GCE_METADATA_ROOT": "127.0.0.1:1",
        },
        "s3": {
            **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "anything"),
            **dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1"),
            **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), url),
            **dict.fromkeys(("AWS_CA_BUNDLE", "TENSORSTORE_CA_BUNDLE"), str(ca)),
        },
    }[request.param]
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    script = {"gs": ["bucket.py", str(port)], "s3": ["s3_bucket.py", str(port), str(ca)]}[request.param]
    command = [sys.executable, str(Path(__file__).with_name(script[0])), *script[1:]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0 and (request.param == "gs" or ca.exists()):
                break
        time.sleep(0.1)
    yield f"{request.param}://bucket", env
    server.kill()
    server.wait()
