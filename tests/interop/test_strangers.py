"""Files of strangers, made at random: they are read, or refused by one of the documented errors."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxdiff.errors import UserError
from jaxdiff.interop import latent, openai, pipeline, safetensors, tokenizer
from jaxdiff.interop.diffusers import unet_fields
from jaxdiff.interop.scheduler_fields import DEFAULTS
from jaxdiff.interop.schedulers import read_scheduler, scheduler_from_config

ROOT = Path(__file__).parent.parent / "fixtures"
NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from([10**6, 10**12, 2**63, 10**30]), st.floats(), st.booleans(), st.none()
)
JSON = st.recursive(
    st.one_of(NUMBERS, st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
often = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def changed(config):
    """A config with up to four of its fields replaced, or left out, and up to one that it never had."""
    fields = st.dictionaries(st.sampled_from(sorted(config)), JSON, max_size=4)
    unknown = st.dictionaries(st.text(max_size=8), JSON, max_size=1)
    without = st.sets(st.sampled_from(sorted(config)), max_size=2)
    return st.builds(
        lambda a, b, gone: {k: v for k, v in {**config, **a, **b}.items() if k not in gone}, fields, unknown, without
    )


@pytest.fixture
def read_or_refused():
    """Calls a reader; anything raised but a UserError fails the test, and so does a test in which none was read."""
    ends = set()

    def attempt(read, *args):
        try:
            found = read(*args)
        except UserError as error:
            assert str(error)
            ends.add("refused")
            return None
        ends.add("read")
        return found

    yield attempt
    assert ends == {"read", "refused"}


NETWORK = json.loads((ROOT / "interop" / "adm" / "unet" / "config.json").read_text())


@often
@given(changed(NETWORK), st.booleans())
def test_configs_of_networks(read_or_refused, config, null_class):
    read_or_refused(lambda: unet_fields(config, null_class=null_class))


@pytest.mark.parametrize("kind", DEFAULTS)
@settings(often, max_examples=40)
@given(st.data())
def test_configs_of_schedulers(read_or_refused, kind, data):
    """One that is taken can also be walked, for as many steps as it says it can."""
    config = data.draw(changed({"_class_name": kind, **DEFAULTS[kind], "num_train_timesteps": 50}))
    found = read_or_refused(scheduler_from_config, config)
    if found is not None:
        try:
            times = found.times(7)
        except ValueError as error:
            assert "num_steps must lie in" in str(error) or "begin beyond T" in str(error)
        else:
            assert times[0] <= 1 and (times[:-1] > times[1:]).all()


@pytest.mark.parametrize(
    ("name", "build"),
    [("unet_1", latent.text_unet), ("vae", latent.autoencoder), ("text_encoder_1", latent.text_encoder)],
)
@settings(often, max_examples=50)
@given(st.data())
def test_configs_of_the_parts_of_stable_diffusion(read_or_refused, name, build, data):
    config = data.draw(changed(json.loads((ROOT / "latent" / name / "config.json").read_text())))
    with pytest.MonkeyPatch.context() as patch:  # what comes after the checks takes seconds
        patch.setattr(latent, "_abstract", lambda *args, **kwargs: {"encoder": {}, "decoder": {}})
        read_or_refused(build, config)


INDEX = json.loads((ROOT / "latent" / "pipeline_v" / "model_index.json").read_text())


@settings(often, max_examples=50)
@given(changed(INDEX))
def test_indices_of_pipelines(read_or_refused, tmp_path, index):
    for part in pipeline._CLASSES:
        (tmp_path / part).mkdir(exist_ok=True)
    read_or_refused(pipeline._check_index, index, tmp_path)


@often
@given(
    st.dictionaries(st.sampled_from([*openai._GUIDED, *openai._OTHERS, "x"]), st.one_of(JSON, st.text()), max_size=4)
)
def test_flags_of_openai(read_or_refused, flags):
    for project in openai.FLAGS:
        read_or_refused(openai.openai_fields, flags, project)
        read_or_refused(openai.openai_diffusion, flags, project)


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from([*safetensors.DTYPES, "F8_E4M3"]), JSON),
        "shape": st.one_of(st.lists(st.integers(0, 3), max_size=3), JSON),
        "data_offsets": st.one_of(st.tuples(st.integers(0, 40), st.integers(0, 40)), JSON),
    },
)


@often
@given(
    st.one_of(st.dictionaries(st.text(max_size=3), st.one_of(ENTRY, JSON), max_size=3), JSON), st.binary(max_size=40)
)
def test_headers_of_safetensors(read_or_refused, header, data):
    raw = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
        found = read_or_refused(safetensors.read, path) or {}
        assert sum(value.nbytes for value in found.values()) <= len(data) * max(1, len(found))
        path.with_suffix(".safetensors.index.json").write_bytes(raw)
        read_or_refused(safetensors.read, path.with_suffix(".safetensors.index.json"))


@settings(often, max_examples=40)
@given(st.one_of(st.binary(max_size=60), st.builds(lambda value: json.dumps(value).encode(), JSON)))
def test_json_files_of_anything(content):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("scheduler_config.json", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
            (Path(folder) / name).write_bytes(content)
        for read in (read_scheduler, tokenizer.read_tokenizer):
            with pytest.raises(UserError):
                read(Path(folder))
