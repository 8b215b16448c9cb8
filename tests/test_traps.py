"""The list of traps (scripts/mutants.py) is about tests and code that are there."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("mutants", ROOT / "scripts" / "mutants.py")
mutants = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutants)
PAGE = (ROOT / "docs" / "traps.md").read_text()


@pytest.mark.parametrize("trap", mutants.TRAPS, ids=lambda trap: trap.what[:40])
def test_each_trap_has_its_test_its_text_and_its_row(trap):
    file, name = trap.test.split("::")
    assert re.search(rf"^def {re.escape(name.split('[')[0])}\(", (ROOT / file).read_text(), re.MULTILINE)
    if trap.file:
        assert (ROOT / trap.file).read_text().count(trap.before) == 1, "the text to replace has changed"
        assert trap.after != trap.before
    planted = "caught" if trap.file else "–"
    assert f"| {trap.what} | `{trap.test.removeprefix('tests/')}` | {planted} |" in PAGE


def test_no_mistake_survives():
    assert "SURVIVED" not in PAGE
    assert len(re.findall(r"\| caught \|$", PAGE, re.MULTILINE)) >= 30
