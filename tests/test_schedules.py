"""Schedules: tables against float64 closed forms, exact indices, inverses, both ends, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import schedules
from tests.oracles import noise_loss_floor

DISCRETE = {
    "linear": schedules.linear(),
    "scaled_linear": schedules.scaled_linear(),
    "cosine": schedules.cosine(),
    "sigmoid": schedules.sigmoid(),
    "from_betas": schedules.from_betas([0.1, 0.5, 0.3]),
    "one_step": schedules.from_betas([0.3]),
    "zero_snr": schedules.linear().rescale_zero_snr(),
}
CONTINUOUS = {
    "continuous_vp": schedules.continuous_vp(),
    "continuous_sub_vp": schedules.continuous_sub_vp(),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "flow_shift": schedules.flow(3.0),
    "shifted_cosine": schedules.shifted_cosine(0.25),
    "interpolated_cosine": schedules.interpolated_cosine(0.25),
    "interpolate": schedules.interpolate(schedules.cosine()),
    "interpolate_zero_snr": schedules.interpolate(schedules.linear(100).rescale_zero_snr()),
}
ALL = DISCRETE | CONTINUOUS
TIMES = np.arange(1001) / 1000  # one shape throughout, so that few programs are compiled


def _entries(schedule):
    """k/T for every k (repeated to 1001 if T is less), or 1001 times of a continuous schedule."""
    return np.resize(np.arange(schedule.num_steps + 1) / schedule.num_steps, 1001) if schedule.num_steps else TIMES


def _float64(schedule, t):
    """The marginals of a schedule computed in float64, as NumPy."""
    with jax.enable_x64(True):
        return tuple(np.asarray(a) for a in schedule(np.asarray(t, np.float64)))


def _linear_alpha_bar(betas):
    """prod (1 - beta) by exact-ish float64 products, not the logs that the library sums."""
    return np.cumprod(1.0 - np.asarray(betas, np.float64))


@pytest.mark.parametrize("name", ALL)
def test_clean_at_0_and_amplitudes_never_cross(name):
    schedule = ALL[name]
    t = _entries(schedule)
    for alpha, sigma in (_float64(schedule, t), schedule(t)):
        assert (alpha[0], sigma[0]) == (1.0, 0.0) and not np.signbit(sigma[0])
    log_snr = np.asarray(schedule(t).log_snr)[1 : (schedule.num_steps or 1000) + 1]
    assert np.all(np.diff(log_snr) < 0) and np.all(np.isfinite(log_snr[:-1]))


@pytest.mark.parametrize("name", ALL)
def test_float32_marginals_equal_the_float64_ones(name):
    schedule = ALL[name]
    t = np.float32(_entries(schedule))
    for single, double in zip(schedule(t), _float64(schedule, t), strict=True):
        assert single.dtype == jnp.float32 and double.dtype == np.float64
        np.testing.assert_allclose(single, double, rtol=1.5e-6, atol=0)


def test_linear_reaches_the_closed_values():
    schedule = schedules.linear()
    alpha, sigma = _float64(schedule, TIMES)
    betas = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
    np.testing.assert_allclose(alpha[1:] ** 2, _linear_alpha_bar(betas), rtol=1e-12)
    np.testing.assert_allclose(sigma[1:] ** 2, 1 - _linear_alpha_bar(betas), rtol=1e-12)
    assert f"{alpha[-1] ** 2:.4e}" == "4.0358e-05" and f"{alpha[-1]:.1e}" == "6.4e-03"
    assert round(noise_loss_floor(alpha[1:], sigma[1:]), 5) == 0.27551


def test_cosine_reaches_the_closed_values():
    alpha, sigma = _float64(schedules.cosine(), TIMES)
    f = np.cos((TIMES + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(alpha[:-1] ** 2, f[:-1] / f[0], rtol=1e-11)
    assert f"{alpha[-1]:.1e}" == "4.9e-05"  # trap 18: the cap of 0.999 on the last beta
    assert round(noise_loss_floor(alpha[1:], sigma[1:]), 5) == 0.49558


def test_scaled_linear_and_sigmoid_reach_the_closed_values():
    alpha, _ = _float64(schedules.scaled_linear(), TIMES)
    roots = np.sqrt(0.00085) + (np.sqrt(0.012) - np.sqrt(0.00085)) * np.arange(1000) / 999
    np.testing.assert_allclose(alpha[1:] ** 2, _linear_alpha_bar(roots**2), rtol=1e-12)
    alpha, _ = _float64(schedules.sigmoid(), TIMES)
    u = 6 * TIMES[:-1] - 3
    np.testing.assert_allclose(alpha[:-1] ** 2, (np.tanh(1.5) - np.tanh(u / 2)) / (2 * np.tanh(1.5)), rtol=1e-11)


def test_tables_are_not_float32_products():
    """Trap 19: float32 cumulative products leave 1.7e-4 relative error in 1 - alpha_bar."""
    schedule = schedules.linear()
    naive = 1 - np.cumprod(np.float32(1) - schedule.betas.astype(np.float32))
    exact = -np.expm1(np.cumsum(np.log1p(-schedule.betas)))
    assert np.max(np.abs(naive / exact - 1)) > 1e-4
    np.testing.assert_allclose(np.square(schedule(TIMES).sigma)[1:], exact, rtol=4e-7)


@pytest.mark.parametrize("num_steps", [1, 7, 61, 999, 1000, 1024, 4096, 9999, 10000])
def test_every_index_is_exact_in_float32(num_steps):
    schedule = schedules.from_betas(np.full(num_steps, 1e-4))
    k = np.arange(10001, dtype=np.float32) % (num_steps + 1)
    look_up = jax.jit(schedule)
    for t in (k / np.float32(num_steps), k * (np.float32(1) / np.float32(num_steps)), jnp.asarray(k) / num_steps):
        found = -2 * np.log(np.asarray(look_up(t).alpha, np.float64)) / -np.log1p(-1e-4)
        np.testing.assert_array_equal(np.round(found), k)


def test_continuous_formulas():
    t = TIMES
    alpha, sigma = _float64(schedules.continuous_vp(), t)
    np.testing.assert_allclose(alpha**2, np.exp(-(0.1 * t + 19.9 * t**2 / 2)), rtol=1e-13)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-13)
    np.testing.assert_allclose(_float64(schedules.continuous_sub_vp(), t)[1], 1 - alpha**2, rtol=1e-9)
    geometric = 0.01 * 5000.0**t
    np.testing.assert_allclose(_float64(schedules.ve(), t)[1] ** 2, geometric**2 - 1e-4, rtol=1e-10)
    karras = (80 ** (1 / 7) + (1 - t) * (0 - 80 ** (1 / 7))) ** 7  # EDM eq. 5 with sigma_min = 0
    np.testing.assert_allclose(_float64(schedules.edm(), t)[1], karras, rtol=1e-10, atol=1e-12)
    alpha, sigma = _float64(schedules.flow(3.0), t)
    np.testing.assert_allclose(alpha + sigma, 1, rtol=1e-14)
    np.testing.assert_allclose(sigma[1:-1] / alpha[1:-1], 3 * (t / (1 - t + 1e-300))[1:-1], rtol=1e-12)


def test_cosine_shifts_move_log_snr_by_the_stated_amount():
    plain, shifted = schedules.shifted_cosine(), schedules.shifted_cosine(0.25)
    assert float(shifted(1.0).log_snr) == pytest.approx(-15.0, abs=1e-5)
    u = 0.3
    t_plain, t_shifted = (u / np.arctan(s * np.exp(7.5)) for s in (1.0, 0.25))
    gap = float(shifted(t_shifted).log_snr - plain(t_plain).log_snr)
    assert gap == pytest.approx(2 * np.log(0.25), abs=1e-5)
    mixed = schedules.interpolated_cosine(0.25)
    for t, shift in ((1.0, 0.25), (0.5, 0.5)):  # log-linear: the geometric mean half-way
        expected = 2 * np.log(shift / np.tan(t * np.arctan(0.25 * np.exp(7.5))))
        assert float(mixed(t).log_snr) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_log_snr_inverts(name):
    """t -> log_snr -> t. In float32 the t that comes back has the log-SNR asked for, as near as t's rounding allows."""
    schedule = ALL[name]
    if schedule.num_steps:
        t = np.maximum(_entries(schedule), 1 / schedule.num_steps)
        np.testing.assert_array_equal(schedule.time_of_log_snr(schedule(t).log_snr), np.float32(t))
        return
    np.testing.assert_allclose(schedule.time_of_log_snr(schedule(TIMES).log_snr), TIMES, atol=5e-7)
    with jax.enable_x64(True):
        np.testing.assert_allclose(schedule.time_of_log_snr(schedule(TIMES).log_snr), TIMES, atol=1e-13)


