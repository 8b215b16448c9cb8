"""Every member of every family from a config: two training steps or two sampling steps, and back from config.json."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.assembly.assemble import assemble
from jaxdiff.assembly.recipe import make_method, make_recipe
from jaxdiff.assembly.training_program import example
from jaxdiff.codecs import CODECS
from jaxdiff.conditioning import CONDITIONERS
from jaxdiff.config import Config, Data, Diffusion, Model, Optimizer, Parallel, Sampling, Train, validate
from jaxdiff.config.arguments import options_field, take_members
from jaxdiff.config.files import from_json, load_plugins, to_json
from jaxdiff.denoisers import THRESHOLDS
from jaxdiff.diffusion import make_draw
from jaxdiff.errors import UserError
from jaxdiff.guidance import RULES
from jaxdiff.losses import TIME_SAMPLINGS, WEIGHTINGS
from jaxdiff.models import NETWORKS, DiT
from jaxdiff.objectives import (
    OBJECTIVES,
    Consistency,
    ContinuousConsistency,
    Denoising,
    Hybrid,
    LatentConsistency,
    MeanFlow,
    Progressive,
    Shortcut,
)
from jaxdiff.parallel import make_mesh
from jaxdiff.process import PREDICTIONS
from jaxdiff.samplers import SAMPLERS
from jaxdiff.schedules import SCHEDULES
from jaxdiff.schema import encode
from jaxdiff.times import SPACINGS
from jaxdiff.training.checkpoints import Checkpoints, restore
from jaxdiff.training.loggers import LOGGERS
from jaxdiff.training.optimizer import LEARNING_RATES, OPTIMIZERS

PLUGIN = '''
import dataclasses
import flax.linen as nn
import jax.numpy as jnp
from jaxdiff.models import NETWORKS, NetworkOptions


class Net(nn.Module):
    out_channels: int
    width: int
    num_classes: int

    @nn.compact
    def __call__(self, x, t, cond=None, *, dropout_keys=None):
        label = nn.Embed(self.num_classes + 1, self.width)(cond["label"]) if cond else 0.0
        h = nn.Dense(self.width)(x) + (nn.Dense(self.width)(t[:, None]) + label)[:, None, None]
        for name in {"r", "guidance"} & set(cond or {}):
            h += nn.Dense(self.width, name=name)(cond[name][:, None])[:, None, None]
        return nn.Dense(self.out_channels)(nn.tanh(h))


@dataclasses.dataclass(frozen=True)
class Dots(NetworkOptions):
    """Each pixel by itself."""

    width: int = 4
    """Features of a pixel."""
    num_classes: int = 0
    """Classes to condition on."""

    def check(self, shape, cond):
        if self.width < 1:
            raise ValueError(f"width is {self.width}; it must be positive")

    def module(self, out_channels):
        return Net(out_channels, self.width, self.num_classes)


NETWORKS.members["dots"] = Dots
'''


class Images:
    shape, num_classes = (4, 6, 1), 2


@pytest.fixture(scope="module", autouse=True)
def dots(tmp_path_factory):
    """A network of one's own that compiles in a moment."""
    file = tmp_path_factory.mktemp("plugin") / "dots_plugin.py"
    file.write_text(PLUGIN)
    assert load_plugins(["--plugin", str(file), "--seed", "1"]) == (("dots_plugin.py",), ["--seed", "1"])
    yield NETWORKS.members["dots"]
    del NETWORKS.members["dots"]


def small(dots, **groups):
    """A config of the network of one's own, on one device."""
    groups.setdefault("model", dots(num_classes=2))
    return validate(Config(plugins=("dots_plugin.py",), **{"train": Train(batch_size=4, steps=9), **groups}))


def batch():
    images = np.random.default_rng(0).integers(0, 256, (4, *Images.shape), np.uint8)
    return {"image": images, "label": np.arange(4, dtype=np.int32) % 2, "row": np.arange(4, dtype=np.int32)}


def trained(config):
    """Two steps; the state after them."""
    assert from_json(to_json(config)) == config
    made = assemble(config, Images(), jax.devices()[:1])
    program = made.program
    state = jax.jit(program.init)(program.keys["init"])
    before = jax.tree.map(np.asarray, state.params)
    for _ in range(2):
        state, metrics = program.step(state, program.place([batch()]), program.keys["train"])
        assert np.isfinite(float(np.ravel(metrics["loss"])[0])) and float(np.ravel(metrics["skipped"])[0]) == 0
    moved = jax.tree.map(lambda a, b: bool(np.any(a != np.asarray(b))), before, state.params)
    assert any(jax.tree.leaves(moved))
    return made, state


