"""Denoisers: networks of every kind, learned variances, thresholds that take the noise along."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import (
    Prediction,
    add_noise,
    as_denoiser,
    denoising_loss,
    dynamic_threshold,
    from_x0_noise,
    sample,
    sample_keys,
    samplers,
    schedules,
    static_threshold,
    time_grid,
)
from jaxdiff.denoisers import with_x_0
from jaxdiff.losses import uniform
from jaxdiff.losses.denoising import draw as denoising_draw
from jaxdiff.process import PREDICTIONS, network_inputs
from tests.oracles import GAUSSIAN, as_network

VP = schedules.shifted_cosine()
X = jax.random.normal(jax.random.key(0), (4, 2))
T = jnp.array([0.05, 0.4, 0.8, 0.95])


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_networks_of_every_kind_are_one_denoiser(kind):
    """The best network of each kind, put out from the oracle's x_0 and noise, comes back as the oracle."""
    oracle = GAUSSIAN.denoiser(VP)
    network = as_network(kind, VP, lambda x_t, t, cond: from_x0_noise(kind, *oracle(x_t, t)[:2], VP(t)))
    denoise = as_denoiser(network, schedule=VP, prediction=kind)
    found, exact = denoise(X, T), oracle(X, T)
    m = VP(T).like(X)
    np.testing.assert_allclose(m.alpha * found.x_0, m.alpha * exact.x_0, atol=2e-6)
    np.testing.assert_allclose(m.sigma * found.noise, m.sigma * exact.noise, atol=2e-6)
    assert found.fraction is None


@pytest.mark.parametrize("schedule", [schedules.edm(), schedules.ve(), VP], ids=["edm", "ve", "vp"])
def test_edm_is_preconditioned_as_published(schedule):
    """Karras et al. 2022, eq. 7 and 8 and table 1, written out for x = x_t/alpha and its sigma, in float64."""
    t = jnp.array([0.3, 0.4, 0.8, 0.95])
    seen, x_0 = [], 0.5 * jax.random.normal(jax.random.key(1), (4, 2))

    def network(x, label, cond=None):
        seen.append((x, label))
        return jnp.sin(3.0 * x) + label[:, None]

    m = schedule(t)
    alpha, ratio = np.asarray(m.alpha, float)[:, None], np.asarray(m.sigma / m.alpha, float)[:, None]
    noise = jax.random.normal(jax.random.key(2), (4, 2))
    x_t = add_noise(x_0, noise, m)
    x = np.asarray(x_t) / alpha
    c_skip, c_out = 0.25 / (ratio**2 + 0.25), ratio * 0.5 / np.sqrt(ratio**2 + 0.25)
    c_in, c_noise = 1 / np.sqrt(ratio**2 + 0.25), np.log(ratio) / 4
    output = np.sin(3.0 * c_in * x) + c_noise
    found = as_denoiser(network, schedule=schedule, prediction="edm")(x_t, t)
    np.testing.assert_allclose(found.x_0, c_skip * x + c_out * output, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen[0][0], c_in * x, rtol=1e-5)
    np.testing.assert_allclose(seen[0][1], c_noise[:, 0], rtol=1e-5, atol=1e-6)

    loss = denoising_loss(jax.random.key(3), network, x_0, schedule=schedule, prediction="edm", t=t)
    drawn = denoising_draw(jax.random.key(3), x_0, schedule, uniform, t)
    x = np.asarray(drawn.x_t) / alpha
    denoised = c_skip * x + c_out * (np.sin(3.0 * c_in * x) + c_noise)
    weight = (ratio**2 + 0.25) / (ratio * 0.5) ** 2  # lambda(sigma), which is 1/c_out^2
    np.testing.assert_allclose(loss, np.mean(weight * (denoised - np.asarray(x_0)) ** 2, axis=1), rtol=2e-3)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_edm_inputs_are_finite_at_both_ends(t):
    """Where log(sigma/alpha) is not."""
    zero_snr = schedules.linear().rescale_zero_snr()
    x, label = network_inputs("edm", X, jnp.full(4, t), zero_snr(jnp.full(4, t)))
    assert bool(jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(label)))


def test_network_sees_one_time_an_example_and_the_condition():
    seen = []

    def predict(x_t, t, cond):
        seen.append((t, cond))
        return x_t.astype(jnp.bfloat16)

    labels = jnp.arange(4)
    p = as_denoiser(predict, schedule=VP, cond=labels)(X, 0.25)
    assert seen[0][0].tolist() == [0.25] * 4 and seen[0][1] is labels
    assert p.x_0.dtype == p.noise.dtype == jnp.float32  # bfloat16 network, float32 state


def test_learned_variance_is_the_second_half_of_the_channels():
    """Trap 13: halves of size C, not C parts; v = -1 is fraction 0, v = 1 fraction 1."""
    x = jnp.zeros((2, 4, 4, 3))

    def predict(x_t, t, cond):
        return jnp.concatenate([jnp.full_like(x_t, 7.0), jnp.full_like(x_t, -1.0).at[1].set(1.0)], axis=-1)

    p = as_denoiser(predict, schedule=VP, prediction="x_0", learned_variance=True)(x, 0.5)
    assert np.all(p.x_0 == 7.0) and np.all(p.fraction[0] == 0.0) and np.all(p.fraction[1] == 1.0)
    assert p.fraction.shape == x.shape
    clipped = static_threshold(lambda x, t: p, schedule=VP)(x, 0.5)
    assert clipped.fraction is p.fraction