@pytest.mark.parametrize("name", ALL)
def test_inverse_stays_within_0_and_1(name):
    schedule = ALL[name]
    first = 1 / schedule.num_steps if schedule.num_steps else 0.0
    t = np.asarray(schedule.time_of_log_snr(jnp.array([jnp.inf, 1e4, -1e4, -jnp.inf])))
    assert t[0] == pytest.approx(first, abs=1e-6) and t[1] == pytest.approx(first, abs=1e-6)
    assert t[3] == 1.0 and t[2] > 0.99


@pytest.mark.parametrize("name", [name for name in ALL if name != "one_step"])
def test_gradient_with_respect_to_t_is_finite_inside(name):
    schedule = ALL[name]
    t = jnp.array([1e-3, 0.3, 0.97])
    for part in (0, 1):
        grads = jax.vmap(jax.grad(lambda t, part=part: schedule(t)[part]))(t)
        assert np.all(np.isfinite(grads))
        if name in CONTINUOUS:
            alpha_falls, sigma_grows = np.all(grads <= 0), np.all(grads >= 0)
            assert (alpha_falls, sigma_grows)[part]


def test_rescale_zero_snr_keeps_the_first_entry_and_scales_linearly():
    before, after = schedules.linear(), schedules.linear().rescale_zero_snr()
    old, new = _float64(before, TIMES)[0][1:], _float64(after, TIMES)[0][1:]
    assert new[-1] == 0.0 and float(after(1.0).sigma) == 1.0
    np.testing.assert_allclose(new, old[0] * (old - old[-1]) / (old[0] - old[-1]), rtol=1e-10, atol=1e-14)
    again = after.rescale_zero_snr()
    np.testing.assert_allclose(_float64(again, TIMES)[0][1:], new, rtol=1e-10)


