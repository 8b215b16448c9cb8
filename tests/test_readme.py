"""README.md keeps its word: its example runs and does what it says, and its links lead somewhere."""

import re
from pathlib import Path

import numpy as np

from jaxdiff.config import Config, validate

README = Path(__file__).parent.parent / "README.md"


def code_blocks(language):
    """The blocks of that language in README.md."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def run_blocks(language, first=0, last=1):
    """The names that blocks first to last - 1, run one after another, leave behind."""
    names = {}
    for code in code_blocks(language)[first:last]:
        exec(compile(code, str(README), "exec"), names)
    return names


def test_examples_learn_the_data_and_sample_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_blocks("python", 0, 2)
    # 0.1 is four times what chance (512 data, 4096 samples, SGD) and 50 DDIM steps (3 % narrower) leave together.
    for x in (names["x"], names["x_own"]):
        np.testing.assert_allclose(np.mean(x, axis=0), [2.0, -1.0], atol=0.1)
        np.testing.assert_allclose(np.std(x, axis=0), [0.5, 0.5], atol=0.1)
    assert names["x_t"].shape == names["data"].shape
    assert (tmp_path / "runs" / "own" / "metrics.jsonl").exists()


def test_examples_are_about_twenty_lines():
    for code in code_blocks("python"):
        assert len([line for line in code.splitlines() if line.strip()]) <= 25


def test_config_example_is_valid():
    config = run_blocks("py")["config"]
    assert isinstance(config, Config)
    validate(config)


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
