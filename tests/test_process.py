"""The noise process: chain against closed form, posterior, and round trips of every pair of parameterisations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Marginal, add_noise, from_x0_noise, noise_step, posterior, schedules, to_x0_noise, transition
from jaxdiff.process import PREDICTIONS, learned_log_variance

ROUNDOFF = 2.0**-24  # float32
LOG_SNR = np.linspace(-24, 24, 97)


def _normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _check_moments(x, mean, std):
    """Mean and standard deviation of x [n] within 4 standard errors of those of N(mean, std^2)."""
    x, n = np.asarray(x, np.float64), x.shape[0]
    assert abs(x.mean() - mean) < 4 * std / np.sqrt(n)
    assert abs(x.std() - std) < 4 * std / np.sqrt(2 * n)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_chain_of_single_steps_has_the_closed_form_distribution(name):
    """All 100 steps of eq. (2) against eq. (1): 10^5 samples of x_0 = 0.7, two noise levels on the way."""
    schedule = getattr(schedules, name)(100)
    times = jnp.arange(101) / 100

    def step(x, inputs):
        key, s, t = inputs
        x = noise_step(key, x, s, t, schedule)
        return x, (x.mean(), x.std())

    x_0 = jnp.full((100_000,), 0.7)
    x, (means, stds) = jax.lax.scan(step, x_0, (jax.random.split(jax.random.key(0), 100), times[:-1], times[1:]))
    alpha, sigma = (np.asarray(a) for a in schedule(times[1:]))
    _check_moments(x, 0.7 * alpha[-1], sigma[-1])
    np.testing.assert_array_less(np.abs(means - 0.7 * alpha), 4 * sigma / np.sqrt(x.shape[0]))
    np.testing.assert_array_less(np.abs(stds - sigma), 4 * sigma / np.sqrt(2 * x.shape[0]))
    direct = add_noise(x_0, _normal(1, x_0.shape), schedule(1.0))
    _check_moments(direct, 0.7 * alpha[-1], sigma[-1])


def test_one_step_is_sqrt_1_minus_beta_and_beta():
    """The seed's first formula, at every t; the bound on beta is the one that `transition` states."""
    for num_steps, bound in ((1000, 6e-5), (10_000, 7e-4)):
        for make in (schedules.linear, schedules.cosine, schedules.sigmoid):
            schedule = make(num_steps)
            k = np.arange(1, num_steps + 1)
            step = transition(schedule((k - 1) / num_steps), schedule(k / num_steps))
            np.testing.assert_allclose(step.alpha, np.sqrt(1 - schedule.betas), rtol=2e-5)
            np.testing.assert_allclose(np.square(step.sigma), schedule.betas, rtol=bound)