def test_interpolate_agrees_at_the_entries_and_is_smooth_between():
    discrete = schedules.cosine(50)
    continuous = schedules.interpolate(discrete)
    t = _entries(discrete)
    for ours, table in zip(_float64(continuous, t), _float64(discrete, t), strict=True):
        np.testing.assert_allclose(ours, table, rtol=1e-12, atol=1e-15)
    alpha, sigma = _float64(continuous, TIMES)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)
    assert np.all(np.diff(sigma / np.maximum(alpha, 1e-9)) > 0)


@pytest.mark.parametrize("name", ["linear", "flow"])
def test_t_outside_0_and_1_never_passes_silently(name):
    """Trap 5: an index beyond the table clamps in JAX, and a negative one wraps to pure noise."""
    schedule = ALL[name]
    for t in (1.001, -0.001, float("nan"), np.array([0.5, 2.0])):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            schedule(t)
    traced = jax.jit(schedule)(jnp.array([0.5, 1.001, -0.001, jnp.nan]))
    for part in traced:
        assert np.isnan(part).tolist() == [False, True, True, True]
    rounding = np.float32(1) + np.finfo(np.float32).eps  # what arithmetic on times may leave
    assert float(schedule(rounding).sigma) == float(schedule(1.0).sigma)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.linear(19), "num_steps=19 makes the last beta 1.05 >= 1; use >= 21"),  # trap 17
        (lambda: schedules.scaled_linear(12), "use >= 13"),
        (lambda: schedules.linear(10, 0.1, 1.5), "must lie in (0, 1), got 0.1 and 1.5"),
        (lambda: schedules.cosine(0), "num_steps must be at least 1, got 0"),
        (lambda: schedules.cosine(10, max_beta=1.0), "max_beta must lie in (0, 1), got 1.0"),
        (lambda: schedules.cosine(10, offset=-1.0), "offset must be at least 0"),
        (lambda: schedules.sigmoid(10, start=1.0, end=-1.0), "end > start"),
        (lambda: schedules.from_betas([]), "non-empty"),
        (lambda: schedules.from_betas([0.1, 1.0, 0.1]), "got 0.1 to 1"),
        (lambda: schedules.from_betas([0.0, 0.1]), "got 0 to 0.1"),
        (lambda: schedules.from_betas([0.1, float("nan")]), "betas must lie in (0, 1)"),
        (lambda: schedules.from_betas([0.1]).rescale_zero_snr(), "2 steps or more"),
        (lambda: schedules.flow().rescale_zero_snr(), "takes a discrete schedule"),
        (lambda: schedules.interpolate(schedules.flow()), "takes a discrete schedule"),
        (lambda: schedules.continuous_vp(beta_min=0.0), "0 < beta_min <= beta_max"),
        (lambda: schedules.continuous_sub_vp(3.0, 2.0), "0 < beta_min <= beta_max"),
        (lambda: schedules.continuous_vp(beta_max=float("inf")), "finite, got 0.1 and inf"),
        (lambda: schedules.ve(2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: schedules.edm(-1.0), "sigma_max > 0"),
        (lambda: schedules.flow(0.0), "shift must be positive"),
        (lambda: schedules.flow(float("inf")), "shift must be positive and finite, got inf"),
        (lambda: schedules.edm(float("inf")), "finite, got inf"),
        (lambda: schedules.ve(0.01, float("inf")), "finite, got 0.01 and inf"),
        (lambda: schedules.shifted_cosine(-1.0), "shifts must be positive"),
        (lambda: schedules.interpolated_cosine(30.0), "at most 23.1 times"),
    ],
)
def test_refusals_name_the_legal_range(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


@pytest.mark.parametrize("make", [schedules.linear, schedules.scaled_linear])
def test_every_legal_number_of_steps_ends_as_noisy(make):
    """Defaults scale with 1000/T. The smallest legal T works, and the terminal signal stays small."""
    smallest = {schedules.linear: 21, schedules.scaled_linear: 13}[make]
    for num_steps in (smallest, 100, 1000, 10000):
        assert float(make(num_steps)(1.0).alpha) < 0.08
