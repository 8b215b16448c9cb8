"""Checksums that see every bit and no layout; manifests that anybody may have written."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdiff.parallel import make_mesh
from jaxdiff.training import integrity

VALUES = np.random.default_rng(0).standard_normal((8, 16, 24)).astype(np.float32)


def test_the_layout_does_not_matter():
    mesh = make_mesh(4)
    specs = (P(), P("data"), P(None, None, "fsdp"), P("fsdp", "data"), P(None, ("data", "fsdp")))
    sums = {integrity.checksum(jax.device_put(VALUES, NamedSharding(mesh, spec))) for spec in specs}
    assert sums == {integrity.checksum(jnp.asarray(VALUES))}


def test_the_sum_is_the_one_written_down():
    """Element by element in Python integers."""
    total = 0
    for i, bits in enumerate(VALUES.reshape(-1)[:100].view(np.uint32).tolist()):
        h = i ^ i >> 16
        h = h * 0x21F0AAAD % 2**32
        h = (h ^ h >> 15) * 0x735A2D97 % 2**32
        total += bits * ((h ^ h >> 15) | 1)
    assert integrity.checksum(jnp.asarray(VALUES.reshape(-1)[:100])) == (total % 2**32, True)


@pytest.mark.parametrize("dtype", sorted(integrity.DTYPES))
def test_every_single_bit_is_seen(dtype):
    base = np.asarray(jnp.asarray(np.arange(12) % 2, dtype))
    width = 1 if dtype == "bool" else 8 * base.itemsize
    expected, _ = integrity.checksum(jnp.asarray(base))
    for element in (0, 5, 11):
        for bit in range(width):
            raw = base.copy().view(f"uint{8 * base.itemsize}")
            raw[element] ^= raw.dtype.type(1 << bit)
            assert integrity.checksum(jnp.asarray(raw.view(base.dtype)))[0] != expected


def test_swapped_moved_and_cut_values_are_seen():
    expected = integrity.checksum(jnp.asarray(VALUES))
    for other in (VALUES[::-1], np.roll(VALUES, 1), np.where(np.arange(24) < 23, VALUES, 0)):
        assert integrity.checksum(jnp.asarray(other)) != expected


def test_what_is_not_finite_is_named():
    flat = {"params/a": jnp.ones(3), "params/b": jnp.array([1.0, np.inf]), "params/c": jnp.array([[np.nan]])}
    assert integrity.measure(flat)[1] == ["params/b", "params/c"]


def test_a_key_that_cannot_be_a_name_is_refused():
    for key in ("a/b", "", "..", "."):
        with pytest.raises(ValueError, match="rename that key"):
            integrity.flatten({"params": {key: jnp.ones(1)}})


def make_document():
    flat = {"step": jnp.int32(4), "params/dense/kernel": jnp.ones((2, 3)), "opt_state/0/count": jnp.int32(1)}
    sums, _ = integrity.measure(flat)
    return integrity.describe(4, flat, sums, {"seed": 1, "name": "a"})


def signed(body):
    return json.dumps({"body": body, "sha256": integrity._digest(body)})


def test_a_manifest_reads_back():
    manifest = integrity.parse(json.dumps(make_document()))
    assert manifest.step == 4 and manifest.meta == {"seed": 1, "name": "a"}
    assert manifest.leaves["params/dense/kernel"][:2] == ((2, 3), "float32")


@given(st.data())
def test_any_changed_byte_of_a_manifest_is_seen(data):
    text = json.dumps(make_document())
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(min_codepoint=32, max_codepoint=126).filter(lambda c: c != text[place]))
    try:
        manifest = integrity.parse(text[:place] + other + text[place + 1 :])
    except ValueError:
        return
    assert manifest == integrity.parse(text)  # a space for a space, an E for an e


VALUES_OF_ANY_KIND = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES_OF_ANY_KIND, st.sampled_from(["format", "step", "leaves", "meta", "shape", "dtype", "sum", "name"]))
def test_a_strangers_manifest_is_a_manifest_or_a_value_error(value, where):
    """Signed as ours are, with anything in any place."""
    body = copy.deepcopy(make_document()["body"])
    leaf = body["leaves"]["params/dense/kernel"]
    if where in ("shape", "dtype", "sum"):
        leaf[("shape", "dtype", "sum").index(where)] = value
    elif where == "name":
        body["leaves"][value if isinstance(value, str) else "params/../../x"] = leaf
    else:
        body[where] = value
    try:
        manifest = integrity.parse(signed(body))
    except ValueError:
        return
    state = integrity.nest(manifest.leaves)
    assert state.params and all(size >= 0 for size in manifest.leaves["params/dense/kernel"].shape)


@pytest.mark.parametrize(
    "name",
    ["params/../../etc", "/etc/passwd", "params//a", "other/a", "params/dense/kernel/inside", "params\\a", "step/a"],
)
def test_a_leaf_that_is_no_part_of_a_state_is_refused(name):
    body = make_document()["body"]
    body["leaves"][name] = [[1], "float32", 0]
    with pytest.raises(ValueError, match="manifest's leaf"):
        integrity.parse(signed(body))


@pytest.mark.parametrize("shape", [[-1], [2**40, 2**40], [1.5], [True], "3", None])
def test_a_shape_that_is_none_is_refused(shape):
    body = make_document()["body"]
    body["leaves"]["params/dense/kernel"][0] = shape
    with pytest.raises(ValueError, match="manifest's"):
        integrity.parse(signed(body))


def test_deep_nesting_is_refused():
    with pytest.raises(ValueError, match="nested too deeply"):
        integrity.parse("[" * 100_000 + "]" * 100_000)
