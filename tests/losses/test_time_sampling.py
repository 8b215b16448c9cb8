"""Time sampling: distributions against their closed forms, even spread, loss-aware sampling without bias."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff import losses, schedules

EVEN = (np.arange(100_000, dtype=np.float64) + 0.5) / 100_000
FLOW = schedules.flow()


def _keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


@pytest.fixture(scope="module")
def u():
    return np.asarray(losses.uniforms(_keys(100_000)))


def test_uniforms_are_uniform_and_open(u):
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert 0 < u.min() and u.max() < 1
    np.testing.assert_array_equal(losses.uniforms(_keys(100_000)[7:9]), u[7:9])  # of its own key alone


@pytest.mark.parametrize("num_steps", [1, 7, 1000, 10_000])
def test_uniform_takes_every_entry_equally_and_never_0(num_steps):
    schedule = schedules.from_betas(np.full(num_steps, 1e-3))
    u = jnp.asarray((np.arange(3 * num_steps) + 0.5) / (3 * num_steps))
    t = np.asarray(losses.uniform(u, schedule))
    np.testing.assert_array_equal(t, np.repeat(np.float32(np.arange(1, num_steps + 1) / num_steps), 3))
    ends = np.asarray(losses.uniform(jnp.array([2.0**-24, 1 - 2.0**-24]), schedule))
    np.testing.assert_array_equal(ends, np.float32([1 / num_steps, 1.0]))


def test_uniform_of_a_continuous_schedule(u):
    t = np.asarray(losses.uniform(jnp.asarray(u), FLOW))
    assert t.min() >= 1e-5 and t.max() <= 1
    np.testing.assert_allclose(t, u, atol=1.1e-5)


@pytest.mark.parametrize("name", ["edm", "ve", "flow", "shifted_cosine"])
def test_log_normal_is_normal_in_log_sigma_over_alpha(name):
    schedule = getattr(schedules, name)()
    t = losses.log_normal(-0.5, 0.7)(jnp.asarray(EVEN, jnp.float32), schedule)
    m = schedule(t)
    logs = np.log(np.asarray(m.sigma, np.float64) / np.asarray(m.alpha))
    assert stats.kstest((logs + 0.5) / 0.7, "norm").statistic < 1e-3
    assert logs.mean() == pytest.approx(-0.5, abs=1e-4) and logs.std() == pytest.approx(0.7, abs=1e-3)


def test_logit_normal_is_normal_in_logit_t_and_flows_log_normal():
    u = jnp.asarray(EVEN, jnp.float32)
    t = np.asarray(losses.logit_normal(0.3, 0.8)(u, schedules.flow(3.0)), np.float64)
    assert stats.kstest((np.log(t / (1 - t)) - 0.3) / 0.8, "norm").statistic < 1e-3
    same = losses.log_normal(0.3, 0.8)(u, FLOW)
    np.testing.assert_allclose(same, losses.logit_normal(0.3, 0.8)(u, FLOW), atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "flow", "shifted_cosine", "continuous_vp"])
def test_uniform_log_snr_spreads_log_snr_evenly(name):
    schedule = getattr(schedules, name)()
    t = losses.uniform_log_snr(-8.0, 6.0)(jnp.asarray(EVEN, jnp.float32), schedule)
    log_snr = np.asarray(schedule(t).log_snr, np.float64)
    expected = 6.0 - 14.0 * EVEN
    np.testing.assert_allclose(log_snr, expected, atol=0.02 if schedule.num_steps is None else 0.4)


def test_samplings_of_a_discrete_schedule_give_its_entries(u):
    schedule = schedules.cosine(50)
    entries = np.float32(np.arange(1, 51) / 50)
    for sampling in (losses.uniform, losses.log_normal(), losses.logit_normal(), losses.uniform_log_snr()):
        assert np.all(np.isin(np.asarray(sampling(jnp.asarray(u), schedule)), entries))


def test_extreme_u_stays_on_the_schedule():
    ends = jnp.array([2.0**-24, 1 - 2.0**-24])
    for schedule in (FLOW, schedules.edm(), schedules.linear().rescale_zero_snr()):
        for sampling in (
            losses.log_normal(0.0, 50.0),
            losses.logit_normal(0.0, 50.0),
            losses.uniform_log_snr(-99.0, 99.0),
        ):
            t = np.asarray(sampling(ends, schedule))
            assert np.all(t > 0) and np.all(t <= 1)


@pytest.mark.parametrize("num", [1, 3, 128, 4096])
def test_stratified_puts_one_in_every_stratum(num):
    for seed in range(5):
        u = np.asarray(losses.stratified(jax.random.key(seed), jnp.arange(num), num), np.float64)
        gaps = np.diff(np.sort(u))
        assert 0 < u.min() and u.max() < 1
        np.testing.assert_allclose(gaps, 1 / num, atol=2e-7)


def test_stratified_rows_do_not_depend_on_the_others_and_are_uniform_each():
    key = jax.random.key(3)
    whole = losses.stratified(key, jnp.arange(64), 64)
    np.testing.assert_array_equal(losses.stratified(key, jnp.arange(16, 32), 64), whole[16:32])
    one_row = jax.vmap(lambda key: losses.stratified(key, jnp.array([5]), 64)[0])(_keys(2000))
    assert stats.kstest(np.asarray(one_row), "uniform").pvalue > 1e-3


def test_stratified_times_lower_the_variance_of_the_mean():
    u = jax.vmap(lambda key: losses.stratified(key, jnp.arange(32), 32))(_keys(500))
    means = np.mean(np.asarray(losses.uniform(u.ravel(), FLOW)).reshape(500, 32), axis=1)
    assert means.std() < 0.2 * np.sqrt(1 / 12 / 32)  # 1/sqrt(32) of that of independent times


def _filled(sizes, history=4):
    """A history in which entry k has losses of root mean square sizes[k]."""
    sampler = losses.loss_aware(len(sizes), history, uniform_share=0.1)
    t = jnp.tile(jnp.arange(1, len(sizes) + 1) / len(sizes), history)
    return sampler, sampler.update(sampler.init(), t, jnp.tile(jnp.asarray(sizes), history))


def test_loss_aware_follows_the_loss_and_has_no_bias():
    sizes = np.array([3.0, 1.0, 0.0, 0.5, 2.5])
    sampler, state = _filled(sizes)
    p = 0.9 * sizes / sizes.sum() + 0.1 / 5
    t, weight = jax.jit(sampler.sample)(state, _keys(50_000))
    k = np.round(np.asarray(t) * 5).astype(int) - 1
    counts = np.bincount(k, minlength=5)
    np.testing.assert_array_less(np.abs(counts - 50_000 * p), 4 * np.sqrt(50_000 * p * (1 - p)))
    np.testing.assert_allclose(weight, 1 / (5 * p[k]), rtol=1e-5)
    values = np.array([1.0, -2.0, 5.0, 0.3, 0.7])  # any function of k: weighted mean = plain mean over k
    terms = np.asarray(weight) * values[k]
    assert abs(terms.mean() - values.mean()) < 4 * terms.std() / np.sqrt(50_000)


def test_loss_aware_is_uniform_until_every_entry_is_known():
    sampler = losses.loss_aware(3, history=2)
    state = sampler.update(sampler.init(), jnp.array([1 / 3, 2 / 3, 1.0, 1.0]), jnp.array([9.0, 1.0, 1.0, 1.0]))
    _, weight = sampler.sample(state, _keys(10))
    np.testing.assert_allclose(weight, 1.0, rtol=1e-6)


def test_loss_aware_keeps_the_last_losses():
    """Against a deque for each entry; several losses of one entry in a batch, and NaN among them."""
    rng = np.random.default_rng(0)
    sampler = losses.loss_aware(4, history=3)
    state, kept = sampler.init(), [deque(maxlen=3) for _ in range(4)]
    for _ in range(5):
        k, loss = rng.integers(0, 4, 8), rng.uniform(1, 2, 8).astype(np.float32)
        loss[3] = np.nan
        for index, value in zip(k, loss, strict=True):
            if np.isfinite(value):
                kept[index].append(value)
        state = jax.jit(sampler.update)(state, jnp.asarray(k + 1) / 4, jnp.asarray(loss))
    assert [sorted(row) for row in state.losses.tolist()] == [sorted(map(float, row)) for row in kept]
    assert state.counts.dtype == jnp.int32 and int(state.counts.sum()) == 35


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.log_normal(0.0, 0.0), "std must be positive, got 0.0"),
        (lambda: losses.logit_normal(0.0, -1.0), "std must be positive"),
        (lambda: losses.log_normal(float("nan")), "mean must be finite, got nan"),
        (lambda: losses.uniform_log_snr(1.0, 1.0), "log_snr_min must be less than log_snr_max"),
        (lambda: losses.loss_aware(10, 0), "history >= 1"),
        (lambda: losses.loss_aware(10, 1, 0.0), "uniform_share in (0, 1]"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)
