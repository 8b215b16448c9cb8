"""The Shortcut loss: zero of the mean velocity's steps, its goals held constant, and a small network of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import as_denoiser, sample, sample_keys, samplers, schedules
from jaxdiff.losses import shortcut_loss
from tests.losses.small_network import distance, network, starts_and_ends, trained
from tests.oracles import gaussian_mean_velocity

SHIFT = jnp.array([0.7, -0.3])


def exact(x, t, cond):
    """Of N(0.7, 0.4^2), and unguided of N(-0.3, 0.4^2)."""
    return gaussian_mean_velocity(x, t, cond["r"], SHIFT[cond["label"]][:, None], 0.4)


def data(n):
    return 0.7 + 0.4 * jax.random.normal(jax.random.key(0), (n, 1))


def test_the_mean_velocity_is_where_steps_agree():
    """Zero but for the 1 in 7 whose halves are Euler's; and another velocity is not."""
    label = {"label": jnp.zeros(3000, jnp.int32)}
    loss = np.sort(shortcut_loss(jax.random.key(1), exact, data(3000), share=1.0, cond=label))
    assert loss[int(3000 * 0.83)] < 1e-10 < loss[-1] < 1e-3
    off = lambda x, t, cond: exact(x, t, cond) + 0.1 * (t - cond["r"])[:, None]  # noqa: E731
    assert np.mean(shortcut_loss(jax.random.key(1), off, data(3000), share=1.0, cond=label)) > 1e-4


def test_the_others_learn_the_velocity_and_goals_are_held():
    """share=0 is flow matching, floor s^2/v_t; and what only goals are made of, r = t, has no gradient."""
    label, t = {"label": jnp.zeros(40_000, jnp.int32)}, jnp.full(40_000, 0.6)
    floor = np.mean(shortcut_loss(jax.random.key(2), exact, data(40_000), share=0.0, t=t, cond=label))
    assert floor == pytest.approx(0.16 / (0.4**2 * 0.16 + 0.6**2), rel=0.04)

    def mean_loss(theta):
        moved = lambda x, t, cond: exact(x, t, cond) + theta * (cond["r"] == t)[:, None]  # noqa: E731
        label = {"label": jnp.zeros(500, jnp.int32)}
        return jnp.mean(shortcut_loss(jax.random.key(3), moved, data(500), share=1.0, finest=4, cond=label))

    value, slope = jax.value_and_grad(mean_loss)(0.5)
    assert value > 0.05 and slope == 0


def test_guidance_enters_by_the_finest_half():
    """finest=2: the one step is two halves of guided velocity, of N(-0.3 + 2 (0.7 + 0.3), s^2)."""
    cond, away = ({"label": jnp.full(200, k, jnp.int32)} for k in (0, 1))

    def predict(x, t, cond):
        guided = gaussian_mean_velocity(x, t, t, 1.7, 0.4)
        x_m = x - 0.5 * guided
        euler = 0.5 * (guided + gaussian_mean_velocity(x_m, t - 0.5, t - 0.5, 1.7, 0.4))
        return jnp.where((cond["r"] < t)[:, None], euler, exact(x, t, cond))

    how = {"share": 1.0, "finest": 2, "guidance": 2.0, "cond": cond, "away": away}
    assert float(jnp.max(shortcut_loss(jax.random.key(4), predict, data(200), **how))) < 1e-10
    with pytest.raises(ValueError, match="power of two"):
        shortcut_loss(jax.random.key(4), predict, data(200), finest=6)


@pytest.mark.slow
def test_a_small_network_of_a_mixture_samples_it_in_1_2_and_4_steps():
    """To 0.2, where one step of the velocity is 0.8 off."""
    params = trained(functools.partial(shortcut_loss, share=0.5, finest=32), 2)
    x_1, end = starts_and_ends()
    how = {"schedule": schedules.flow(), "prediction": "flow", "two_times": True}
    denoise = as_denoiser(functools.partial(network, params), **how)

    def error(count):
        how = {"times": np.linspace(1, 0, count + 1), "schedule": schedules.flow(), "x_T": x_1}
        keys = sample_keys(jax.random.key(4), len(x_1))
        return distance(sample(keys, denoise, samplers.mean_flow(), **how), end)

    assert max(map(error, (1, 2, 4))) < 0.2