@pytest.mark.parametrize("kind", ["noise", "score"])
def test_noise_without_signal_is_refused(kind):
    """Trap 18."""
    for schedule in (schedules.flow(), schedules.linear().rescale_zero_snr()):
        with pytest.raises(ValueError, match=r"leaves no signal at t = 1.*use 'v' or 'x_0'"):
            as_denoiser(lambda x, t, c: x, schedule=schedule, prediction=kind)
        jax.jit(lambda x, schedule=schedule: as_denoiser(lambda x, t, c: x, schedule=schedule, prediction="v")(x, 1.0))(
            X
        )


def test_wrong_outputs_are_refused():
    with pytest.raises(ValueError, match=r"returned shape \(4,\) for x_t of shape \(4, 2\); it must be \(4, 2\)"):
        as_denoiser(lambda x, t, c: x[:, 0], schedule=VP)(X, 0.5)
    with pytest.raises(ValueError, match=r"it must be \(4, 4\)"):
        as_denoiser(lambda x, t, c: x, schedule=VP, learned_variance=True)(X, 0.5)
    with pytest.raises(ValueError, match="unknown prediction 'eps'; choose one of"):
        as_denoiser(lambda x, t, c: x, schedule=VP, prediction="eps")


def _far(x_t, t):
    """A consistent prediction whose x_0 is mostly out of range: 3 x_t."""
    m = VP(t).like(x_t)
    return Prediction(3.0 * x_t, (x_t - m.alpha * 3.0 * x_t) / m.sigma)


@pytest.mark.parametrize("make", [static_threshold, dynamic_threshold])
def test_thresholds_take_the_noise_along(make):
    """Trap 16: clipping x_0 and keeping the noise."""
    p = make(_far, schedule=VP)(X, T)
    assert np.all(np.abs(p.x_0) <= 1.0) and np.max(np.abs(_far(X, T).x_0)) > 2
    np.testing.assert_allclose(add_noise(p.x_0, p.noise, VP(T)), X, atol=1e-6)


@pytest.mark.parametrize("make", [static_threshold, dynamic_threshold])
def test_what_is_in_range_is_not_touched(make):
    near = lambda x_t, t: Prediction(0.1 * jnp.tanh(x_t), x_t)  # noqa: E731
    for got, before in zip(make(near, schedule=VP)(X, T)[:2], near(X, T)[:2], strict=True):
        np.testing.assert_array_equal(got, before)


def test_static_threshold_ends_inside_the_range():
    """Data that is one point at 3, clipped to 1: DDIM ends at 1 exactly, whatever the steps."""
    schedule = schedules.cosine()

    def point(x_t, t):
        m = schedule(t).like(x_t)
        return Prediction(jnp.full_like(x_t, 3.0), (x_t - 3.0 * m.alpha) / m.sigma)

    x = sample(
        sample_keys(jax.random.key(0), 4),
        static_threshold(point, schedule=schedule),
        samplers.ddim(),
        shape=(2,),
        times=time_grid(schedule, 7),
        schedule=schedule,
    )
    np.testing.assert_array_equal(x, 1.0)


def test_dynamic_threshold_is_imagens():
    """Against NumPy's percentile, for each example by itself."""
    x = jnp.array([[0.5] * 9 + [4.0], [0.1] * 10, [3.0] * 10])[..., None]
    found = dynamic_threshold(lambda x_t, t: Prediction(x_t, x_t), schedule=VP, percentile=0.9)(x, 0.5).x_0
    for row, got in zip(np.asarray(x), found, strict=True):
        s = max(float(np.percentile(np.abs(row), 90)), 1.0)
        np.testing.assert_allclose(got, np.clip(row, -s, s) / s, rtol=1e-6)


def test_another_x_0_moves_the_noise_where_there_is_noise():
    p = Prediction(X, 2.0 * X)
    moved = with_x_0(p, X + 1.0, VP(T))
    np.testing.assert_allclose(add_noise(moved.x_0, moved.noise, VP(T)), add_noise(*p[:2], VP(T)), atol=1e-6)
    np.testing.assert_array_equal(with_x_0(p, X + 1.0, VP(0.0)).noise, p.noise)
    far = Prediction(jnp.array([[2e4]]), jnp.array([[0.3]]))  # cosine at t = 1: alpha 4.9e-5
    end = with_x_0(far, jnp.array([[1.0]]), schedules.cosine()(1.0))
    assert float(end.noise[0, 0]) == pytest.approx(0.3 + 4.928252e-5 * (2e4 - 1), rel=1e-5)


def test_thresholds_refuse():
    with pytest.raises(ValueError, match="limit must be positive"):
        static_threshold(_far, schedule=VP, limit=0.0)
    with pytest.raises(ValueError, match=r"percentile must lie in \(0, 1\], got 99.5"):
        dynamic_threshold(_far, schedule=VP, percentile=99.5)


def test_times_of_odd_shapes_are_refused():
    """One time, or one per example; a column of times would broadcast against the images' height."""
    denoise = as_denoiser(lambda x, t, cond: x, schedule=schedules.flow(), prediction="x_0")
    x = jnp.ones((2, 3))
    for t in (jnp.full((2, 1), 0.5), jnp.full(3, 0.5)):
        with pytest.raises(ValueError, match=r"t must be one time or one per example, \(2,\); got shape"):
            denoise(x, t)
    assert denoise(x, 0.5).x_0.shape == denoise(x, jnp.full(2, 0.5)).x_0.shape == (2, 3)
