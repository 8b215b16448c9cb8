"""CLIP's tokenizer: ids recorded from transformers (scripts/make_latent_fixtures.py)."""

import json
import shutil
import sys

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop.tokenizer import read_tokenizer
from tests.stable_diffusion import ROOT

TEXTS = json.loads((ROOT / "texts.json").read_text())


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(ROOT / "tokenizer_1", tmp_path / "tokenizer")


@pytest.mark.parametrize(("name", "version"), [("tokenizer_1", "1"), ("tokenizer_2", "2"), ("tokenizer_json", "2")])
def test_ids_are_theirs(name, version):
    """Words, case, spaces, accents, other scripts, special tokens in the text, texts too long; both paddings."""
    theirs = np.load(ROOT / f"text_encoder_{version}" / "io.npz")["tokens"]
    np.testing.assert_array_equal(read_tokenizer(ROOT / name)(TEXTS), theirs)


def test_versions_differ_in_their_padding():
    one, two = (read_tokenizer(ROOT / f"tokenizer_{version}") for version in "12")
    assert one.padding == one.end and two.padding == 0


def test_added_tokens_decoder_overrules_the_map(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!", "added_tokens_decoder": {}}))
    assert read_tokenizer(folder).padding == 0


def test_what_does_not_fit_is_said():
    tokenizer = read_tokenizer(ROOT / "tokenizer_1")
    assert tokenizer.dropped("a photo") == ""
    assert tokenizer.dropped(TEXTS[-1]).endswith("a a blurry")
    assert tokenizer(["a red horse on mars"], 4).tolist() == [
        [tokenizer.begin, *tokenizer(["a red"])[0, 1:3], tokenizer.end]
    ]
    assert tokenizer.dropped("a red horse on mars", 4) == "horse on mars"
    with pytest.raises(UserError, match="at most 100,000"):
        tokenizer(["a" * 100_001])


def test_damaged_folders_are_refused(folder, tmp_path):
    (folder / "merges.txt").write_text("nonsense")
    with pytest.raises(UserError, match="no tokenizer that can be read"):
        read_tokenizer(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"neither vocab\.json and merges\.txt nor tokenizer\.json"):
        read_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer that can be read"):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"added_tokens_decoder": {}, "pad_token": "nowhere"}, "no nowhere"),
        ({"added_tokens_decoder": {}, "pad_token": 3}, "pad_token is 3"),
        ({"model_max_length": "long"}, "model_max_length is 'long'"),
    ],
)
def test_configs_that_do_not_fit_are_refused(folder, changes, words):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=words):
        read_tokenizer(folder)


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'jaxdiff\[text\]'"):
        read_tokenizer(ROOT / "tokenizer_1")
