"""Text to image, trained here: the conditioner text, its encoder, the hourglass, and prompts in sample.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import pictures
from jaxdiff.assembly.assemble import assemble
from jaxdiff.assembly.recipe import make_method, make_recipe
from jaxdiff.commands import sample as sample_command
from jaxdiff.conditioning import text
from jaxdiff.conditioning.words import BEGIN, WORDS, Words, frequent
from jaxdiff.config import Config, Data, Diffusion, Optimizer, Sampling, Train, validate
from jaxdiff.config.files import to_json
from jaxdiff.data.batches import Batches
from jaxdiff.data.sources import MemorySource
from jaxdiff.diffusion import Guidance, denoiser, make_draw
from jaxdiff.errors import UserError
from jaxdiff.job import sampling as sampling_job
from jaxdiff.job.trained import load
from jaxdiff.models import Hourglass
from jaxdiff.models.caption_encoder import CaptionEncoder
from jaxdiff.parallel import make_mesh
from jaxdiff.training.checkpoints import Checkpoints

CAPTIONS = (("a red square", "red"), ("a blue square",), ("a red disc, large",), ("a blue disc",))
CONFIG = validate(
    Config(
        data=Data(name="folder"),
        model=Hourglass(widths=(8, 16), blocks=(1, 1), num_heads=2),
        diffusion=Diffusion(
            schedule="flow",
            prediction="flow",
            class_dropout=0.5,
            conditioner="text",
            conditioner_options={"width": 8, "heads": 2, "words": 8, "layers": 1, "max_tokens": 6},
        ),
        optimizer=Optimizer(learning_rate=1e-2, warmup_steps=1),
        train=Train(steps=9, batch_size=8, ema_decay=0.5),
        sampling=Sampling(steps=2, guidance=3.0),
    )
)


@pytest.fixture(scope="module", autouse=True)
def on_one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling_job, "make_mesh", lambda: make_mesh(devices=jax.devices()[:1]))
        yield


def source():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    return MemorySource(images, np.zeros(4, np.int32), 0, set(), captions=CAPTIONS)


def steps_from(made, state, first, last):
    program, batches = made.program, Batches(made.source, 0, 8, captions=made.recipe.conditioner.tokenize)
    for step in range(first, last):
        state, metrics = program.step(state, program.place([batches[step]]), program.keys["train"])
        assert np.isfinite(float(metrics["loss"]))
    return state


@pytest.fixture(scope="module")
def trained():
    """A run's parts, and its state after 1 and after 3 steps."""
    made = assemble(CONFIG, source(), jax.devices()[:1])
    begun = steps_from(made, jax.jit(made.program.init)(made.program.keys["init"]), 0, 1)
    kept = jax.tree.map(jnp.copy, begun)
    return made, kept, steps_from(made, begun, 1, 3)


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """The same as a run in a folder; its parameters are moved off zero, so that every path counts."""
    made, _, state = trained
    values = np.random.default_rng(1)
    moved = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.2 * values.standard_normal(leaf.shape), leaf.dtype), state.ema_params
    )
    state = dataclasses.replace(state, ema_params=moved)
    workdir = tmp_path_factory.mktemp("run")
    about = {"shape": [8, 8, 3], "class_names": [], "known": made.recipe.conditioner.known}
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, about, wait=True)
    (workdir / "config.json").write_text(to_json(CONFIG))
    return workdir


def sampled(run, out, *options):
    line = sample_command.run([str(run), "--out", str(out), *options])[1]
    if str(out).endswith(".npz"):
        with np.load(out) as arrays:
            return arrays["images"], list(arrays["prompts"]), line
    return Image.open(out), None, line


def test_words_are_tokens_and_others_are_spelled():
    words = Words(frequent(["Green heart", "red HEART!", "heart?"], 9), 12)
    assert words.vocabulary == ("heart",)
    found = words(["HEART", "h\u00e9", "ab c", "abc", "\U0001f600 heart"])
    assert not found["cut"].any() and found["tokens"].dtype == np.int32
    heart, spelled, two, one, sign = ([int(token) for token in row if token] for row in found["tokens"])
    assert heart == [BEGIN, WORDS] and sign[-1] == WORDS and len(sign) == 1 + 1 + 4 + 1
    assert bytes(token - 2 for token in spelled[1:]).decode() == " h\u00e9" and two != one
    short = words._replace(max_tokens=3)
    assert short(["heart heart heart", "heart heart"])["cut"].tolist() == [True, False]
    assert short.dropped("heart heart Zebra heart") == "zebra heart" and short.dropped("heart heart") == ""


def test_the_vocabulary_does_not_depend_on_the_order_of_the_data():
    texts = [text for record in CAPTIONS for text in record]
    assert frequent(texts, 3) == frequent(texts[::-1], 3) == ("a", "red", "blue")


def test_padding_changes_nothing_of_what_the_encoder_says():
    short, long = (CaptionEncoder(300, most, 8, 2, 2) for most in (4, 9))
    tokens = jnp.array([[1, 260, 270, 0]])
    params = jax.jit(short.init)(jax.random.key(0), {"tokens": tokens})
    a = jax.jit(short.apply)(params, {"tokens": tokens})
    b = jax.jit(long.apply)(params, {"tokens": jnp.pad(tokens, ((0, 0), (0, 5)))})
    np.testing.assert_allclose(a["pooled"], b["pooled"], atol=1e-6)
    np.testing.assert_allclose(a["text"][:, :3], b["text"][:, :3], atol=1e-5)


def test_an_empty_prompt_says_nothing():
    conditioner = text(max_tokens=5)
    np.testing.assert_array_equal(conditioner.parse([""], 2)["tokens"], conditioner.null(None, 2)["tokens"])


