"""Configs: what cannot work is refused with what would, and a stored one is data."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdiff import schedules
from jaxdiff.assembly.assemble import check_fit
from jaxdiff.assembly.recipe import make_recipe
from jaxdiff.config import Config, Model, Optimizer, Sampling, Train, flat, make_schedule, validate
from jaxdiff.config.files import changed_fields, from_json, load, read_run, to_json
from jaxdiff.errors import UserError
from jaxdiff.models import DiT
from jaxdiff.objectives import Consistency


def _with(**values):
    """Config() with fields replaced; group__field=value."""
    config = Config()
    for name, value in values.items():
        group, field = name.split("__")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{field: value})})
    return config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"diffusion__schedule": "linear", "diffusion__num_steps": 20, "sampling__steps": 10}, ["num_steps=20", "21"]),
        ({"diffusion__zero_snr": True}, ["zero_snr", "v or x_0"]),
        (
            {"sampling__sampler": "ddpm", "sampling__variance": "large", "sampling__spacing": "leading"},
            ["'large'", "trailing"],
        ),
        ({"sampling__variance": "large"}, ["'large'", "ddpm"]),
        ({"sampling__sampler": "unipc", "sampling__eta": 0.5}, ["eta", "ddim, "]),
        ({"sampling__eta": 1.5}, ["sampling.eta=1.5", "0..1"]),
        ({"sampling__steps": 1001}, ["sampling.steps=1001", "at most 1000"]),
        ({"sampling__guidance": 2.0}, ["guidance=2.0", "num_classes"]),
        ({"sampling__guidance": 2.0, "model__num_classes": 3, "diffusion__class_dropout": 0.0}, ["class_dropout"]),
        ({"train__batch_size": 10, "train__accumulate": 4}, ["batch_size=10", "accumulate=4"]),
        ({"parallel__mode": "pmap", "parallel__fsdp": 2}, ["fsdp=2", "mesh"]),
        ({"optimizer__learning_rate": float("nan")}, ["learning_rate"]),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(values, words):
    with pytest.raises(UserError) as error:
        validate(_with(**values))
    assert all(word in str(error.value) for word in words), error.value


def test_every_problem_is_named_at_once():
    with pytest.raises(UserError, match=r"batch_size=0 .*ema_decay=1\.0"):
        validate(_with(train__batch_size=0, train__ema_decay=1.0))


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_the_smallest_number_of_steps_is_the_schedules_own(name):
    """What validate allows, the schedule can make; one step fewer neither."""
    smallest = min(n for n in range(1, 40) if _accepts(_with(diffusion__schedule=name, diffusion__num_steps=n)))
    schedules.SCHEDULES.build(name, {}, num_steps=smallest)
    with pytest.raises(ValueError, match="num_steps"):
        schedules.SCHEDULES.build(name, {}, num_steps=smallest - 1)


def _accepts(config):
    try:
        validate(dataclasses.replace(config, sampling=Sampling(steps=1)))
    except UserError:
        return False
    return True


def test_zero_snr_leaves_no_signal():
    config = validate(_with(diffusion__zero_snr=True, diffusion__prediction="v"))
    assert float(make_schedule(config.diffusion)(1.0).alpha) == 0
    assert float(schedules.cosine()(1.0).alpha) > 0


def test_json_round_trips_every_field():
    config = Config(
        seed=7,
        workdir="w",
        model=Model(channel_mults=(1, 3), attention_resolutions=(), head_dim=8),
        train=Train(steps=3),
        objective=Consistency(start="w2"),
        sampling=Sampling(eta=0.25, spacing="karras", spacing_options={"rho": 3.0}),
    )
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"train": {"stepz": 3}}', ["train.stepz", "train.steps"]),
        ('{"train": {"steps": "3"}}', ["train.steps", "int"]),
        ('{"train": {"steps": true}}', ["train.steps", "int"]),
        ('{"data": {"flip": 1}}', ["data.flip", "bool"]),
        ('{"train": 3}', ["train", "object"]),
        ('{"model": {"channel_mults": [1, "2"]}}', ["channel_mults", "int"]),
        ('{"parallel": {"mode": "xmap"}}', ["parallel.mode", "mesh, pmap"]),
        ('{"sampling": {"eta": NaN}}', ["sampling.eta"]),
        ('{"train": {"steps": 0}}', ["train.steps=0"]),
        ("[]", ["object"]),
        ("{", ["JSON"]),
        ("[" * 100_000, ["JSON"]),
    ],
)
def test_config_json_of_a_stranger_is_refused_in_one_line(text, words):
    with pytest.raises(UserError) as error:
        from_json(text)
    assert all(word in str(error.value) for word in words), error.value


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["train", "steps", "seed", "model", "x"]), inner),
)


@given(_JSON)
def test_any_json_is_a_valid_config_or_one_error(value):
    try:
        assert isinstance(from_json(json.dumps(value)), Config)
    except UserError:
        pass


def test_a_config_json_of_jaxdiff_0_1_is_read():
    """Its consistency group is an objective today."""
    old = json.loads(to_json(Config()))
    del old["objective"], old["model"]["kind"]
    old["consistency"] = {"start": "", "teacher": True, "halve_every": 400}
    assert from_json(json.dumps(old)) == Config()
    old["consistency"]["start"] = "runs/a"
    assert from_json(json.dumps(old)).objective == Consistency(start="runs/a")


def test_a_long_config_json_is_not_read(tmp_path):
    (tmp_path / "config.json").write_text(to_json(Config()) + " " * 100_000)
    with pytest.raises(UserError, match="larger"):
        read_run(tmp_path)


def test_a_run_goes_on_with_what_changes_no_step_and_with_nothing_else_unless_it_is_named():
    stored = flat(Config(workdir="runs/a"))
    asked = Config(workdir="b", train=Train(steps=10**6, log_every=7, keep_every=100), sampling=Sampling(steps=9))
    assert changed_fields(stored, flat(asked), "b") == {}
    other = flat(Config(train=Train(batch_size=64), optimizer=Optimizer(learning_rate=1e-3, warmup_steps=9)))
    with pytest.raises(UserError, match=r"batch_size 128 -> 64.*--allow-change .*warmup_steps train.batch_size"):
        changed_fields(stored, other, "runs/a", ["train.batch_size", "optimizer.learning_rate"])
    changed = changed_fields(stored, other, "runs/a", ["train.batch_size", "optimizer"])
    assert changed["train.batch_size"] == (128, 64) and len(changed) == 3
    with pytest.raises(UserError, match=r"seed 0 -> 1; choose another --workdir$"):
        changed_fields(stored, flat(Config(seed=1)), "runs/a", ["train"])
    with pytest.raises(UserError, match="--allow-change seed: a run keeps that for good; these may change: data, "):
        changed_fields(stored, stored, "runs/a", ["seed"])


def test_load_takes_names_and_paths_and_offers_the_nearest_name(tmp_path):
    (tmp_path / "mine.py").write_text("from jaxdiff.config import Config\nconfig = Config(seed=4)\n")
    (tmp_path / "none.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("config = Config()\n")
    assert load("mine", tmp_path).seed == load(str(tmp_path / "mine.py"), tmp_path / "elsewhere").seed == 4
    with pytest.raises(UserError, match="'mime'; did you mean 'mine'"):
        load("mime", tmp_path)
    with pytest.raises(UserError, match="must define config"):
        load("none", tmp_path)
    with pytest.raises(UserError, match="NameError"):
        load("broken", tmp_path)


def test_flat_names_are_the_fixed_ones():
    fixed = """seed workdir data.name data.path model.channels diffusion.schedule diffusion.prediction
        optimizer.learning_rate train.steps train.batch_size train.checkpoint_every train.log_every
        train.sample_every train.ema_decay parallel.mode parallel.fsdp"""
    assert set(fixed.split()) <= set(flat(Config()))


def test_a_config_that_does_not_fit_the_images_or_devices_is_refused():
    def check(config, shape, classes, devices):
        check_fit(config, make_recipe(config, shape), classes, devices)

    def refusal(config, shape=(8, 8, 1), classes=10, devices=8):
        with pytest.raises(UserError) as error:
            check(config, shape, classes, devices)
        return str(error.value)

    good = dataclasses.replace(Config(), model=Model(channel_mults=(1, 2), attention_resolutions=(), num_classes=10))
    check(good, (8, 8, 1), 10, 8)
    assert "multiples of 2" in refusal(good, shape=(9, 8, 1))
    assert "set it to 7" in refusal(good, classes=7)
    assert "multiple of 3" in refusal(good, devices=3)
    assert "must divide the 8" in refusal(
        dataclasses.replace(good, parallel=dataclasses.replace(good.parallel, fsdp=3))
    )


def test_yaml_is_a_config_too(tmp_path):
    file = tmp_path / "cats.yaml"
    file.write_text(
        "seed: 3\nmodel: {kind: dit, depth: 2}\noptimizer:\n  learning_rate: 1e-4\ntrain: {loggers: [csv]}\n"
    )
    config = load(str(file), tmp_path)
    assert (config.seed, config.optimizer.learning_rate, config.train.loggers) == (3, 1e-4, ("csv",))
    assert config.model == DiT(depth=2)
    for text, words in (("seed: [", "is not a config in YAML"), ("1: 2", "is not a config"), ("sead: 1", "'seed'")):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            load(str(file), tmp_path)
