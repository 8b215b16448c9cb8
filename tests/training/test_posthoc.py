"""Averages after training: profiles against sums written out, reconstruction against averages tracked directly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.training import posthoc, snapshots
from jaxdiff.training.checkpoints import restore
from jaxdiff.training.snapshots import Snapshots, reconstruct
from jaxdiff.training.state import TrainState

TRACKED = (0.05, 0.10)
STEPS = 400
update = jax.jit(posthoc.update, static_argnames="widths")


def walk():
    """Parameters of a training that slows down: [STEPS, 3], a trend and noise."""
    noise = np.random.default_rng(0).normal(size=(STEPS, 3)).cumsum(0)
    return (noise + 30 * np.log1p(np.arange(STEPS))[:, None]).astype(np.float32)


def by_definition(path, width):
    """Equation (1), in float64."""
    edges = (np.arange(STEPS + 1) / STEPS) ** (posthoc.exponent(width) + 1)
    return np.diff(edges) @ path.astype(np.float64)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, posthoc.WIDEST])
def test_a_profile_has_the_width_it_is_named_after(width):
    gamma, tau = posthoc.exponent(width), (np.arange(200_000) + 0.5) / 200_000
    p = tau**gamma / np.sum(tau**gamma)
    mean = p @ tau
    assert np.sqrt(p @ (tau - mean) ** 2) == pytest.approx(width, rel=1e-3)


def test_tracking_is_the_sum_that_defines_it():
    path, averages = walk(), tuple({"w": jnp.full(3, 7.0)} for _ in TRACKED)
    for step, params in enumerate(path):
        averages = update(averages, {"w": params}, step, TRACKED)
    for average, width in zip(averages, TRACKED, strict=True):
        np.testing.assert_allclose(average["w"], by_definition(path, width), rtol=2e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a snapshot every 20 steps, and the state after the last step, which is no snapshot."""
    workdir, averages = tmp_path_factory.mktemp("run"), tuple({"w": jnp.zeros(3)} for _ in TRACKED)
    with Snapshots(workdir) as store:
        for step, params in enumerate(walk()):
            averages = update(averages, {"w": params}, step, TRACKED)
            state = TrainState(jnp.int32(step + 1), {}, {}, {}, averages)
            if (step + 1) % 20 == 0 and step + 1 < STEPS:
                store.take(state)
    return workdir, state


@pytest.mark.parametrize(("width", "error"), [(0.05, 1e-5), (0.10, 1e-5), (0.07, 1e-3), (0.15, 1e-3), (0.2, 3e-3)])
def test_any_width_is_reconstructed(run, width, error):
    expected = by_definition(walk(), width)
    made = np.asarray(reconstruct(*run, TRACKED, width)["w"])
    assert np.linalg.norm(made - expected) <= error * np.linalg.norm(expected)
    nearest = np.asarray(run[1].posthoc[int(width > 0.07)]["w"])
    if width not in TRACKED:
        assert np.linalg.norm(made - expected) < 0.3 * np.linalg.norm(nearest - expected)


def snapshots_of(path, workdir, count):
    """A workdir with `count` snapshots at equal distances, and the last step's state, which is no snapshot."""
    averages, every = tuple({"w": jnp.zeros(path.shape[1])} for _ in TRACKED), STEPS // (count + 1)
    with Snapshots(workdir) as store:
        for step, params in enumerate(path):
            averages = update(averages, {"w": params}, step, TRACKED)
            state = TrainState(jnp.int32(step + 1), {}, {}, {}, averages)
            if (step + 1) % every == 0 and (step + 1) // every <= count:
                store.take(state)
    return state


@pytest.mark.parametrize("count", [0, 1, 3])
def test_weights_that_never_moved_come_back_as_they_are(count, tmp_path):
    constant = np.tile(np.float32([0.1, -3.7, 1e-3]), (STEPS, 1))
    state = snapshots_of(constant, tmp_path, count)
    for width in (0.01, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, posthoc.WIDEST):
        np.testing.assert_array_equal(reconstruct(tmp_path, state, TRACKED, width)["w"], constant[0])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 20, 100])