def test_encoder_and_network_are_trained_averaged_and_resumed_as_one(trained, tmp_path):
    made, begun, state = trained
    assert set(state.params) == {"encoder", "network"}
    for name, tree in (("params", state.params), ("average", state.ema_params)):
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), begun.params, tree)
        assert moved["encoder"]["tokens"]["embedding"] and moved["encoder"]["layer_0"]["dense1"]["kernel"], name
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(begun, wait=True)
        again = steps_from(made, checkpoints.restore(made.program.abstract)[0], 1, 3)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_the_encoder_is_called_once_a_walk(trained):
    """What is done at every step does not hold its table."""
    made, _, state = trained
    x, t, (cond, away) = jnp.zeros((1, 8, 8, 3)), jnp.ones(1), (made.recipe.null({}, 1) for _ in range(2))
    denoise = denoiser(made.recipe, state.params, cond, guidance=Guidance(2.0), away=away)
    table = ",".join(map(str, state.params["encoder"]["tokens"]["embedding"].shape))
    assert f"f32[{table}]" not in str(jax.make_jaxpr(denoise)(x, t))


def test_a_prompt_decides_and_compiles_nothing_anew(run, caplog):
    model = load(run)
    params, config, recipe = jax.device_get(model.params), model.config, model.recipe
    method = make_method(recipe, config.sampling)
    one, two = (make_draw(recipe, method, 4, make_mesh(devices=jax.devices()[:n])) for n in (1, 2))

    def draws(prompts, num=4, first=0, negative="", draw=one):
        batch = recipe.conditioner.parse(prompts, num)
        away = recipe.conditioner.parse([negative], num)
        return draw(params, jax.random.key(0), num, batch, first, away=away)

    with jax.log_compiles():
        red = draws(["a red square"])
        assert "Finished XLA compilation of jit(run)" in caplog.text
        caplog.clear()
        blue, negative = draws(["a blue disc"]), draws(["a red square"], negative="a blue disc")
        mixed = draws(["a red square", "a blue disc"])
        assert "compilation of jit(run)" not in caplog.text
    assert np.abs(red - blue).max() > 0.01 and np.abs(red - negative).max() > 0.01
    np.testing.assert_allclose(mixed, np.where(np.arange(4)[:, None, None, None] % 2, blue, red), atol=1e-5)
    np.testing.assert_allclose(draws(["a red square"], 3, first=1, draw=two), red[1:], atol=1e-5)


def test_the_command_draws_prompts(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red square\n\n a blue disc \n")
    file = ["--prompts", str(tmp_path / "prompts.txt")]
    images, prompts, _ = sampled(run, tmp_path / "a.npz", "--prompt", "red", *file, "--num", "4")
    assert images.shape == (4, 8, 8, 3) and prompts == ["red", "a red square", "a blue disc", "red"]
    words = "a very red square that is larger than any other one"
    _, _, line = sampled(run, tmp_path / "b.png", "--prompt", words, "red", "--guidance", "5")
    assert "beyond 6 tokens, and not used: " in line
    picture = Image.open(tmp_path / "b.png")
    assert picture.text["prompt"] == f"{words}\nred" and picture.height > 96 + 2 * 15


def test_a_run_keeps_texts_to_show_and_its_vocabulary(run):
    conditioner = load(run).recipe.conditioner
    assert conditioner.examples == ("a red square", "a blue square", "a red disc, large", "a blue disc")
    assert conditioner.tokenize == Words(("a", "red", "blue", "disc", "square"), 6)


def test_titles_stand_under_their_pictures():
    images = np.full((4, 32, 32, 3), 128, np.uint8)
    plain = pictures.grid(images, 2, 3)
    each = pictures.grid(images, 2, 3, titles=["a", "b " * 30, "", "d"])
    row = pictures.grid(images, 2, 3, titles=["a", "b " * 30])
    assert plain.shape[1] == each.shape[1] == row.shape[1] and plain.shape[0] < row.shape[0] < each.shape[0]
    assert (each[2:98, 2:98] == 128).all() and (each[98:113, 2:98] == 0).any() and (each[98:113, 100:196] == 255).all()
    assert pictures.grid(images[..., :1], 2, 3, titles=["\u8d64\u3044 \u56db\u89d2", ""]).shape[-1] == 1


@pytest.mark.parametrize(
    ("options", "right"),
    [
        (["--classes", "1"], "which takes --prompt, no classes"),
        (["--prompt", "red", "--height", "64"], "one size"),
        (["--prompt", "red", "--guidance", "1", "--negative-prompt", "blue"], "give --guidance too"),
        (["--prompts", "none.txt"], "cannot be read as a text"),
    ],
)
def test_what_does_not_fit_is_one_line(run, tmp_path, options, right):
    with pytest.raises(UserError, match=right):
        sampled(run, tmp_path / "x.npz", *options)
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(
    ("options", "right"),
    [
        ({"width": 10, "heads": 4}, "width is 10; it must be a multiple of heads, 4, and of 4"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be in 1..4096"),
        ({"wdith": 8}, "text has no option 'wdith'"),
    ],
)
def test_options_that_cannot_be_are_refused(options, right):
    diffusion = dataclasses.replace(CONFIG.diffusion, conditioner_options=options)
    with pytest.raises(UserError, match=right):
        validate(dataclasses.replace(CONFIG, diffusion=diffusion))


def test_a_network_with_classes_is_told_no_text():
    model = dataclasses.replace(CONFIG.model, num_classes=3)
    with pytest.raises(UserError, match=r"num_classes is 3; pass cond with a label"):
        make_recipe(dataclasses.replace(CONFIG, model=model), (8, 8, 3))
