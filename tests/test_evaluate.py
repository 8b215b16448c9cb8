"""`jaxdiff evaluate` end to end, in process, on runs of a tiny network."""

import dataclasses
import json
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxdiff as jd
from jaxdiff.assembly.recipe import make_recipe, make_update
from jaxdiff.assembly.training_program import example
from jaxdiff.commands import main
from jaxdiff.config import Config, Data, Diffusion, Model, Sampling, make_schedule
from jaxdiff.config.files import read_run, to_json
from jaxdiff.data.sources import open_dataset
from jaxdiff.denoisers import Prediction
from jaxdiff.evaluation import frechet_distance
from jaxdiff.evaluation.extractors import fashion_mnist_classifier
from jaxdiff.evaluation.likelihood import bound_bits, flow_bits
from jaxdiff.evaluation.moments import Gaussian
from jaxdiff.job import comparison as comparison_job
from jaxdiff.job import evaluation as evaluation_job
from jaxdiff.job import likelihood as likelihood_job
from jaxdiff.keys import purpose_key
from jaxdiff.parallel import make_mesh
from jaxdiff.training.checkpoints import Checkpoints, restore
from jaxdiff.training.state import init_state

TINY = Model(patch=4, channels=4, channel_mults=(1,), blocks=1, attention_resolutions=(), num_classes=10)


def write_idx(path, array):
    magic = struct.pack(">HBB", 0, 8, array.ndim)
    path.write_bytes(magic + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes())


