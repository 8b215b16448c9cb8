"""README.md keeps its word: its example runs and does what it says, and its links lead somewhere."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parent.parent / "README.md"


def test_example_learns_the_data_and_samples_it():
    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    x = np.asarray(names["x"])
    # 0.1 is four times what chance (512 data, 4096 samples, SGD) and 50 DDIM steps (3 % narrower) leave together.
    np.testing.assert_allclose(x.mean(axis=0), [2.0, -1.0], atol=0.1)
    np.testing.assert_allclose(x.std(axis=0), [0.5, 0.5], atol=0.1)
    assert names["x_t"].shape == names["data"].shape


def test_example_is_about_twenty_lines():
    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 25


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