def cycle(members):
    return itertools.cycle(list(members))


DISCRETE = ("linear", "scaled_linear", "cosine", "sigmoid")
NEEDED = {"interpolated_cosine": {"shift_noise": 0.5}}
TRAININGS = list(
    zip(
        SCHEDULES.members,
        cycle(["v", "flow", "edm", "x_0", "noise", "score"]),
        cycle(WEIGHTINGS.members),
        cycle(["loss_aware", "stratified", "uniform", "log_normal", "logit_normal", "uniform_log_snr"]),
        cycle(OPTIMIZERS.members),
        cycle(LEARNING_RATES.members),
        strict=False,
    )
)


def test_the_cases_name_every_member():
    _, predictions, weightings, times, optimizers, rates = (set(column) for column in zip(*TRAININGS, strict=True))
    assert predictions == set(PREDICTIONS) and weightings == set(WEIGHTINGS.members)
    assert times == set(TIME_SAMPLINGS.members) and optimizers == set(OPTIMIZERS.members)
    assert rates == set(LEARNING_RATES.members)
    assert set(CODECS.members) == {"pixels", "autoencoder"} and set(CONDITIONERS.members) == {
        "nothing",
        "classes",
        "text",
    }
    assert set(OBJECTIVES.members) == {"denoising", "hybrid", "consistency", "contrastive", *FEW_STEPS}


@pytest.mark.parametrize(("schedule", "prediction", "weighting", "times", "optimizer", "rate"), TRAININGS)
def test_a_member_trains(dots, schedule, prediction, weighting, times, optimizer, rate):
    if times == "loss_aware" and schedule not in DISCRETE:
        times = "uniform"
    diffusion = Diffusion(
        schedule=schedule,
        schedule_options=NEEDED.get(schedule, {}),
        prediction=prediction,
        weighting=weighting,
        time_sampling=times,
    )
    decay = 0.0 if optimizer == "adam" else 0.01
    own = Optimizer(name=optimizer, schedule=rate, warmup_steps=1, weight_decay=decay)
    trained(small(dots, diffusion=diffusion, optimizer=own))


DIT = DiT(width=8, depth=2, num_heads=2, num_classes=2)
UNET = Model(channels=4, channel_mults=(1,), blocks=1, attention_resolutions=(), num_classes=2)


@pytest.mark.slow
@pytest.mark.parametrize("model", [UNET, DIT], ids=["unet", "dit"])
def test_a_network_trains(dots, model):
    trained(small(dots, model=model))


@pytest.mark.slow
def test_a_hybrid_objective_trains_and_samples_with_its_variance(dots):
    config = small(dots, objective=Hybrid(), diffusion=Diffusion(schedule="cosine"))
    made, state = trained(config)
    assert state.params["Dense_2"]["kernel"].shape[-1] == 2
    method = make_method(made.recipe, Sampling(sampler="ddpm", steps=2, variance="learned"))
    images = make_draw(made.recipe, method, 1, made.program.mesh)(
        state.params, jax.random.key(0), 2, {"label": np.zeros(2, np.int32)}
    )
    assert images.shape == (2, 4, 6, 1) and np.all(np.isfinite(images))


STRAIGHT = Diffusion(schedule="flow", prediction="flow")
ARC = Diffusion(schedule="shifted_cosine", prediction="v")
FEW_STEPS = {
    "mean_flow": (MeanFlow(guidance=2.0), STRAIGHT),
    "shortcut": (Shortcut(guidance=2.0), STRAIGHT),
    "progressive": (Progressive(first=4, halve_every=1, guidance=2.0), Diffusion(prediction="v")),
    "continuous_consistency": (ContinuousConsistency(guidance=2.0), ARC),
    "latent_consistency": (LatentConsistency(), Diffusion(prediction="noise")),
}


def saved(config, workdir):
    """A run of two steps."""
    _, state = trained(config)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, {"shape": [4, 6, 1]}, wait=True)
    (workdir / "config.json").write_text(to_json(config))
    return str(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW_STEPS)
