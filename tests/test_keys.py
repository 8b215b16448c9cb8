"""The key tree: no draw of a run shares its key with another."""

import itertools
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxdiff import keys
from jaxdiff.assembly.assemble import assemble
from jaxdiff.config import Config, Data, Model
from jaxdiff.job import sampling as sampling_job
from jaxdiff.samplers import sample_keys
from tests.test_evaluate import save_run

TINY = Model(patch=4, channels=4, channel_mults=(1,), blocks=1, attention_resolutions=())


def below(key, depth=2, width=4):
    """The key, its folds and halves, and theirs, as tuples."""
    found = [tuple(np.asarray(jax.random.key_data(key)).tolist())]
    if depth:
        children = [jax.random.fold_in(key, i) for i in range(width)] + [jax.random.split(key)[1]]
        found += itertools.chain.from_iterable(below(child, depth - 1, width) for child in children)
    return found


def test_no_two_purposes_share_a_key():
    walks = {name: set(below(keys.purpose_key(0, name))) for name in keys.PURPOSES}
    walks["the seed itself"] = set(below(jax.random.key(0), depth=0))
    for one, other in itertools.combinations(walks, 2):
        assert not walks[one] & walks[other], (one, other)


def test_the_folds_of_what_was_trained_stay():
    for i, name in enumerate(("init", "train", "pictures")):
        assert keys.purpose_key(7, name) == jax.random.fold_in(jax.random.key(7), i)


def test_samples_are_drawn_with_no_key_of_the_run(tmp_path, monkeypatch):
    """Samples 0, 1, 2 once had the keys that init, train and pictures had: a draw in common."""
    config, used = Config(data=Data(name="folder"), model=TINY), []
    workdir = save_run(tmp_path, config, (8, 8, 1))

    def make_draw(*_, **__):
        return lambda params, key, num, *_, **__: used.append(sample_keys(key, num)) or np.zeros((num, 8, 8, 1))

    monkeypatch.setattr(sampling_job, "make_draw", make_draw)
    sampling_job.draw(sampling_job.Request(workdir=workdir, num=6, seed=config.seed))
    drawn = set(itertools.chain.from_iterable(below(key, 1) for key in used[0]))
    source: Any = SimpleNamespace(shape=(8, 8, 1), num_classes=0)
    program = assemble(config, source, jax.devices()[:1]).program
    for name, key in program.keys.items():
        assert not drawn & set(below(key)), name


def test_unknown_purposes_and_wrong_keys_are_refused():
    with pytest.raises(ValueError, match="one of init, train"):
        keys.purpose_key(0, "trian")
    with pytest.raises(ValueError, match=r"one key or 3 of them, one per example; got shape \(2,\)"):
        keys.example_keys(jax.random.split(jax.random.key(0)), 3)
    with pytest.raises(ValueError, match=r"made by jax.random.key; got an array \(3,\) of float32"):
        keys.example_keys(jax.numpy.zeros(3), 3)