def save_run(workdir, config, shape):
    """What training for 0 steps would leave."""
    recipe = make_recipe(config, shape)
    params = jax.jit(recipe.network.init)(jax.random.key(0), *example(recipe))["params"]
    params = jax.tree.map(lambda p: p + 0.01, params)  # a new network predicts zero
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(
            init_state(params, make_update(config.optimizer, config.train.steps, config.model)[0]),
            {"shape": list(shape)},
            wait=True,
        )
    (workdir / "config.json").write_text(to_json(config))
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 200 grey images of 28x28; 100 more are the test split."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for name, n in (("train", 200), ("t10k", 100)):
        write_idx(folder / f"{name}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.minimum(np.arange(n) % 20, 9))  # half are of class 9
    diffusion, sampling = Diffusion(num_steps=20), Sampling(steps=2)
    data = Data(name="fashion_mnist", path=str(folder))
    config = Config(data=data, model=TINY, diffusion=diffusion, sampling=sampling)
    return save_run(tmp_path_factory.mktemp("runs"), config, (28, 28, 1))


def scores(run, kind="scores"):
    return json.loads((run / "evaluation" / "scores.json").read_text())[kind]


def command(run, *options):
    runs = map(str, run if isinstance(run, tuple) else (run,))
    return main(["evaluate", *runs, "--num", "100", "--batch-size", "64", "--metrics", "fid,precision", *options])


def test_table_scores_and_plot_and_going_on(run, tmp_path, capsys, monkeypatch):
    assert command(run, "--steps", "2") == 0
    table = capsys.readouterr().out
    assert "| test (floor) | | |" in table and "| ddim | 2 | 2 |" in table and "n = 100" in table
    floor, cell = scores(run)
    assert (floor["what"], floor["n"], cell["sampler"], cell["nfe"], cell["ema"]) == ("test", 100, "ddim", 2, 0.9999)
    assert floor["values"]["fid"] < cell["values"]["fid"]  # noise against noise, and against an untrained network
    assert (run / "evaluation" / "fid.png").stat().st_size > 0

    drawn = []
    plain = comparison_job.make_method
    monkeypatch.setattr(comparison_job, "make_method", lambda process, cell: drawn.append(cell) or plain(process, cell))
    assert command(run, "--steps", "2,3", "--sampler", "euler,ddim") == 0  # what is there is not drawn again
    assert [(cell.sampler, cell.steps) for cell in drawn] == [("euler", 2), ("euler", 3), ("ddim", 3)]
    assert [score for score in scores(run) if score in (floor, cell)] == [floor, cell]
    assert len(scores(run)) == 5

    capsys.readouterr()
    shutil.copytree(run, other := tmp_path / "other")
    assert command((run, other), "--steps", "2,3") == 0
    fid = f"{cell['values']['fid']:.4g}"
    assert f"| ddim | 2 | 1 | {cell['grid']} | 0 | fid | {fid} | {fid} | {fid} ± 0 |" in capsys.readouterr().out
    assert len(drawn) == 3 and main(["evaluate"]) == 2


def test_numbers_of_other_definitions_are_measured_anew(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    assert command(run, "--steps", "2", "--metrics", "fid,bpd", "--bits-num", "64") == 0
    path = run / "evaluation" / "scores.json"
    rows = json.loads(path.read_text())
    for row in [*rows["scores"], *rows["bits"]]:
        row |= {"value": 0.0} if "value" in row else {"values": {"fid": 0.0}}
        del row["definitions"]  # as files had it before definitions were numbered
    path.write_text(json.dumps(rows))
    assert command(run, "--steps", "2", "--metrics", "fid,bpd", "--bits-num", "64") == 0
    table = (run / "evaluation" / "table.md").read_text()
    assert "| 0 |" not in table and not table.splitlines()[-1].startswith("0 ")
    assert len(scores(run)) >= len(rows["scores"]) + 2  # the floor and a cell: what others measured stays


def reference_labels(data, n=100):
    """The classes of the first n reference images, in the order of the command."""
    return data.gather(np.random.Generator(np.random.Philox(0)).permutation(len(data))[:n])["label"]


def test_samples_are_of_the_classes_of_the_data(run, monkeypatch):
    """Half of the training images are of one class, and so are the samples: those of images drawn at random."""
    plain, labels = comparison_job.make_draw, []

    def recording(*arguments):
        draw = plain(*arguments)
        return lambda params, key, num, batch, first, **rest: (
            labels.extend(batch["label"]) or draw(params, key, num, batch, first, **rest)
        )

    monkeypatch.setattr(comparison_job, "make_draw", recording)
    assert command(run, "--steps", "4") == 0
    np.testing.assert_array_equal(labels, reference_labels(open_dataset("fashion_mnist", read_run(run).data.path)))
    assert 40 <= labels.count(9) <= 70


def test_samples_are_those_of_sample_py(run, tmp_path):
    """FID of what sample.py writes for the same seed and classes, computed here, is the one in scores.json."""
    assert command(run, "--steps", "2") == 0
    out, data = tmp_path / "samples.npz", open_dataset("fashion_mnist", read_run(run).data.path)
    options = ("--num", "100", "--steps", "2", "--batch-size", "64", "--out", str(out))
    assert main(["sample", str(run), *options, "--classes", *map(str, reference_labels(data))]) == 0
    extractor = fashion_mnist_classifier()

    def gaussian(images):
        features = np.asarray(extractor.apply(extractor.params, jnp.asarray(images))[0], np.float64)
        return Gaussian(len(images), features.mean(axis=0), np.cov(features.T))

    with np.load(out) as arrays:
        expected = frechet_distance(gaussian(data.gather(np.arange(200))["image"]), gaussian(arrays["images"]))
    found = next(s["values"]["fid"] for s in scores(run) if s["sampler"] == "ddim" and s["steps"] == 2)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "right"),
    [
        (("--metrics", "fid,fud"), "'fud' is not one of fid, kid"),
        (("--metrics", "kid"), "2000..200"),
        (("--num", "201"), "100..200"),
        (("--steps", "2,x"), "whole numbers"),
        (("--steps", "2000"), "at most 20"),
        (("--sampler", "dimm"), "one of"),
        (("--eta", "0.5", "--sampler", "heun"), "means nothing to heun"),
        (("--batch-size", "0"), "at least 1"),
        (("--samplar", "2"), "unknown option --samplar; did you mean --sampler?"),
        (("--data-path", "/nowhere"), "/nowhere"),
        (("--features", "/nowhere.pth"), "/nowhere.pth is no file"),
        (("--features", "nowhere:features"), "No module named 'nowhere'"),
        (("--features", "json:loads"), "--features json:loads: TypeError"),
        (("--metrics", "bpd", "--bits-num", "101"), "2..100"),
        (("--test-path", "/nowhere"), "/nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(run, capsys, options, right):
    before = sorted(run.rglob("*"))
    assert command(run, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and right in error
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "options", "right"),
    [
        ({"diffusion": Diffusion(schedule="flow", prediction="flow")}, ("--metrics", "bpd"), "flow is continuous"),
        ({"model": dataclasses.replace(TINY, num_classes=7)}, ("--steps", "2"), "7 classes and the data 10"),
    ],
)
def test_what_does_not_go_with_the_run_is_a_line(run, capsys, monkeypatch, changes, options, right):
    config = dataclasses.replace(read_run(run), **changes)
    monkeypatch.setattr(evaluation_job, "read_run", lambda workdir: config)
    command(run, *options)
    assert right in capsys.readouterr().err


def images_of_test_split(run, n):
    """The first n test images in the order of the command."""
    source = open_dataset("fashion_mnist", read_run(run).data.path, "test")
    return source.gather(np.random.Generator(np.random.Philox(0)).permutation(100)[:n])


def network(run):
    params, model = restore(run).ema_params, read_run(run).model.module(1)
    return lambda x_t, t, cond: model.apply({"params": params}, x_t, t, cond)


def test_bits_of_test_images_are_those_of_the_functions(run, capsys, monkeypatch):
    """The first test images in the order of the command, their own classes, noise by seed and i; in two batches."""
    assert command(run, "--metrics", "bpd", "--bits-num", "10", "--batch-size", "8") == 0
    out = capsys.readouterr().out
    (found,) = json.loads((run / "evaluation" / "scores.json").read_text())["bits"]
    assert f"{found['value']:.4g} ± " in out and "10 images of fashion_mnist, split test" in out
    assert (found["kind"], found["evaluations"], found["n"]) == ("bpd", 20, 10)

    batch, schedule = images_of_test_split(run, 10), make_schedule(read_run(run).diffusion)
    denoise = jd.as_denoiser(network(run), schedule=schedule, cond={"label": jnp.asarray(batch["label"])})
    denoise = jd.static_threshold(denoise, schedule=schedule)
    bits = bound_bits(jd.sample_keys(purpose_key(0, "bits"), 10), denoise, jnp.asarray(batch["image"]), schedule)
    assert found["value"] == pytest.approx(float(bits.mean()), rel=1e-5)
    assert found["error"] == pytest.approx(float(bits.std(ddof=1)) / 10**0.5, rel=1e-4)

    monkeypatch.setattr(evaluation_job, "build_bits", None)  # not measured again
    assert command(run, "--metrics", "bpd", "--bits-num", "10") == 0


def test_bits_of_the_flow_ask_no_time_below_the_first_trained(monkeypatch):
    """With T = 20 the network has seen 0.05 to 1."""
    seen = []

    def denoiser(recipe, params, cond, *, schedule):
        def denoise(x_t, t):
            jax.debug.callback(lambda t: seen.append(float(np.min(t))), t)
            return Prediction(jnp.zeros_like(x_t), x_t)

        return denoise

    monkeypatch.setattr(likelihood_job, "denoiser", denoiser)
    recipe = make_recipe(Config(data=Data(name="folder"), model=dataclasses.replace(TINY, num_classes=0)), (8, 8, 3))
    recipe = recipe._replace(schedule=jd.schedules.cosine(20))
    bits = likelihood_job.build_bits(recipe, "bpd_flow", 1, make_mesh(1, jax.devices()[:1]))
    bits({}, jax.random.key(0), 0, {"image": np.zeros((1, 8, 8, 3), np.uint8)})
    assert len(seen) > 6 and np.float32(0.05) <= min(seen) < 0.0501


@pytest.mark.slow
def test_bits_by_the_flow_are_those_of_each_image_alone(run):
    """Every image with its own class, though the solver takes them by themselves."""
    assert command(run, "--metrics", "bpd_flow", "--bits-num", "3", "--batch-size", "2") == 0
    (found,) = [row for row in scores(run, "bits") if row["kind"] == "bpd_flow"]
    config, batch = read_run(run), images_of_test_split(run, 3)
    predict, schedule = network(run), jd.schedules.interpolate(make_schedule(config.diffusion))
    keys, values = jd.sample_keys(purpose_key(0, "bits"), 3), []
    for i in range(3):
        denoise = jd.as_denoiser(predict, schedule=schedule, cond={"label": jnp.asarray(batch["label"][i : i + 1])})
        image = jnp.asarray(batch["image"][i : i + 1])
        values.append(float(flow_bits(keys[i : i + 1], denoise, image, schedule, t_min=0.05)[0]))
    assert found["value"] == pytest.approx(np.mean(values), rel=1e-3)


def write_photos(folder, n, seed):
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return str(folder)


def test_colour_images_with_a_function_of_ones_own(run, tmp_path, capsys):
    """A folder of images, another one as the test images, and features from a module in the current folder."""
    config = Config(
        data=Data(name="folder"), model=dataclasses.replace(TINY, num_classes=0), sampling=Sampling(steps=2)
    )
    workdir = save_run(tmp_path, config, (8, 8, 3))
    photos = ("--data-path", write_photos(tmp_path / "photos", 100, 0))
    assert command(workdir, *photos) == 2
    assert "these are 8x8x3; give --features FILE" in capsys.readouterr().err
    others = ("--test-path", write_photos(tmp_path / "others", 100, 1))
    assert command(workdir, *photos, *others, "--metrics", "fid", "--features", "tests.toy_features:features") == 0
    assert "features: means 1" in capsys.readouterr().out
    floor, cell = scores(workdir)
    assert floor["what"] == "test" and floor["values"]["fid"] < cell["values"]["fid"]


def test_no_run(tmp_path, capsys):
    assert command(tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err


def test_places_of_all_that_is_written_are_tried_before_the_work(run, tmp_path, capsys):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    (tmp_path / "evaluation" / "table.md").mkdir(parents=True)
    assert command(tmp_path) == 2
    assert "table.md cannot be written: is a directory" in capsys.readouterr().err


def test_scores_of_somebody_else_are_not_overwritten(run, tmp_path, capsys):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    (tmp_path / "evaluation" / "scores.json").write_text('{"scores": [{"fid": 3}]}')
    assert command(tmp_path) == 2
    assert "unknown field" in capsys.readouterr().err
