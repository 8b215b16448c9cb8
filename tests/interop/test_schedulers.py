"""Schedulers: diffusers' trajectories, recorded by scripts/make_interop_fixtures.py, walked by our samplers."""

import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.errors import UserError
from jaxdiff.interop import scheduler_steps
from jaxdiff.interop.schedulers import read_scheduler, scheduler_from_config

ROOT = Path(__file__).parent.parent / "fixtures" / "interop"
CASES = json.loads((ROOT / "trajectories.json").read_text())
ARRAYS = np.load(ROOT / "trajectories.npz")
ENTRIES = np.arange(16.0).reshape(2, 8, 1)
X_T = 1.5 * np.cos(ENTRIES)


def label(i):
    c = CASES[i]["config"]
    return f"{i}-{c['_class_name'][:4]}-{c['timestep_spacing']}-{CASES[i]['steps']}-eta{CASES[i]['eta']:g}"


def is_euler(found):
    return found.config["_class_name"].startswith("Euler")


def stand_in(found, dtype):
    """The network of the fixtures: 0.3 x + sin(0.37 (n + 1) + j) at their step n = T t - 1."""
    top = found.schedule.num_steps

    def predict(x, t, cond):
        step = jnp.reshape(t * top if is_euler(found) else jnp.round(t * top), (-1, 1, 1)) - 1
        return 0.3 * x + jnp.sin(0.37 * (step + 1) + jnp.asarray(ENTRIES, dtype))

    return found.threshold(found.denoiser(predict))


def pairs(found, case):
    """(n, t, s) of each step, in float64: along our own steps where noise is between entries, else along their list."""
    top, last = found.schedule.num_steps, found.last_entry
    if "timestep_spacing" in found.config and found.walk is not found.schedule:
        ours = scheduler_steps.steps(found.config, found.schedule, case["steps"])
        told = [float(scheduler_steps.seen(found.config, (n + 1) / top)) * top - 1 for n in ours]
        np.testing.assert_allclose(told, case["timesteps"], atol=1e-9 if jax.config.jax_enable_x64 else 1e-3)
        times = [*(ours + 1), last]
        return [(n, t / top, s / top) for n, t, s in zip(told, times, times[1:], strict=False)]
    steps = case["timesteps"] or list(range(top - 1, -1, -1))
    if case["config"]["_class_name"] == "PNDMScheduler":
        steps = [steps[0], *steps[2:]]  # they list the second twice: an improved Euler step
    out = []
    for n, after in zip(steps, [*steps[1:], None], strict=True):
        if case["config"]["_class_name"] in ("DDIMScheduler", "PNDMScheduler"):
            after = n - top // case["steps"]
        out.append((n, (n + 1) / top, (last if after is None or after < 0 else after + 1) / top))
    return out


def walk(i, monkeypatch, dtype):
    """Our walk along their list of (t, s), with the noise that their steps were given."""
    case = CASES[i]
    found = scheduler_from_config(case["config"])
    own_eta = case["config"]["_class_name"] == "DDIMScheduler"
    sampler = jd.samplers.ddim(case["eta"]) if own_eta else found.sampler()
    denoise = stand_in(found, dtype)
    x = jnp.asarray(X_T, dtype)
    state = sampler.init(x)
    out = [x]

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(x, state, t, s, noise):
        for module in ("ddim", "ddpm", "dpmpp_2m_sde"):
            monkeypatch.setattr(sys.modules[f"jaxdiff.samplers.{module}"], "normal_like", lambda keys, x: noise)
        return sampler.step(jd.sample_keys(jax.random.key(0), 2), denoise, x, state, t, s, schedule=found.walk)

    time = np.float64 if dtype == jnp.float64 else np.float32
    for n, t, s in pairs(found, case):
        noise = jnp.asarray(np.cos(1.7 * n + 0.9 * ENTRIES), dtype)
        if t > s or found.config.get("clip_sample"):
            x, state = step(x, state, time(t), time(s), noise)
        out.append(x)
    return np.stack(out)


