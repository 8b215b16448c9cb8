"""README.md keeps its word: its example runs and does what it says, and its links lead somewhere."""

import re
from pathlib import Path

import numpy as np

from jaxdiff.config import Config, validate

README = Path(__file__).parent.parent / "README.md"


def code_block(language):
    """The one block of that language in README.md."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return code


def run_block(language):
    """The names that the block leaves behind."""
    names = {}
    exec(compile(code_block(language), str(README), "exec"), names)
    return names


def test_example_learns_the_data_and_samples_it():
    names = run_block("python")
    x = np.asarray(names["x"])
    # 0.1 is four times what chance (512 data, 4096 samples, SGD) and 50 DDIM steps (3 % narrower) leave together.
    np.testing.assert_allclose(x.mean(axis=0), [2.0, -1.0], atol=0.1)
    np.testing.assert_allclose(x.std(axis=0), [0.5, 0.5], atol=0.1)
    assert names["x_t"].shape == names["data"].shape


def test_example_is_about_twenty_lines():
    assert len([line for line in code_block("python").splitlines() if line.strip()]) <= 25


def test_config_example_is_valid():
    config = run_block("py")["config"]
    assert isinstance(config, Config)
    validate(config)


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
