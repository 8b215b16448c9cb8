"""Consistency losses on Gaussian data, where the consistency function, and the fixed point at any gap, are known.

On N(0, s^2), f(x_t, t) = g(t) x_t. Of training and of distillation alike, the fixed point on a grid is the product of
the DDIM factors of its steps; as the grid gets finer that tends to s/sqrt(v_t), the end of the flow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoising_loss, sample, sample_keys, samplers, schedules
from jaxdiff.losses import consistency_loss, narrowing
from tests.oracles import ddim_factor, gaussian, gaussian_flow

SCALE, STEPS = 0.4, 12
SCHEDULE = schedules.cosine(STEPS)


def grid_factors():
    """g at k/T, k = 0..T: products of DDIM factors down to 0, in float64."""
    m = [SCHEDULE(k / STEPS) for k in range(STEPS + 1)]
    factors = [float(ddim_factor(m[k], m[k - 1], SCALE)) for k in range(1, STEPS + 1)]
    return np.cumprod([1.0, *factors])


def network(g):
    """The v-prediction whose x_0 is g[k] x_t: x_0 = alpha x_t - sigma v."""

    def predict(x_t, t, cond=None):
        del cond
        k = jnp.round(t * STEPS).astype(jnp.int32)
        m = SCHEDULE(t)
        return ((m.alpha - g[k]) / jnp.maximum(m.sigma, 1e-6))[:, None] * x_t

    return predict


def step_before(t, schedule):
    return (jnp.round(t * schedule.num_steps) - 1) / schedule.num_steps


def mean_loss(g, key, x_0, teacher=None, earlier=step_before):
    options = {"schedule": SCHEDULE, "earlier": earlier, "teacher": teacher}
    return jnp.mean(consistency_loss(key, network(g), x_0, **options))


TEACHER = gaussian([0.0], [SCALE]).denoiser(SCHEDULE)


def data(n, seed=0):
    return SCALE * jax.random.normal(jax.random.key(seed), (n, 1))


def test_distillation_is_zero_at_the_teachers_walk_and_nowhere_near():
    g = jnp.asarray(grid_factors(), jnp.float32)
    at, beside = (mean_loss(h, jax.random.key(1), data(500), TEACHER) for h in (g, g.at[6].add(0.1)))
    assert at < 1e-9 < 1e-4 < beside


def test_training_stands_still_at_the_same_walk():
    """The gradient of the loss with the target held: 0 within 5 standard errors at g, and many beside it."""
    x_0, g = data(40_000), jnp.asarray(grid_factors(), jnp.float32)

    @jax.jit
    def gradients(g):
        keys = jax.random.split(jax.random.key(2), 40)
        return jax.vmap(lambda key, x: jax.grad(mean_loss)(g, key, x))(keys, x_0.reshape(40, 1000, 1))

    def signs(g):
        found = np.asarray(gradients(g))[:, 1:]
        return found.mean(axis=0) / (found.std(axis=0, ddof=1) / np.sqrt(40))

    assert np.abs(signs(g)).max() < 5
    assert signs(g.at[6].add(0.1))[5] > 20


def test_training_finds_it_and_few_steps_sample_the_data():
    """From g = 0 by Adam; then 1, 2 and 4 steps of lcm have the data's spread, and those of a denoiser do not."""
    import optax

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1500))

    @jax.jit
    def train(g):
        def step(carry, key):
            g, state = carry
            data_key, key = jax.random.split(key)
            x_0 = SCALE * jax.random.normal(data_key, (512, 1))
            updates, state = optimizer.update(jax.grad(mean_loss)(g, key, x_0), state)
            return (g + updates, state), None

        return jax.lax.scan(step, (g, optimizer.init(g)), jax.random.split(jax.random.key(3), 1500))[0][0]

    g = train(jnp.zeros(STEPS + 1)).at[0].set(1.0)
    np.testing.assert_allclose(g, grid_factors(), atol=0.02)
    for steps in (1, 2, 4):
        spread = float(np.std(draw(lambda x, t: TEACHER(x, t)._replace(x_0=end(g, x, t)), steps)))
        assert spread == pytest.approx(grid_factors()[-1], rel=0.25)
    assert np.std(draw(TEACHER, 1)) < 0.05 * SCALE  # the mean of all data


def end(g, x, t):
    return g[jnp.round(t * STEPS).astype(jnp.int32)] * x


def draw(denoise, steps):
    times = np.round(np.linspace(STEPS, 0, steps + 1)) / STEPS
    keys = sample_keys(jax.random.key(4), 4000)
    return sample(keys, denoise, samplers.lcm(), shape=(1,), times=times, schedule=SCHEDULE)


