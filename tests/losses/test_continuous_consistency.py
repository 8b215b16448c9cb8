"""Continuous-time consistency on Gaussian data, where the end of the flow is known, and of a small network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import schedules
from jaxdiff.losses import continuous_consistency_loss, log_normal
from tests.losses.small_network import distance, network, starts_and_ends, trained
from tests.oracles import MIXTURE, gaussian

MEAN, SCALE = 0.7, 0.4
ARC = schedules.shifted_cosine()
VP = schedules.continuous_vp()


def exact(schedule):
    """F = (cos phi x - f)/sin phi of f, the end of the flow: m + s/sqrt(v_t) (x - alpha m)."""

    def predict(x, t, cond=None):
        m = schedule(t).like(x)
        v = m.alpha**2 * SCALE**2 + m.sigma**2
        return (m.alpha * x - MEAN - SCALE / jnp.sqrt(v) * (x - m.alpha * MEAN)) / m.sigma

    return predict


def data(n):
    return MEAN + SCALE * jax.random.normal(jax.random.key(0), (n, 1))


def test_distillation_is_zero_at_the_end_of_the_flow():
    """On two schedules, one of them not even in the angle; and not beside it, nor of the denoiser."""
    t = jnp.linspace(0.05, 1.0, 200)
    for schedule in (ARC, VP):
        teacher = gaussian([MEAN], [SCALE]).denoiser(schedule)
        loss = functools.partial(continuous_consistency_loss, jax.random.key(1), schedule=schedule, t=t)
        found = loss(exact(schedule), data(200), teacher=teacher, normalised=False)
        assert float(jnp.max(found)) < 1e-6
        for off in (0.1, -0.1):
            beside = lambda x, t, cond: exact(schedule)(x, t) + off * x  # noqa: B023, E731
            assert float(jnp.mean(loss(beside, data(200), teacher=teacher))) > 1e-3


def test_training_stands_still_at_the_same_function():
    """The gradient of u + theta phi: 0 within 4.5 standard errors at theta = 0, divided by its length or not."""

    @jax.jit
    def gradients(theta):
        def mean_loss(theta, key, x_0, normalised):
            def beside(x, t, cond):
                return exact(ARC)(x, t) + jnp.concatenate([x, jnp.sin(3 * t)[:, None]], axis=1) @ theta[:, None]

            how = {"schedule": ARC, "normalised": normalised, "time_sampling": log_normal(-0.5, 1.0)}
            return jnp.mean(continuous_consistency_loss(key, beside, x_0, **how))

        keys = jax.random.split(jax.random.key(2), 40)
        each = [jax.vmap(jax.grad(functools.partial(mean_loss, normalised=n)), (None, 0, 0)) for n in (False, True)]
        return jnp.stack([grad(theta, keys, data(40_000).reshape(40, -1, 1)) for grad in each])

    def signs(theta):
        found = np.asarray(gradients(theta))
        return found.mean(axis=1) / (found.std(axis=1, ddof=1) / np.sqrt(40))

    assert np.abs(signs(jnp.zeros(2))).max() < 4.5
    assert np.abs(signs(jnp.full(2, 0.05))).max(axis=1).min() > 15


@pytest.mark.slow
def test_a_small_network_of_a_mixture_ends_where_the_flow_does():
    """Distilled from the exact denoiser, in one step from noise: to 0.15, where its denoiser is 0.8 off."""
    teacher = MIXTURE.denoiser(ARC)
    how = {"schedule": ARC, "teacher": teacher, "time_sampling": log_normal(0.0, 1.4)}
    params = trained(functools.partial(continuous_consistency_loss, **how), 1)
    x_1, end = starts_and_ends()
    m, one = ARC(1.0), jnp.ones(len(x_1))
    found = m.alpha * x_1 - m.sigma * network(params, x_1, one, None)
    assert distance(found, end) < 0.15 < 0.5 < distance(teacher(x_1, 1.0).x_0, end)
