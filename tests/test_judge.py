"""The judge of pictures and texts: its loss, what is counted with it, and the command that asks it."""

import functools
import io
import itertools
import json
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff.assembly.assemble import assemble
from jaxdiff.commands import main
from jaxdiff.config import Config, Data, Diffusion, Optimizer, Train, validate
from jaxdiff.config.files import to_json
from jaxdiff.data.batches import Batches
from jaxdiff.data.sources import open_dataset
from jaxdiff.errors import UserError
from jaxdiff.evaluation import prompts
from jaxdiff.job.prompts import Judge
from jaxdiff.models import Hourglass, TwoTowers
from jaxdiff.objectives import Contrastive
from jaxdiff.objectives.contrastive import contrastive_loss
from jaxdiff.training.checkpoints import Checkpoints

COLOURS = {"red": (220, 30, 40), "green": (40, 180, 60), "blue": (40, 80, 220), "yellow": (250, 210, 60)}
STYLES = ("full", "framed")


def test_the_loss_is_the_cross_entropy_of_both_ways_without_pairs_of_one_text():
    rng = np.random.default_rng(0)
    f, g = rng.normal(size=(2, 3, 5))
    scores, losses = f @ g.T, contrastive_loss(jnp.stack([f, g], 1), jnp.eye(3, dtype=bool))
    for i in range(3):
        both = -np.log(
            np.exp(scores[i, i]) / np.exp(scores[i]).sum() * np.exp(scores[i, i]) / np.exp(scores[:, i]).sum()
        )
        np.testing.assert_allclose(losses[i], both / 2, rtol=1e-5)
    same = jnp.eye(3, dtype=bool).at[0, 1].set(True).at[1, 0].set(True)  # 0 and 1 have one text: neither is wrong
    found = contrastive_loss(jnp.stack([f, g], 1), same)
    np.testing.assert_allclose(
        found[0], contrastive_loss(jnp.stack([f, g], 1)[::2], jnp.eye(2, dtype=bool))[0], rtol=1e-5
    )


def test_candidates_are_a_text_and_others(monkeypatch):
    monkeypatch.setattr(prompts, "CANDIDATES", 4)
    pool = [f"text {i}" for i in range(6)]
    rows = prompts.candidates(["text 5", "text 0", "text 0"], pool)
    assert rows[:, 0].tolist() == [5, 0, 0]
    assert all(len(set(row)) == 4 for row in rows.tolist()) and set(rows.ravel()) == set(range(6))
    with pytest.raises(ValueError, match="3 different texts, and one is to be found among 4"):
        prompts.candidates(["text 0"], pool[:3])


def test_a_tie_is_no_hit():
    """A judge that knows nothing gives all texts one score, and so finds none."""
    texts = np.ones((9, 2))
    assert prompts.ranks(np.ones((3, 2)), texts, np.arange(9).reshape(3, 3)).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        *((rgb, name) for name, rgb in COLOURS.items()),
        *(((244, 144, 12), "orange"), ((170, 142, 214), "purple"), ((150, 90, 60), "brown"), ((244, 174, 188), "pink")),
        *(((20, 20, 22), "black"), ((153, 153, 158), "grey"), ((255, 255, 255), "white")),
    ],
)
def test_a_colour_is_named_by_most_of_what_is_not_ground(rgb, name):
    image = np.full((8, 8, 3), 255, np.uint8)
    image[2:6, 2:6], image[0, :4] = rgb, (0, 0, 0) if name not in ("white", "black") else rgb
    assert prompts.colour_of(image) == name


