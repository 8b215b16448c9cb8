"""The MeanFlow loss where the mean velocity is known: its floor, its gradient, guidance, and a small network of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import as_denoiser, sample, sample_keys, samplers, schedules
from jaxdiff.denoisers import Span
from jaxdiff.losses import mean_flow_loss
from tests.losses.small_network import distance, network, starts_and_ends, trained
from tests.oracles import flow_map, gaussian_flow, gaussian_mean_velocity

MEAN, SCALE = 0.7, 0.4
N = 40_000


def exact(x, t, cond):
    return gaussian_mean_velocity(x, t, cond["r"], MEAN, SCALE)


def data(n, seed=0, mean=MEAN):
    return mean + SCALE * jax.random.normal(jax.random.key(seed), (n, 1))


def spread(u):
    return (1.0 - u) ** 2 * SCALE**2 + u**2


def test_the_oracle_is_the_mean_of_the_flow_and_solves_the_identity():
    """By the closed form of the flow, by Runge-Kutta, and (2) of the loss's module by its derivatives."""
    x, t, r = jnp.linspace(-2, 2, 9)[:, None], jnp.linspace(0.2, 1.0, 9), jnp.linspace(0.0, 0.8, 9)
    u, flow = gaussian_mean_velocity(x, t, r, MEAN, SCALE), schedules.flow()
    x_r = np.stack([gaussian_flow(*row, MEAN, SCALE) for row in zip(x, map(flow, t), map(flow, r), strict=True)])
    np.testing.assert_allclose(x - (t - r)[:, None] * u, x_r, atol=2e-6)
    by_steps = flow_map(lambda x, t: gaussian_mean_velocity(x, t, t, MEAN, SCALE), x, t, r)
    np.testing.assert_allclose(by_steps, x_r, atol=2e-6)
    v = gaussian_mean_velocity(x, t, t, MEAN, SCALE)
    _, slope = jax.jvp(lambda x, t: gaussian_mean_velocity(x, t, r, MEAN, SCALE), (x, t), (v, jnp.ones_like(t)))
    np.testing.assert_allclose(u, v - (t - r)[:, None] * slope, atol=5e-6)


def test_the_floor_at_the_mean_velocity():
    """s^2 v_r/v_t^2 in expectation, at each of four pairs of times."""
    t, r = (jnp.repeat(jnp.array(a), N // 4) for a in ([0.3, 0.9, 0.9, 0.5], [0.1, 0.0, 0.7, 0.5]))
    loss = mean_flow_loss(jax.random.key(1), exact, data(N), power=0.0, t=t, r=r).reshape(4, -1)
    floor = (SCALE**2 * spread(r) / spread(t) ** 2).reshape(4, -1)[:, 0]
    np.testing.assert_allclose(loss.mean(axis=1), floor, rtol=0.06)  # 4 standard errors of a squared normal


def test_the_gradient_vanishes_at_the_mean_velocity_and_not_beside_it():
    """Of u + theta phi, for three phi: 0 within 4.5 standard errors at theta = 0, far from it at 0.05.

    With guidance of class 0 against both classes hidden, N(0.2, s^2): the flow of the extrapolated mean.
    """
    guidance, means = 3.0, jnp.array([MEAN, 0.2])  # of class 0, and of what is said to be hidden
    label = jnp.arange(N) % 2
    x_0 = data(N, mean=0.0) + means[label][:, None]
    target = jnp.array([0.2 + guidance * (MEAN - 0.2), 0.2])

    def beside(theta):
        def predict(x, t, cond):
            r = cond["r"][:, None]
            phi = jnp.concatenate([x, t[:, None] - r, jnp.sin(x) * r], axis=1)
            u = gaussian_mean_velocity(x, t, cond["r"], target[cond["label"]][:, None], SCALE)
            return u + phi @ theta[:, None]

        return predict

    @jax.jit
    def gradients(theta):
        def mean_loss(theta, key, x_0, label):
            how = {"equal": 0.25, "power": 0.0, "guidance": guidance, "away": {"label": jnp.ones_like(label)}}
            return jnp.mean(mean_flow_loss(key, beside(theta), x_0, cond={"label": label}, **how))

        rows = x_0.reshape(40, -1, 1), label.reshape(40, -1)
        return jax.vmap(jax.grad(mean_loss), (None, 0, 0, 0))(theta, jax.random.split(jax.random.key(2), 40), *rows)

    def signs(theta):
        found = np.asarray(gradients(theta))
        return found.mean(axis=0) / (found.std(axis=0, ddof=1) / np.sqrt(40))

    assert np.abs(signs(jnp.zeros(3))).max() < 4.5
    assert np.abs(signs(jnp.full(3, 0.05))).max() > 15


@pytest.mark.slow
def test_a_small_network_of_a_mixture_samples_it_in_one_step():
    """Trained from scratch, 1, 2 and 4 steps end where the flow does to 0.15; 1 step by the velocity is 0.8 off."""
    params = trained(functools.partial(mean_flow_loss, equal=0.5, power=0.0), 2)
    x_1, end = starts_and_ends()
    how = {"schedule": schedules.flow(), "prediction": "flow", "two_times": True}
    denoise = as_denoiser(functools.partial(network, params), **how)

    def error(name, count):
        how = {"times": np.linspace(1, 0, count + 1), "schedule": schedules.flow(), "x_T": x_1}
        return distance(sample(sample_keys(jax.random.key(4), len(x_1)), denoise, samplers.by_name(name), **how), end)

    assert max(error("mean_flow", count) for count in (1, 2, 4)) < 0.15
    assert error("ddim", 1) > 0.5 and error("dpmpp_2m", 20) < 0.15  # which ask it for the velocity


def test_a_denoiser_of_one_time_is_no_flow_map():
    denoise = as_denoiser(lambda x, t, cond: x, schedule=schedules.flow(), prediction="flow")
    with pytest.raises(ValueError, match="knows one time"):
        denoise(jnp.ones((2, 1)), Span(1.0, 0.5))
