"""Progressive distillation on Gaussian data, where a student's every step is the product of two DDIM factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import sample, sample_keys, samplers, schedules
from jaxdiff.denoisers import Prediction
from jaxdiff.losses import progressive_loss, truncated_snr
from jaxdiff.process import from_x0_noise
from tests.oracles import ddim_factor, gaussian

SCALE, STEPS = 0.4, 4
SCHEDULES = {"table": schedules.cosine(16), "flow": schedules.flow(), "edm": schedules.edm()}


def walk(schedule):
    """(x_0, noise) of the student's step from t: that of x_s = g x_t, g the product of the teacher's two factors."""

    def denoise(x, t):
        m_t, m_m, m_s = (schedule(u) for u in (t, t - 0.5 / STEPS, t - 1 / STEPS))
        g = ddim_factor(m_t, m_m, SCALE) * ddim_factor(m_m, m_s, SCALE)
        scale = m_s.alpha * m_t.sigma - m_t.alpha * m_s.sigma
        parts = (m_t.sigma * g - m_s.sigma) / scale, (m_s.alpha - m_t.alpha * g) / scale
        return Prediction(*(jnp.broadcast_to(p, x.shape[:1])[:, None] * x for p in parts))

    return denoise


@pytest.mark.parametrize(("name", "kind"), [("table", "v"), ("table", "noise"), ("flow", "flow"), ("edm", "x_0")])
def test_zero_of_the_walk_in_half_as_many_steps(name, kind):
    """And not of the teacher itself; the student in N steps of ddim ends where the teacher in 2N does."""
    schedule = SCHEDULES[name]
    teacher, student = gaussian([0.0], [SCALE]).denoiser(schedule), walk(schedule)
    x_0 = SCALE * jax.random.normal(jax.random.key(0), (300, 1))

    def loss(denoise):
        predict = lambda x, t, cond: from_x0_noise(kind, *denoise(x, t)[:2], schedule(t))  # noqa: E731
        how = {"schedule": schedule, "teacher": teacher, "steps": STEPS, "prediction": kind}
        return float(jnp.mean(progressive_loss(jax.random.key(1), predict, x_0, **how, weighting=truncated_snr())))

    assert loss(student) < 1e-8 < 1e-4 < loss(teacher)

    def draw(denoise, count):
        how = {"times": np.linspace(1, 0, count + 1), "schedule": schedule, "x_T": jnp.ones((1, 1))}
        return sample(sample_keys(jax.random.key(2), 1), denoise, samplers.ddim(), **how)

    np.testing.assert_allclose(draw(student, STEPS), draw(teacher, 2 * STEPS), rtol=1e-4)