@pytest.mark.parametrize("width", [0.01, 0.075, 0.15, 0.2, posthoc.WIDEST])
def test_the_combination_is_the_nearest_profile_of_those_that_sum_to_1(count, width):
    """Optimality by the gradient of the sampled profiles' distance, and no better by 1e-6 along any exchange."""
    steps, widths = np.repeat(np.arange(1, count + 1) * 100, 2).tolist(), [*TRACKED] * count
    weights = posthoc.coefficients(steps, widths, count * 100, width)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    tau = (np.arange(20_000) + 0.5) / 20_000

    def profile(t, gamma):
        return np.where(tau < t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0.0)

    shapes = np.stack([profile(t / count / 100, posthoc.exponent(w)) for t, w in zip(steps, widths, strict=True)])
    wanted = profile(1.0, posthoc.exponent(width))
    rest = weights @ shapes - wanted
    error = np.sqrt(np.mean(rest**2) / np.mean(wanted**2))
    assert posthoc.profile_error(steps, widths, count * 100, width, weights) == pytest.approx(error, rel=1e-3, abs=1e-4)
    exchanges = shapes - shapes[-1]
    slopes = exchanges @ rest / tau.size / np.sqrt(np.mean(exchanges**2, axis=1) + 1e-9)
    assert np.abs(slopes).max() < 1e-3 * np.sqrt(np.mean(wanted**2))


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("width", [0.075, 0.12, 0.15])
def test_linear_drift_is_as_near_as_its_profile(count, width, tmp_path, capsys):
    """Weights that moved evenly: within profile error times sqrt(mean p^2 * 1/3) of the average, Cauchy's bound."""
    drift = np.arange(1, STEPS + 1, dtype=np.float32)[:, None] / STEPS
    state = snapshots_of(drift, tmp_path, count)
    made = float(reconstruct(tmp_path, state, TRACKED, width)["w"][0])
    gamma = posthoc.exponent(width)
    steps = np.repeat([*(np.arange(1, count + 1) * (STEPS // (count + 1))), STEPS], 2).tolist()
    best = posthoc.coefficients(steps, [*TRACKED] * (count + 1), STEPS, width)
    error = posthoc.profile_error(steps, [*TRACKED] * (count + 1), STEPS, width, best)
    off = abs(made - float(by_definition(drift, width)[0]))
    assert off <= error * np.sqrt((gamma + 1) ** 2 / (2 * gamma + 1) / 12) + 1e-4  # 1/12: sum 1, so about the mean
    assert f"{error:.1%} off in profile" in capsys.readouterr().err
    nearest = float(state.posthoc[int(width > 0.07)]["w"][0])
    assert off < 0.7 * abs(nearest - float(by_definition(drift, width)[0]))


def test_too_few_snapshots_for_a_width_give_the_nearest_tracked_average_and_say_so(tmp_path, capsys):
    state = snapshots_of(walk(), tmp_path, 1)
    made = reconstruct(tmp_path, state, TRACKED, 0.28)["w"]
    np.testing.assert_array_equal(made, state.posthoc[1]["w"])
    said = capsys.readouterr().err
    assert "1 snapshots are too few" in said and "the tracked average of 0.1 is taken" in said


def test_a_corrupt_snapshot_is_passed_over(run, capsys, monkeypatch):
    def refuse(workdir, step, *rest):
        if step == 200:
            raise snapshots.CheckpointError("checkpoint 200 is corrupt (params)")
        return restore(workdir, step, *rest)

    monkeypatch.setattr(snapshots, "restore", refuse)
    made = np.asarray(reconstruct(*run, TRACKED, 0.15)["w"])
    assert "checkpoint 200 is corrupt" in capsys.readouterr().err
    np.testing.assert_allclose(made, by_definition(walk(), 0.15), rtol=5e-3)


def test_what_cannot_be_made_is_refused(run):
    with pytest.raises(UserError, match=r"--train.posthoc_ema"):
        reconstruct(run[0], TrainState(1, {}, {}, {}), (), 0.1)
    for width in (0.0, 0.3, -1.0):
        with pytest.raises(UserError, match=r"relative width in 0..0.2887"):
            reconstruct(*run, TRACKED, width)