def test_transition_composes_and_starts_from_clean_data():
    schedule = schedules.shifted_cosine()
    r, s, t = (schedule(u) for u in (0.2, 0.5, 0.9))
    first, second, whole = transition(r, s), transition(s, t), transition(r, t)
    assert float(first.alpha * second.alpha) == pytest.approx(float(whole.alpha), rel=1e-6)
    chained = np.hypot(second.alpha * first.sigma, second.sigma)
    assert float(chained) == pytest.approx(float(whole.sigma), rel=1e-6)
    from_data = transition(schedule(0.0), t)
    np.testing.assert_allclose(from_data, t, rtol=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_transition_to_the_same_time_is_the_identity(t):
    """At t = 1 of a schedule with zero terminal SNR alpha_t / alpha_s is 0/0."""
    for schedule in (schedules.flow(), schedules.linear().rescale_zero_snr(), schedules.continuous_vp()):
        m = transition(schedule(t), schedule(t))
        assert (float(m.alpha), float(m.sigma)) == (1.0, 0.0)
    grads = jax.grad(lambda t: transition(schedules.flow()(0.3), schedules.flow()(t)).sigma)(0.3)
    assert np.isfinite(grads)


@pytest.mark.parametrize("name", ["linear", "shifted_cosine", "flow", "ve"])
@pytest.mark.parametrize(("s", "t"), [(0.3, 0.4), (0.5, 0.501), (0.1, 1.0), (0.0, 0.2)])
def test_posterior_is_the_product_of_gaussians(name, s, t):
    """Against Bayes: precision and mean of q(x_t | x_s) q(x_s | x_0), which share no formula with eq. (3)."""
    schedule = getattr(schedules, name)()
    x_0, x_t = _normal(0, (50,)), 2 * _normal(1, (50,))
    got = posterior(x_0, x_t, schedule(s), schedule(t))
    with jax.enable_x64(True):
        (a_s, s_s), (a_t, s_t) = (tuple(np.float64(a) for a in schedule(u)) for u in (s, t))
    a_ts = a_t / a_s
    var_ts = s_t**2 - (a_ts * s_s) ** 2
    x_0, x_t = np.float64(x_0), np.float64(x_t)
    if s == 0:
        mean, variance = x_0, 0.0
    else:
        precision = a_ts**2 / var_ts + 1 / s_s**2
        mean, variance = (a_ts * x_t / var_ts + a_s * x_0 / s_s**2) / precision, 1 / precision
    size = np.abs(x_0) + np.abs(x_t)
    np.testing.assert_array_less(np.abs(got.mean - mean), 1e-6 * size)
    np.testing.assert_allclose(got.variance, variance, rtol=2e-4, atol=0)


def test_posterior_where_squares_of_sigma_underflow():
    """EDM's schedule at t = 1e-3 has sigma 8e-20, whose square is 0 in float32: the last step still ends at x_0."""
    schedule = schedules.edm()
    x_0, m_t = jnp.array([0.3, -1.2]), schedule(1e-3)
    assert 0 < float(m_t.sigma) < 1e-19
    np.testing.assert_array_equal(posterior(x_0, x_0, schedule(0.0), m_t).mean, x_0)
    between = posterior(jnp.zeros(1), jnp.ones(1), schedule(0.7e-3), m_t).mean
    assert float(between[0]) == pytest.approx(0.7**14, rel=1e-4)  # (sigma_s/sigma_t)^2
    gone = schedule(1e-6)  # a time of the quadratic grid, sigma 8e-41: 0 after all
    assert float(gone.sigma) < 1e-37
    np.testing.assert_array_equal(
        posterior(x_0, 9 * x_0, schedule(0.0), Marginal(jnp.ones(()), jnp.zeros(()))).mean, x_0
    )


def test_posterior_and_closed_form_make_the_joint():
    """x_s drawn from the posterior of (x_0, x_t), with x_t from the closed form, is distributed as q(x_s | x_0)."""
    schedule = schedules.cosine(10)
    m_s, m_t, x_0 = schedule(0.4), schedule(0.7), jnp.full((100_000,), -0.4)
    p = posterior(x_0, add_noise(x_0, _normal(0, x_0.shape), m_t), m_s, m_t)
    x_s = p.mean + jnp.sqrt(p.variance) * _normal(1, x_0.shape)
    _check_moments(x_s, -0.4 * float(m_s.alpha), float(m_s.sigma))


def test_marginals_may_be_per_example():
    schedule, t = schedules.cosine(), jnp.array([0.1, 0.9])
    x_0, noise = _normal(0, (2, 4, 4, 3)), _normal(1, (2, 4, 4, 3))
    together = add_noise(x_0, noise, schedule(t))
    p = posterior(x_0, together, schedule(t / 2), schedule(t))
    for i in range(2):
        np.testing.assert_allclose(together[i], add_noise(x_0[i], noise[i], schedule(t[i])), rtol=1e-6)
        one = posterior(x_0[i], together[i], schedule(t[i] / 2), schedule(t[i]))
        np.testing.assert_allclose(p.mean[i], one.mean, rtol=1e-5, atol=1e-6)
    for kind in PREDICTIONS:
        output = from_x0_noise(kind, x_0, noise, schedule(t))
        back = to_x0_noise(kind, output[1], together[1], schedule(t[1]))
        np.testing.assert_allclose(back[0], to_x0_noise(kind, output, together, schedule(t))[0][1], rtol=1e-5)


def _grid(family):
    """Marginals over the whole range of log-SNR, float32: variance preserving, exploding, or straight."""
    ratio = np.exp(-0.5 * LOG_SNR)  # sigma / alpha
    alpha = {"vp": 1 / np.hypot(1, ratio), "ve": np.ones_like(ratio), "flow": 1 / (1 + ratio)}[family]
    return Marginal(jnp.asarray(alpha), jnp.asarray(alpha * ratio))


@pytest.mark.parametrize("family", ["vp", "ve", "flow"])
@pytest.mark.parametrize("kinds", [*itertools.product(PREDICTIONS, PREDICTIONS)], ids="-".join)
def test_every_pair_round_trips(kinds, family):
    """Output of one kind -> hub -> output of another -> hub, within twice the bounds (4) and (5) of jaxdiff.process."""
    m = _grid(family)
    x_0, noise = _normal(0, (97, 500)), _normal(1, (97, 500))
    x_t = add_noise(x_0, noise, m)
    found = x_0, noise
    for kind in kinds:
        found = to_x0_noise(kind, from_x0_noise(kind, *found, m), x_t, m)
    alpha, sigma = (np.asarray(a) for a in m.like(x_0))
    errors = [np.abs(np.float64(a) - np.float64(b)) for a, b in zip(found, (x_0, noise), strict=True)]
    sizes = np.abs(x_0), np.abs(noise)
    bound = 2 * 12 * ROUNDOFF * (alpha * sizes[0] + sigma * sizes[1])
    assert np.all(alpha * errors[0] + sigma * errors[1] <= bound)
    if set(kinds) <= {"v", "flow", "edm"}:
        assert np.all(np.maximum(*errors) <= 2 * 12 * ROUNDOFF * (sizes[0] + sizes[1]))


def test_outputs_are_their_definitions():
    m = Marginal(jnp.float32(0.6), jnp.float32(0.8))
    x_0, noise = jnp.array([2.0]), jnp.array([-1.0])
    expected = {"noise": -1.0, "x_0": 2.0, "v": 0.6 * -1 - 0.8 * 2, "flow": -3.0, "score": 1 / 0.8}
    c_skip = 0.25 / ((0.8 / 0.6) ** 2 + 0.25)  # EDM table 1, for x/alpha with sigma/alpha
    c_out = (0.8 / 0.6) * 0.5 / np.sqrt((0.8 / 0.6) ** 2 + 0.25)
    expected["edm"] = (2.0 - c_skip * (0.6 * 2.0 - 0.8) / 0.6) / c_out
    for kind in PREDICTIONS:
        assert float(from_x0_noise(kind, x_0, noise, m)[0]) == pytest.approx(expected[kind], rel=1e-6)
    score = jax.grad(lambda x: -0.5 * ((x - 0.6 * 2.0) / 0.8) ** 2)(0.6 * 2.0 - 0.8)  # of q(x_t | x_0) itself
    assert float(score) == pytest.approx(expected["score"], rel=1e-6)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_both_ends_are_finite_where_the_kind_allows(kind):
    x_t = jnp.array([0.5])
    clean, gone = Marginal(jnp.float32(1), jnp.float32(0)), Marginal(jnp.float32(0), jnp.float32(1))
    at_data = to_x0_noise(kind, jnp.array([0.3]), x_t, clean)
    assert np.all(np.isfinite(at_data)) and (kind == "x_0" or float(at_data[0][0]) == 0.5)
    if kind not in ("noise", "score"):
        at_noise = to_x0_noise(kind, jnp.array([0.3]), x_t, gone)
        assert np.all(np.isfinite(at_noise)) and float(at_noise[1][0]) == 0.5
    gradient = jax.grad(lambda o: sum(to_x0_noise(kind, o, x_t, clean))[0])(jnp.array([0.3]))
    assert np.all(np.isfinite(gradient))


def test_learned_variance_interpolates_the_logs():
    """Trap 13: between log beta-tilde and log beta, both from the posterior and the step themselves."""
    schedule, x = schedules.linear(100), jnp.zeros((99,))
    k = np.arange(2, 101)
    m_s, m_t = schedule((k - 1) / 100), schedule(k / 100)
    small, large = posterior(x, x, m_s, m_t).variance, np.square(transition(m_s, m_t).sigma)
    for fraction, expected in ((0.0, small), (1.0, large), (0.5, np.sqrt(small * large))):
        got = np.exp(learned_log_variance(jnp.full((99,), fraction), m_s, m_t))
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_learned_variance_of_the_last_step_is_finite():
    """Trap 14: beta-tilde is 0 at s = 0; the stand-in is near what other code takes, the second entry's."""
    for schedule in (schedules.linear(), schedules.cosine()):
        got = learned_log_variance(jnp.array([0.0, 1.0]), schedule(0.0), schedule(0.001))
        second = posterior(jnp.zeros(1), jnp.zeros(1), schedule(0.001), schedule(0.002)).variance
        np.testing.assert_allclose(np.exp(got), [float(second), schedule.betas[0]], rtol=0.1)


def test_unknown_kinds_list_the_choices():
    m = schedules.flow()(0.5)
    for call in (from_x0_noise, to_x0_noise):
        with pytest.raises(
            ValueError, match="unknown prediction 'epsilon'; choose one of noise, x_0, v, flow, score, edm"
        ):
            call("epsilon", jnp.zeros(1), jnp.zeros(1), m)
