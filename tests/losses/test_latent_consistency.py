"""The latent consistency loss on Gaussian classes, whose guided walk is known at every scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import as_denoiser, sample, sample_keys, samplers, schedules
from jaxdiff.guidance import classifier_free
from jaxdiff.losses import latent_consistency_loss
from jaxdiff.process import from_x0_noise
from tests.oracles import ddim_factor, gaussian

SCALE, STEPS, HUBER = 0.4, 8, 0.01
SCHEDULE = schedules.cosine(16)
CLASS, ALL = 0.7, -0.2


def teacher(w):
    parts = [gaussian([mean], [SCALE]).denoiser(SCHEDULE) for mean in (CLASS, ALL)]
    return classifier_free(*parts, w[:, None])


M = [SCHEDULE(k / STEPS) for k in range(STEPS + 1)]
FACTORS = np.cumprod([1.0, *(float(ddim_factor(M[k], M[k - 1], SCALE)) for k in range(1, STEPS + 1))])
"""Of x_t - alpha_t m on the way from k/STEPS to 0."""


def walked(kind, told=lambda w: w):
    """The network whose x_0 is where the walk guided by w ends: that of the mean ALL + w (CLASS - ALL)."""

    def predict(x, t, cond):
        mean, m = (ALL + told(cond["guidance"]) * (CLASS - ALL))[:, None], SCHEDULE(t).like(x)
        x_0 = mean + jnp.asarray(FACTORS, x.dtype)[jnp.round(t * STEPS).astype(int)][:, None] * (x - m.alpha * mean)
        return from_x0_noise(kind, x_0, (x - m.alpha * x_0) / m.sigma, SCHEDULE(t))

    return predict


def data(n):
    return CLASS + SCALE * jax.random.normal(jax.random.key(0), (n, 1))


@pytest.mark.parametrize("kind", ["v", "noise"])
def test_zero_of_the_guided_walk_at_every_scale(kind):
    """And not where another scale is meant; then the loss is the pseudo-Huber distance, by hand."""
    how = {"schedule": SCHEDULE, "prediction": kind, "teacher": teacher, "steps": STEPS, "huber": HUBER}
    loss = lambda predict: latent_consistency_loss(jax.random.key(1), predict, data(300), **how)  # noqa: E731
    assert float(jnp.max(loss(walked(kind)))) < 1e-5 < 1e-3 < float(jnp.mean(loss(walked(kind, lambda w: w - 1))))


def test_distance_and_its_held_goal():
    """A network 0.3 off at one time only: the loss there is sqrt(0.09 + c^2) - c, and goals have no gradient."""

    def off(theta):
        def predict(x, t, cond):
            m = SCHEDULE(t).like(x)
            return walked("v")(x, t, cond) - theta * (t == 0.5)[:, None] / m.sigma  # x_0 = alpha x - sigma v

        return predict

    how = {"schedule": SCHEDULE, "teacher": teacher, "steps": STEPS, "huber": HUBER}
    losses = lambda theta: latent_consistency_loss(jax.random.key(1), off(theta), data(400), **how)  # noqa: E731
    found = np.asarray(losses(0.3))
    touched = found > 1e-3
    assert 70 < touched.sum() < 130  # two of eight times: there, and where it is the goal
    np.testing.assert_allclose(found[touched], np.sqrt(0.09 + HUBER**2) - HUBER, rtol=1e-3)
    slopes = np.asarray(jax.jacfwd(losses)(0.3))
    assert 30 < np.sum(slopes > 0.5) < 70 and np.sum(np.abs(slopes) > 1e-3) == np.sum(slopes > 0.5)


def test_few_steps_have_the_guided_mean():
    """lcm with the scale told, 1, 2 and 4 steps: N(mean of the scale, s^2), whatever the steps."""
    w, keys = 3.0, sample_keys(jax.random.key(4), 4000)
    predict = walked("v")

    def denoise(x, t):
        cond = {"guidance": jnp.full(len(x), w)}
        return as_denoiser(predict, schedule=SCHEDULE, prediction="v", cond=cond)(x, t)

    for steps in (1, 2, 4):
        times = np.linspace(1, 0, steps + 1)
        x = sample(keys, denoise, samplers.lcm(), shape=(1,), times=times, schedule=SCHEDULE)
        assert float(jnp.mean(x)) == pytest.approx(ALL + w * (CLASS - ALL), abs=0.05)
