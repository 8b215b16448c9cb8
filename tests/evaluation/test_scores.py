"""What compares and what does not."""

import dataclasses

import pytest

from jaxdiff.errors import UserError
from jaxdiff.evaluation.scores import Reference, Score, check_comparable, identity, runs_table, table

REFERENCE = Reference("fashion_mnist", "train", 60_000, "none", "classifier 1234", "abcd")
SCORE = Score(
    "w",
    500,
    0.99,
    "ddim",
    10,
    10,
    1.0,
    "trailing",
    0,
    1000,
    REFERENCE,
    50.0,
    {"fid": 12.345, "kid": 0.5, "kid_error": 0.01},
)
FLOOR = dataclasses.replace(SCORE, what="test", sampler="", steps=0, values={"fid": 1.5, "kid": 0.0, "kid_error": 0.01})


def test_other_sizes_and_references_are_refused():
    check_comparable([SCORE, dataclasses.replace(SCORE, steps=20)])
    with pytest.raises(UserError, match="1000 and of 2000 images"):
        check_comparable([SCORE, dataclasses.replace(SCORE, n=2000)])
    other = dataclasses.replace(REFERENCE, split="test", digest="ef")
    with pytest.raises(UserError, match="split 'train' and 'test', digest"):
        table([dataclasses.replace(SCORE, reference=other)], FLOOR)


def test_table_says_what_its_numbers_depend_on():
    text = table([SCORE], FLOOR)
    lines = text.splitlines()
    assert lines[0] == "| sampler | steps | NFE | fid | kid | images/s |"
    assert lines[2].startswith("| test (floor)") and "1.5" in lines[2]
    assert lines[3] == "| ddim | 10 | 10 | 12.35 | 0.5 ± 0.01 | 50 |"
    for fact in ("n = 1000", "60000 images", "split train", "abcd", "resize: none", "step 500", "EMA 0.99", "seed 0"):
        assert fact in text


def test_several_runs_have_their_mean_and_spread_in_one_table():
    runs = {name: [dataclasses.replace(SCORE, values={"fid": fid})] for name, fid in (("a", 10.0), ("b", 14.0))}
    runs["c"] = [dataclasses.replace(SCORE, steps=20, values={"kid": 0.5})]
    _, _, *rows = runs_table(runs).splitlines()
    assert rows == [
        "| ddim | 10 | 1 | trailing | 0 | fid | 10 | 14 |  | 12 ± 2.8 |",
        "| ddim | 20 | 1 | trailing | 0 | kid |  |  | 0.5 |  |",
    ]


def test_identity_is_all_but_what_came_out():
    assert identity(SCORE) == identity(dataclasses.replace(SCORE, values={}, images_per_s=1.0))
    for change in ({"seed": 1}, {"what": "v"}, {"steps": 11}, {"n": 1001}, {"grid": "karras"}, {"definitions": 2}):
        assert identity(SCORE) != identity(dataclasses.replace(SCORE, **change))
