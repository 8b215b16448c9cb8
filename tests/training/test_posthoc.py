"""Averages after training: profiles against sums written out, reconstruction against averages tracked directly."""

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
        averages = posthoc.update(averages, {"w": jnp.asarray(params)}, step, TRACKED)
    for average, width in zip(averages, TRACKED, strict=True):
        np.testing.assert_allclose(average["w"], by_definition(path, width), rtol=2e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a snapshot every 20 steps, and the state after the last step, which is no snapshot."""
    workdir, averages = tmp_path_factory.mktemp("run"), tuple({"w": jnp.zeros(3)} for _ in TRACKED)
    with Snapshots(workdir) as store:
        for step, params in enumerate(walk()):
            averages = posthoc.update(averages, {"w": jnp.asarray(params)}, step, TRACKED)
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
