"""docs/sampling.md keeps its word: its code runs, and what it asserts holds."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parent.parent / "docs" / "sampling.md"


def test_the_code_of_the_page_runs():
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    for name in ("variation", "painted", "walk", "clear"):
        assert names[name].shape == (4, 8, 8, 1) and np.all(np.isfinite(names[name]))
    assert abs(float(names["clear"].mean()) - 1.0) > 0.3 > abs(float(names["x"].mean()) - 1.0)
    assert len(names["own"]) == 21