def test_an_objective_of_few_steps_is_the_same_on_every_layout(dots, name, tmp_path):
    """One device, and four with split parameters and the batch in two parts: equal losses, equal parameters."""
    (objective, diffusion), found = FEW_STEPS[name], []
    if objective.runs() or name.endswith("consistency"):
        start = saved(small(dots, model=dots(width=8, num_classes=2), diffusion=diffusion), tmp_path / "start")
        objective = dataclasses.replace(objective, start=start)
    for devices, fsdp, accumulate in ((1, 1, 1), (4, 2, 2)):
        layout = {"train": Train(batch_size=8, steps=9, accumulate=accumulate), "parallel": Parallel(fsdp=fsdp)}
        config = small(dots, model=dots(width=8, num_classes=2), objective=objective, diffusion=diffusion, **layout)
        program = assemble(config, Images(), jax.devices()[:devices]).program
        state = jax.jit(program.init)(program.keys["init"])
        first, losses = jax.device_get(state.params), []
        rows = {key: np.concatenate([value, value]) for key, value in batch().items()} | {"row": np.arange(8)}
        for _ in range(2):
            state, metrics = program.step(state, program.place([rows]), program.keys["train"])
            losses.append(float(metrics["loss"]))
        found.append((losses, jax.device_get(state.params)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[0][1], found[1][1])
    assert not any(np.array_equal(first[told]["kernel"], found[0][1][told]["kernel"]) for told in objective.extra_cond)
    if name == "progressive":  # the teacher is what the student was before its second step, and split as that
        teacher, student = state.objective["teacher"], state.params
        assert jax.tree.map(lambda x: x.sharding, teacher) == jax.tree.map(lambda x: x.sharding, student)
        assert not np.array_equal(teacher["Dense_0"]["kernel"], first["Dense_0"]["kernel"])
        with Checkpoints(tmp_path / "run") as checkpoints:
            checkpoints.save(state, {"shape": [4, 6, 1]}, wait=True)
        jax.tree.map(np.testing.assert_array_equal, restore(tmp_path / "run").objective, state.objective)


@pytest.mark.slow
@pytest.mark.parametrize("model", [UNET, DIT], ids=["unet", "dit"])
def test_the_networks_are_differentiated_forward(dots, model):
    trained(small(dots, model=model, objective=MeanFlow(), diffusion=STRAIGHT))


@pytest.mark.parametrize(
    "mode", [Parallel(), pytest.param(Parallel(mode="pmap"), marks=pytest.mark.slow)], ids=["mesh", "pmap"]
)
def test_a_teacher_is_an_argument_of_the_step_and_no_constant_of_it(dots, tmp_path, mode):
    """The program of a wider teacher is as long; the state holds none of it; guidance changes the loss."""
    sizes, losses = [], []
    for width, guidance in ((4, 1.0), (64, 1.0), (64, 3.0)):
        start = small(dots, model=dots(width=width, num_classes=2), diffusion=Diffusion(prediction="v"))
        workdir = tmp_path / f"{width}"
        if not workdir.exists():
            saved(start, workdir)
        objective = Consistency(start=str(workdir), guidance=guidance)
        config = dataclasses.replace(start, objective=objective, parallel=mode)
        made, state = trained(config)
        program = made.program
        sizes.append(len(program.lower().as_text()))
        assert jax.tree.structure(state.params) == jax.tree.structure(program.frozen["teacher"])
        first = jax.jit(program.init)(program.keys["init"])
        losses.append(
            float(np.ravel(program.step(first, program.place([batch()]), program.keys["train"])[1]["loss"])[0])
        )
    assert made.config_json["objective"]["digest"] and encode(from_json(to_json(made.config_json))) == made.config_json
    with pytest.raises(UserError, match="not the one that the run began with"):
        assemble(
            dataclasses.replace(config, objective=dataclasses.replace(objective, digest="0" * 16)),
            Images(),
            jax.devices()[:1],
        )
    assert abs(sizes[1] - sizes[0]) < 0.02 * sizes[0]
    assert losses[2] != losses[1]


SAMPLINGS = list(
    zip(
        SAMPLERS.members,
        cycle(RULES.members),
        cycle(THRESHOLDS.members),
        cycle(SPACINGS),
        cycle(["cosine", "flow", "edm"]),
        strict=False,
    )
)


@pytest.fixture(scope="module")
def params(dots):
    recipe = make_recipe(small(dots), Images.shape)
    x, t, cond = jnp.zeros((1, 4, 6, 1)), jnp.zeros(1), {"label": jnp.zeros(1, jnp.int32)}
    return recipe.network.init(jax.random.key(0), x, t, cond)["params"]


@pytest.mark.parametrize(("sampler", "rule", "threshold", "spacing", "schedule"), SAMPLINGS)
def test_a_member_samples(dots, params, sampler, rule, threshold, spacing, schedule):
    guidance, objective, diffusion = 0.5, Denoising(), Diffusion(schedule=schedule, prediction="v")
    if sampler == "mean_flow":
        guidance, objective, diffusion = 1.0, MeanFlow(), Diffusion(schedule="flow", prediction="flow")
    sampling = Sampling(
        sampler=sampler, steps=2, guidance=guidance, guidance_rule=rule, threshold=threshold, spacing=spacing
    )
    config = small(dots, diffusion=diffusion, objective=objective, sampling=sampling)
    assert from_json(to_json(config)) == config
    recipe, mesh = make_recipe(config, Images.shape), make_mesh(devices=jax.devices()[:1])
    draw = make_draw(recipe, make_method(recipe, sampling), 2, mesh)
    if recipe.extra_cond:
        params = recipe.network.init(jax.random.key(0), *example(recipe))["params"]
    images = draw(params, jax.random.key(0), 2, {"label": np.arange(2, dtype=np.int32)}, weak=params)
    assert images.shape == (2, 4, 6, 1) and np.all(np.isfinite(images))


def test_every_sampling_member_is_named():
    _, rules, thresholds, spacings, _ = (set(column) for column in zip(*SAMPLINGS, strict=True))
    assert rules == set(RULES.members) and thresholds == set(THRESHOLDS.members) and spacings == set(SPACINGS)


def test_every_logger_is_reached(dots):
    for name in LOGGERS.members:
        assert small(dots, train=Train(batch_size=4, loggers=(name,))).train.loggers == (name,)


def test_options_from_the_command_line_in_any_order():
    words = ["--diffusion.schedule_options.shift", "3", "--seed=2", "--diffusion.schedule", "flow"]
    config, rest = take_members(Config(), [*words, "--model", "dit", "--sampling.guidance_options.low=0.1"])
    assert rest == ["--seed=2"] and type(config.model) is DiT
    assert (config.diffusion.schedule, config.diffusion.schedule_options) == ("flow", {"shift": 3})
    assert config.sampling.guidance_options == {"low": 0.1}
    config, _ = take_members(config, ["--diffusion.schedule", "edm"])
    assert config.diffusion.schedule_options == {}  # they were flow's


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["--diffusion.schedule", "flaw"], "unknown schedule 'flaw'; choose one of linear"),
        (["--diffusion.schedule_options.shift", "3"], "cosine has no option 'shift'; it takes offset, max_beta"),
        (["--diffusion.weighting_options.gamma", "3"], "simple has no option 'gamma'; it takes none"),
        (["--sampling.sampler", "unipc", "--sampling.sampler_options.order", "x"], "order is 'x'; it must be int"),
        (["--sampling.guidance_rule", "cgf"], "unknown guidance rule 'cgf'"),
        (["--sampling.spacing", "even"], "unknown spacing 'even'; choose one of trailing"),
        (["--sampling.spacing_options.rho", "3"], "trailing has no option 'rho'; it takes none"),
        (["--optimizer.name", "adma"], "unknown optimizer 'adma'"),
        (["--train.loggers"], None),
    ],
)
def test_a_wrong_member_or_option_is_refused_with_the_choices(words, right):
    config, rest = take_members(Config(), words)
    if right is None:
        assert rest == words
        return
    with pytest.raises(UserError) as error:
        validate(config)
    assert right in str(error.value)