def test_fixed_point_tends_to_the_end_of_the_flow():
    """The oracle itself: of 2000 steps the product of factors is s/sqrt(v_t), by which lcm is exact at any steps."""
    fine = schedules.cosine(2000)
    m = [fine(k / 2000) for k in range(2001)]
    product = np.prod([float(ddim_factor(m[k], m[k - 1], SCALE)) for k in range(1, 2001)])
    assert product == pytest.approx(float(gaussian_flow(1.0, m[2000], m[0], 0.0, SCALE)), rel=0.01)


def test_widest_gap_is_the_denoising_loss():
    """Stage 0: r = 0, and the loss is that of x_0, over the angle and its squared sine: that of v over the angle."""
    x_0, t = data(6), jnp.array([1, 3, 5, 8, 11, 12]) / STEPS
    g = jnp.linspace(1.0, 0.2, STEPS + 1)
    key = jax.random.key(5)
    found = consistency_loss(key, network(g), x_0, schedule=SCHEDULE, earlier=narrowing(0), t=t)
    plain = denoising_loss(key, lambda x, t, cond: end_of(g, x, t), x_0, schedule=SCHEDULE, prediction="x_0", t=t)
    m = SCHEDULE(t)
    phi = np.arctan2(m.sigma, m.alpha)
    np.testing.assert_allclose(found, plain / (phi * np.sin(phi) ** 2), rtol=1e-4)


def end_of(g, x, t):
    return g[jnp.round(t * STEPS).astype(jnp.int32)][:, None] * x


@pytest.mark.parametrize("stage", [0, 1, 3, 20])
def test_earlier_times_are_earlier(stage):
    for schedule in (SCHEDULE, schedules.linear(1000)):
        t = jnp.arange(1, schedule.num_steps + 1) / schedule.num_steps
        r = narrowing(stage)(t, schedule)
        assert bool(jnp.all((r >= 0) & (r < t)))
    t = jnp.array([0.01, 0.5, 1.0])
    flow = schedules.flow()
    phi = [
        np.arctan2(np.asarray(m.sigma, float), np.asarray(m.alpha, float))
        for m in (flow(t), flow(narrowing(stage)(t, flow)))
    ]
    np.testing.assert_allclose(phi[1], phi[0] * (1 - 2.0 ** -min(stage, 12)), rtol=1e-5)


CONTINUOUS = {
    "continuous_vp": schedules.continuous_vp(),
    "continuous_sub_vp": schedules.continuous_sub_vp(),
    "ve": schedules.ve(),
    "ve wide": schedules.ve(0.002, 1e4),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "flow 3": schedules.flow(3.0),
    "shifted_cosine": schedules.shifted_cosine(0.25),
    "interpolated_cosine": schedules.interpolated_cosine(0.25),
    "interpolate": schedules.interpolate(schedules.cosine(1000)),
    "interpolate zero": schedules.interpolate(schedules.linear(1000).rescale_zero_snr()),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_gap_of_a_continuous_schedule_stays_where_float32_sees_it(name):
    """Up to stage 40: r < t, a loss that is finite and not negative, and in proportion to the gap."""
    schedule, x_0 = CONTINUOUS[name], jax.random.normal(jax.random.key(0), (600, 8))
    t = jnp.concatenate([jnp.logspace(-7, -0.5, 300), jnp.linspace(0.32, 1.0, 300)])

    @jax.jit
    def losses(stage):
        earlier, network = narrowing(stage), lambda x, t, cond=None: 0.1 * x
        return earlier(t, schedule), consistency_loss(
            jax.random.key(1), network, x_0, schedule=schedule, earlier=earlier, t=t
        )

    noisy, coarse = np.asarray(schedule(t).log_snr) < 8, losses(jnp.float32(8))[1]  # an angle above 1/55
    for stage in (0, 1, 4, 11, 12, 16, 23, 24, 26, 40):
        r, loss = losses(jnp.float32(stage))
        assert bool(jnp.all((r >= 0) & (r < t)))
        assert bool(jnp.all(jnp.isfinite(loss) & (loss >= 0)))
        if stage > 8:
            found = loss[noisy].mean() * 2.0 ** (min(stage, 12) - 8)
            assert float(found) == pytest.approx(float(coarse[noisy].mean()), rel=0.02)


def test_prediction_without_the_boundary_is_refused():
    with pytest.raises(ValueError, match="'x_0'"):
        consistency_loss(
            jax.random.key(0), network(None), data(2), schedule=SCHEDULE, earlier=step_before, prediction="x_0"
        )
