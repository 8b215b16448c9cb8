"""The session on an accelerator, end to end at toy size on the CPU, with no torch at hand."""

import json
import sys

import pytest

from benchmarks import accelerator


@pytest.mark.slow
def test_a_toy_session_leaves_findings_tables_and_goes_on_without_torch(tmp_path, monkeypatch):
    options = ["--toy", "--torch", "/bin/false", "--parts", "forward", "timings", "profile", "--cases", "DiT-B/2"]
    monkeypatch.setattr(sys, "argv", ["accelerator", "--out", str(tmp_path), "--minutes", "5", *options])
    assert accelerator.main() == 1  # for want of torch alone
    found = json.loads((tmp_path / "accelerator.json").read_text())
    assert list(found["failed"]) == ["torch, DiT-B/2, torch eager"], found["failed"]
    assert {name: row["within bounds"] for name, row in found["forward"].items()} == {"DiT": True, "classifier": True}
    times = [found["timings"][f"DiT-B/2, {what}"] for what in ("forward", "step", "sample")]
    assert all(row["jaxdiff ms"] > 0 and "beside compiling" not in row for row in times)
    forward, step, sample = (row["flops"] for row in times)
    assert (step, sample) == (3 * forward, 50 * forward)
    assert found["profile"]["DiT-B/2, step"]["all kernels ms"] > 0
    page = (tmp_path / "accelerator.md").read_text()
    assert "| timings | batch | jaxdiff ms |" in page and "## failed" in page