def pictures(split):
    """(name, picture, facts): a square of each colour in each style; framed yellow ones are held out."""
    for number, (colour, style) in enumerate(itertools.product(COLOURS, STYLES)):
        image = np.full((8, 8, 3), 255, np.uint8)
        image[1:7, 1:7] = COLOURS[colour]
        if style == "framed":
            image[2:6, 2:6] = 255
        if (split == "heldout") == (colour == "yellow"):
            facts = {"text": [f"{colour} square, {style}"], "style": style, "colour": colour}
            yield f"{number}", image, facts


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for split in ("train", "heldout"):
        with tarfile.open(folder / f"{split}.tar", "w") as archive:
            for name, image, facts in pictures(split):
                file = io.BytesIO()
                Image.fromarray(image).save(file, "PNG")
                for ending, content in (("png", file.getvalue()), ("json", json.dumps(facts).encode())):
                    member = tarfile.TarInfo(f"{name}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


def config(shards, **groups):
    diffusion = {"schedule": "flow", "prediction": "flow", "conditioner": "text"}
    words = {"width": 8, "heads": 2, "words": 16, "layers": 1, "max_tokens": 6}
    hide = 0.0 if isinstance(groups.get("model"), TwoTowers) else 0.1
    return validate(
        Config(
            data=Data(name="webdataset", path=str(shards)),
            diffusion=Diffusion(**diffusion, conditioner_options=words, class_dropout=hide),
            optimizer=Optimizer(learning_rate=1e-2, warmup_steps=1),
            **groups,
        )
    )


def run(config, workdir, steps):
    source = open_dataset("webdataset", config.data.path, captioned=True)
    made = assemble(config, source, jax.devices()[:1])
    program, conditioner = made.program, made.recipe.conditioner
    batches = Batches(source, 0, config.train.batch_size, captions=conditioner.tokenize)
    state = jax.jit(program.init)(program.keys["init"])
    for step in range(steps):
        state, metrics = program.step(state, program.place([batches[step]]), program.keys["train"])
    meta = {"shape": list(source.shape), "known": conditioner.known}
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, meta, wait=True)
    (workdir / "config.json").write_text(to_json(config))
    return float(metrics["loss"])


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """The folders of a judge and of a network that draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0}))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        judge, drawing = tmp_path_factory.mktemp("judge"), tmp_path_factory.mktemp("drawing")
        towers = TwoTowers(widths=(16,), blocks=(1,), num_heads=2, features=8)
        own = {"model": towers, "objective": Contrastive(), "train": Train(batch_size=6, sample_every=0, ema_decay=0.5)}
        assert run(config(shards, **own), judge, 80) < 0.5
        hourglass = Hourglass(widths=(8,), blocks=(1,), num_heads=2)
        run(config(shards, model=hourglass, train=Train(batch_size=6, ema_decay=0.5)), drawing, 1)
        yield judge, drawing


def test_a_judge_finds_the_texts_of_real_pictures_and_not_of_noise(runs, monkeypatch, capsys):
    monkeypatch.setattr(prompts, "CANDIDATES", 6)
    judge, drawing = runs
    how = ["--metrics", "prompt,style,colour,nearest", "--judge", str(judge), "--num", "6", "--steps", "2"]
    assert main(["evaluate", str(drawing), *how, "--repeats", "2"]) == 0
    text = (drawing / "evaluation" / "prompts.md").read_text()
    assert text in capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()[:5]]
    rows = {row[2]: row[4:-1] for row in cells}
    assert rows["pictures"] == ["prompt top-1", "top-5", "style", "colour", "nearest"]
    assert rows["real"] == ["1.000", "1.000", "1.000", "1.000", "0.000"]
    assert float(rows["real, shuffled"][0]) == 0.0 and rows["real, shuffled"][4] == "0.000"
    top, spread = rows["drawn"][4].split(" ± ")
    assert float(top) > 0.2 and float(spread) > 0  # one step's samples are noise, each seed's another


def test_a_judge_s_features_are_those_of_its_pictures(runs):
    judge = Judge(runs[0])
    images = np.stack([image for _, image, _ in pictures("train")])
    extractor = judge.extractor()
    features, _ = extractor.apply(extractor.params, jnp.asarray(images))
    np.testing.assert_allclose(features, judge.images(images), rtol=1e-5)


def test_what_cannot_be_measured_is_refused(runs, capsys):
    judge, drawing = map(str, runs)
    for words, right in (
        (["evaluate", judge, "--metrics", "colour"], "draws nothing of a text"),
        (["evaluate", drawing, "--metrics", "prompt"], "need --judge RUN"),
        (["evaluate", drawing, "--metrics", "style", "--judge", drawing], "is no judge"),
        (["evaluate", drawing, "--metrics", "prompt", "--judge", judge], "found among 100"),
        (["evaluate", drawing, "--metrics", "colour", "--steps", "2,4"], "one number of --steps"),
        (["evaluate", drawing, "--metrics", "colour", "--repeats", "0"], "must be at least 1"),
        (["sample", judge, "--prompt", "red square, full"], "this run judges pictures"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert right in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({"model": TwoTowers()}, "needs the objective"),
        ({"objective": Contrastive()}, "needs a model of kind two_towers"),
    ],
)
def test_a_judge_and_its_objective_go_together(shards, changes, right):
    with pytest.raises(UserError, match=right):
        config(shards, **changes)