def test_an_unknown_network_is_refused_with_the_choices():
    with pytest.raises(UserError, match="unknown network 'unett'; choose one of unet, dit"):
        take_members(Config(), ["--model", "unett"])
    with pytest.raises(UserError, match="needs a value"):
        take_members(Config(), ["--model"])


def test_a_run_with_members_of_ones_own_needs_their_file(dots, tmp_path):
    """A config.json names the file, and nothing in it is run."""
    text = to_json(small(dots)).replace("dots_plugin.py", "other_plugin.py")
    with pytest.raises(UserError, match=r"members of other_plugin.py; name that file, if you trust it, by --plugin"):
        from_json(text)
    with pytest.raises(UserError, match="no such file"):
        load_plugins(["--plugin", str(tmp_path / "none.py")])
    (tmp_path / "broken.py").write_text("x = nothing\n")
    with pytest.raises(UserError, match=r"does not run \(broken.py, line 1\): NameError"):
        load_plugins([f"--plugin={tmp_path / 'broken.py'}"])


def test_options_have_a_field_beside_their_member():
    for group in (Data(), Diffusion(), Optimizer(), Sampling()):
        fields = {field.name for field in dataclasses.fields(group)}
        for name in fields:
            if name.endswith("_options"):
                assert any(options_field(member) == name for member in fields - {name})
