"""One starter and one uninterrupted run for all tests of this folder."""

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
