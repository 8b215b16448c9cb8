"""The proof page says what was measured, of every sampler there is, and names whatever misses its mark."""

import re
from pathlib import Path

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
    rows = PARTS[name]["rows"]
    assert {(r["schedule"], r["grid"]) for r in rows} == CASES
    orders = [o for r in rows for o in r["orders"] if o is not None]
    missed = [o for o in orders if abs(o - proof.ODE[name].order) > proof_page.TOLERANCE]
    assert len(orders) >= 2 * len(proof.CONTINUOUS) * len(proof.GRIDS)
    assert not missed
    assert all(len(r[data]) == len(proof.FEW) for r in rows for data in ("gaussian", "mixture"))
    assert f"| `{name}` | {proof.ODE[name].order} |" in PAGE


@pytest.mark.parametrize("name", c.STOCHASTIC)
def test_stochastic_samplers_have_every_row_their_order_and_their_law(name):
    rows = PARTS[f"law of {name}"]["rows"]
    assert {(r["schedule"], r["grid"]) for r in rows} == CASES
    assert max(r["off"] for r in rows) < 4
    missed = [r for r in rows if r["order"] and abs(r["order"] - c.STOCHASTIC[name].order) > proof_page.TOLERANCE]
    still = {("dpmpp_2m_sde", "edm", "list")}  # 1.77 from 80 to 224 steps, and the page says so
    assert all((name, r["schedule"], r["grid"]) in still for r in missed)


def test_everything_else_is_as_good_as_it_is_said_to_be():
    biased = {("flow", "leading"), ("flow", "karras")}  # 100 steps are too few there, and the page says so
    mixtures = [r for name, part in PARTS.items() if name.startswith("mixture") for r in part["rows"]]
    assert all(r["off"] < 4 for r in mixtures if (r["schedule"], r["grid"]) not in biased)
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
        "dpmpp_3m": "order 3 (compat: 2",
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
    numbered = {"unipc 1": 2, "unipc 2": 3, "unipc 3": 4, "deis 2": 2, "deis 3": 3, "deis 4": 4, "dpmpp_3m compat": 2}
    assert {name: proof.ODE[name].order for name in numbered} == numbered
