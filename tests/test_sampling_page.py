"""docs/sampling.md keeps its word: its code runs, and what it asserts holds."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdiff.commands import main

PAGE = Path(__file__).parent.parent / "docs" / "sampling.md"


def test_the_code_of_the_page_runs():
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    for name in ("variation", "painted", "walk", "clear"):
        assert names[name].shape == (4, 8, 8, 1) and np.all(np.isfinite(names[name]))
    assert abs(float(names["clear"].mean()) - 1.0) > 0.3 > abs(float(names["x"].mean()) - 1.0)
    assert len(names["own"]) == 21


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with runs/digits, a DiT of two steps with a checkpoint after each, a picture and a mask."""
    folder = tmp_path_factory.mktemp("page")
    small = "--model dit --model.width 8 --model.depth 1 --model.num_heads 2 --model.num_classes 10"
    small += " --diffusion.prediction v"
    short = "--train.steps 2 --train.checkpoint_every 1 --train.batch_size 8 --train.sample_every 0 --sampling.steps 3"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(shlex.split(f"train digits {small} {short}")) == 0
        ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
        Image.fromarray(ramp).save("three.png")
        Image.fromarray(np.uint8(255) * np.repeat(np.arange(8)[:, None] >= 4, 8, axis=1)).save("lower_half.png")
        yield folder


SHELL = "".join(re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)).splitlines()
COMMANDS = [line for line in SHELL if "runs/digits" in line]  # prompts are drawn in test_text.py


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_page_run(digits, line, capsys):
    assert main([*shlex.split(line)[1:], "--num", "8", "--batch-size", "8", "--out", "drawn.npz"]) == 0
    images = np.load("drawn.npz")["images"]
    assert images.shape == (8, 8, 8, 1)
    if "--mask" in line:
        assert np.array_equal(images[:, :4, :, 0], np.broadcast_to(np.asarray(Image.open("three.png"))[:4], (8, 4, 8)))
        assert not np.array_equal(images[0, 4:], images[1, 4:])