def relative(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("i", range(len(CASES)), ids=label)
def test_trajectory_is_theirs(i, monkeypatch):
    """In float64, as the algorithm is: every step, to 1e-6; the tables' rounding aside, it is the same method."""
    with jax.enable_x64(True):
        ours = walk(i, monkeypatch, jnp.float64)
    theirs = ARRAYS[f"exact_{i}"]
    if CASES[i]["config"]["_class_name"] == "PNDMScheduler":
        theirs = np.delete(theirs, 1, axis=0)
    if CASES[i]["steps"] > 20:
        ours, theirs = ours[-20:], theirs[-20:]
    if any("their last step has order 1" in note for note in scheduler_from_config(CASES[i]["config"]).notes):
        ours, theirs = ours[:-1], theirs[:-1]
    assert ours.shape == theirs.shape
    assert relative(ours, theirs) < 1e-6


@pytest.mark.parametrize("i", range(0, len(CASES), 9), ids=label)
def test_published_result_is_reached_in_float32(i, monkeypatch):
    """As published, with their float32 tables: 1 - alpha_bar has lost up to 2e-4 there, and so has the result."""
    assert relative(walk(i, monkeypatch, jnp.float32)[-1], ARRAYS[f"published_{i}"]) < 1e-3


@pytest.mark.parametrize("i", range(len(CASES)), ids=label)
def test_times_are_their_steps(i):
    case = CASES[i]
    found = scheduler_from_config(case["config"])
    if found.walk is not found.schedule:
        wanted = [t for _, t, s in pairs(found, case) if t > s]
        np.testing.assert_allclose(found.times(case["steps"])[:-1], wanted, rtol=1e-6)
        return
    steps = case["timesteps"] or list(range(999, -1, -1))
    steps = list(dict.fromkeys(steps))[: case["steps"]]
    entries = [n + 1 for n in steps if n + 1 > found.last_entry] + [found.last_entry]
    np.testing.assert_array_equal(np.round(found.times(case["steps"]) * found.schedule.num_steps), entries)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_every_number_of_steps_gives_times(spacing, kind):
    """Also those for which theirs has a step too many: exactly N, descending, in range."""
    found = scheduler_from_config({"_class_name": kind, "timestep_spacing": spacing, "num_train_timesteps": 200})
    for num in range(1, 200):
        times = found.times(num)
        assert len(times) == num + 1 and np.all(np.diff(times) < 0) and times[-1] == 0 and times[0] <= 1


def test_sample_walks_the_times():
    """What a user calls: schedule, times and sampler through jaxdiff.sample, to the published result."""
    i = next(i for i, c in enumerate(CASES) if c["config"]["_class_name"] == "PNDMScheduler")
    found = scheduler_from_config(CASES[i]["config"])
    keys = jd.sample_keys(jax.random.key(0), 2)
    times = found.times(CASES[i]["steps"])
    denoise = stand_in(found, jnp.float32)
    x = jd.sample(
        keys, denoise, found.sampler(), times=times, schedule=found.schedule, x_T=jnp.asarray(X_T, jnp.float32)
    )
    assert relative(x, ARRAYS[f"exact_{i}"][-1]) < 1e-5


def test_sample_walks_between_entries():
    """The same of Euler on Karras sigmas, from what their pipeline starts with."""
    i = next(
        i
        for i, c in enumerate(CASES)
        if is_euler(scheduler_from_config(c["config"])) and c["config"].get("use_karras_sigmas")
    )
    found = scheduler_from_config(CASES[i]["config"])
    assert found.start(1.0) == 1.0 and scheduler_from_config({"_class_name": "EulerDiscreteScheduler"}).start(1.0) < 1
    x = jd.sample(
        jd.sample_keys(jax.random.key(0), 2),
        stand_in(found, jnp.float32),
        found.sampler(),
        times=found.times(20),
        schedule=found.walk,
        x_T=jnp.asarray(X_T, jnp.float32),
    )
    assert relative(x, ARRAYS[f"exact_{i}"][-1]) < 1e-4


def test_fields_of_other_classes_mean_nothing():
    """SD's Euler files carry those of the PNDM files that they were made from."""
    found = scheduler_from_config(
        {"_class_name": "EulerDiscreteScheduler", "set_alpha_to_one": False, "clip_sample": 3}
    )
    assert found.last_entry == 0 and "clip_sample" not in found.config


def test_scheduler_is_found_in_a_pipelines_folder():
    found = read_scheduler(ROOT / "adm")
    assert found.method == "ddpm" and found.options == {"variance": "large"}


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"_class_name": "KarrasVeScheduler"}, ["KarrasVeScheduler", "DDIMScheduler"]),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "laplace", "prediction_type": "flow"}, ["laplace", "flow"]),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True, "solver_order": 4},
            ["use_lu_lambdas", "solver_order=4"],
        ),
        (
            {
                "_class_name": "EulerDiscreteScheduler",
                "use_karras_sigmas": True,
                "beta_schedule": "squaredcos_cap_v2",
                "prediction_type": "sample",
                "sigma_max": 5,
            },
            ["use_karras_sigmas with squaredcos_cap_v2", "prediction_type='sample'", "sigma_max=5"],
        ),
        ({"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": True}, ["sigmas have no largest"]),
        ({"_class_name": "DDPMScheduler", "trained_betas": [0.1, 2.0]}, ["betas"]),
        ({"_class_name": "DDPMScheduler", "trained_betas": "a"}, ["betas"]),
    ],
)
def test_what_it_cannot_do_is_refused_with_its_names(config, names):
    with pytest.raises(UserError) as error:
        scheduler_from_config(config)
    for name in names:
        assert name in str(error.value)


def test_steps_beyond_the_process_are_refused():
    found = scheduler_from_config({"_class_name": "DDIMScheduler", "steps_offset": 1})
    with pytest.raises(ValueError, match="steps_offset=1 begin beyond T = 1000"):
        found.times(1000)
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        found.times(1001)


def test_where_it_differs_is_noted():
    noted = scheduler_from_config({"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}).notes
    assert any("past v" in note for note in noted) and any("skip_prk_steps" in note for note in noted)
    learned = scheduler_from_config({"_class_name": "DDPMScheduler", "variance_type": "learned_range"})
    assert "learned_range" in learned.notes[0]
