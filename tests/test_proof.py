"""The proof page says what was measured, of every sampler there is, and names whatever misses its mark."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import jaxdiff as jd
from benchmarks import proof, proof_page
from tests.samplers import convergence as c

PARTS = proof_page.load()
PAGE = (Path(__file__).parent.parent / "docs" / "proof.md").read_text()
CASES = {(s, g) for family in proof.FAMILIES for s in family for g in proof.GRIDS}


def test_the_page_is_that_of_the_numbers():
    assert proof_page.text(PARTS) == PAGE


def test_every_sampler_is_proven():
    """By its own name, or as one of its variants."""
    shown = {name.split(" ")[0] for name in (*proof.ODE, *c.STOCHASTIC)} | {"lcm"}
    assert shown == set(jd.samplers.METHODS)
    missing = set(proof.PARTS) - {"page"} - set(PARTS)
    assert not set(PARTS) - set(proof.PARTS)
    assert all(name in PAGE.partition("Not measured:")[2].partition("\n")[0] for name in missing)


@pytest.mark.parametrize("name", proof.ODE)
def test_deterministic_samplers_have_every_row_and_their_order(name):
    rows, order = PARTS[name]["rows"], proof.ODE[name].order
    assert {(r["schedule"], r["grid"]) for r in rows} == CASES
    without = [r for r in rows if None in r["orders"]]
    assert {r["schedule"] for r in without} == (set(proof.DISCRETE) if name == proof.NOT_ON_TABLES else set())
    smooth = [r for r in rows if r["schedule"] in proof.CONTINUOUS]
    np.testing.assert_allclose([r["orders"] for r in smooth], order, atol=proof_page.TOLERANCE)
    # No fit: the plain slope between the two finest numbers of steps whose errors are above rounding.
    finest = [[p for p in slopes if p is not None][-1] for r in smooth for slopes in r["slopes"]]
    assert np.mean(np.abs(np.array(finest) - order) < proof_page.TOLERANCE) > 0.95
    # Tables are too short for some; the page names each of these.
    tables = [r for r in rows if r["schedule"] in proof.DISCRETE and r not in without]
    assert not tables or abs(np.median([r["orders"] for r in tables]) - order) < proof_page.TOLERANCE
    for r in tables:
        for p in r["orders"]:
            assert abs(p - order) <= proof_page.TOLERANCE or f"{p:.2f} (" in PAGE
    assert all(len(r[data]) == len(proof.FEW) for r in rows for data in ("gaussian", "mixture"))
    assert f"| `{name}` | {order} |" in PAGE


@pytest.mark.parametrize("name", c.STOCHASTIC)
def test_stochastic_samplers_have_every_row_their_order_and_their_law(name):
    rows = PARTS[f"law of {name}"]["rows"]
    assert {(r["schedule"], r["grid"]) for r in rows} == CASES
    assert max(r["off"] for r in rows) < 4
    np.testing.assert_allclose([r["order"] for r in rows], c.STOCHASTIC[name].order, atol=proof_page.TOLERANCE)


@pytest.mark.parametrize("name", [name for name in proof.ON_THE_MIXTURE if f"mixture by {name}" in PARTS])
def test_the_mixture_is_met_on_every_schedule_and_grid(name):
    rows = PARTS[f"mixture by {name}"]["rows"]
    everywhere = set(itertools.product(proof.CONTINUOUS, proof.GRIDS)) | {(s, "trailing") for s in proof.DISCRETE}
    assert {(r["schedule"], r["grid"]) for r in rows} == everywhere
    assert max(r["off"] for r in rows) < 4


def test_everything_else_is_as_good_as_it_is_said_to_be():
    assert all(r["off"] < 4 for r in PARTS["law of lcm"]["rows"])
    assert all(r["good"] == 1000 for r in PARTS["grids"]["rows"]) and len(PARTS["grids"]["rows"]) == len(CASES)
    assert all(abs(r["found"] - r["exact"]) < 1e-9 for r in PARTS["bound"]["rows"])
    assert all(r["errors"][0] > r["errors"][1] > r["errors"][2] < 1e-10 for r in PARTS["inversion"]["rows"])
    assert all(r["share"] <= 12 for r in PARTS["conversions"]["rows"])
    assert all(r["each"] <= 12 for r in PARTS["conversions"]["rows"] if r["kind"] in ("v", "flow", "edm"))
    assert PARTS["step time"]["rows"][0]["ratio"] < 1.03


def test_stated_orders_are_those_of_the_docstrings():
    """The first line of a sampler's module says it, in whatever words."""
    said = {
        "ddim": "order 1",
        "heun": "order 2",
        "dpmpp_2s": "order 2",
        "dpmpp_2m": "order 2",
        "dpmpp_3m": "order 2 (compat=False: 3",
        "dpm_solver": "orders 1, 2, 3",
        "unipc": "order p + 1",
        "deis": "order as asked for",
        "plms": "order 2",
        "euler": "order 1",
        "ddpm": "weak order 1",
        "dpmpp_sde": "weak order 2",
        "dpmpp_2m_sde": "weak order 2",
        "lcm": "exact for a consistency function",
    }
    folder = Path(jd.samplers.__file__).parent
    for module, words in said.items():
        assert words in re.match(r'"""(.*)', (folder / f"{module}.py").read_text())[1], module
    numbered = {"unipc 1": 2, "unipc 2": 3, "unipc 3": 4, "deis 2": 2, "deis 3": 3, "deis 4": 4, "dpmpp_3m": 2}
    assert {name: proof.ODE[name].order for name in numbered} == numbered
