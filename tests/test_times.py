"""Time grids: every number of steps of every spacing is exact, descending, inside the range and ends clean."""

import inspect

import jax
import numpy as np
import pytest

from jaxdiff import schedules, time_grid
from jaxdiff.times import SPACINGS

COSINE = schedules.cosine()
CONTINUOUS = {
    "continuous_vp": schedules.continuous_vp(),
    "continuous_sub_vp": schedules.continuous_sub_vp(),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "flow": schedules.flow(3.0),
    "shifted_cosine": schedules.shifted_cosine(),
    "interpolated_cosine": schedules.interpolated_cosine(0.25),
    "interpolate": schedules.interpolate(COSINE),
}
AYS = (0.999, 0.845, 0.73, 0.587, 0.443, 0.31, 0.193, 0.116, 0.053, 0.013)
ALL_SPACINGS = (*SPACINGS, AYS)


def _check(times, num_steps):
    assert times.shape == (num_steps + 1,) and times.dtype == np.float32
    assert times[-1] == 0.0 and np.all(np.diff(times) < 0) and 0 < times[-2] and times[0] <= 1


@pytest.mark.parametrize("spacing", ALL_SPACINGS, ids=str)
def test_every_number_of_steps_of_a_discrete_schedule(spacing):
    """Traps 1-4: never N + 1 steps, never an index outside 1..T, never the same entry twice."""
    for num_steps in range(1, 1001):
        times = time_grid(COSINE, num_steps, spacing)
        _check(times, num_steps)
        entries = times.astype(np.float64) * 1000
        assert np.max(np.abs(entries - np.round(entries))) < 1e-4


@pytest.mark.parametrize("spacing", ALL_SPACINGS, ids=str)
def test_every_number_of_steps_of_a_continuous_schedule(spacing):
    for num_steps in range(1, 1001):
        _check(time_grid(CONTINUOUS["flow"], num_steps, spacing), num_steps)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_every_continuous_schedule_takes_every_spacing(name):
    for spacing in ALL_SPACINGS:
        for num_steps in (1, 61, 1000):
            _check(time_grid(CONTINUOUS[name], num_steps, spacing), num_steps)


@pytest.mark.parametrize("num_entries", [1, 2, 10])
def test_short_schedules_and_zero_snr_take_every_spacing(num_entries):
    made = [schedules.cosine(num_entries)]
    made += [made[0].rescale_zero_snr()] if num_entries > 1 else []
    for schedule in made:
        for spacing in ALL_SPACINGS:
            for num_steps in range(1, num_entries + 1):
                _check(time_grid(schedule, num_steps, spacing), num_steps)


def test_all_entries_when_every_step_is_taken():
    for spacing in ALL_SPACINGS:
        np.testing.assert_array_equal(time_grid(COSINE, 1000, spacing), np.float32(np.arange(1000, -1, -1) / 1000))


def test_spacings_are_what_they_say():
    linear = schedules.linear()
    np.testing.assert_allclose(time_grid(linear, 4, "trailing"), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(time_grid(linear, 4, "leading"), [0.751, 0.501, 0.251, 0.001, 0], rtol=1e-6)
    leading = time_grid(schedules.flow(), 4, "leading", t_min=0.1)
    np.testing.assert_allclose(leading, [0.775, 0.55, 0.325, 0.1, 0], rtol=1e-6)
    assert time_grid(linear, 50, "leading")[0] == np.float32(0.981)  # trap 3: index 980 of 0..999
    assert time_grid(linear, 501, "leading")[0] == np.float32(0.501)
    np.testing.assert_allclose(time_grid(linear, 4, "linspace"), [1, 0.667, 0.334, 0.001, 0], rtol=1e-6)
    np.testing.assert_allclose(time_grid(linear, 4, "quadratic"), [1, 0.562, 0.25, 0.062, 0], rtol=1e-6)
    np.testing.assert_allclose(time_grid(linear, 10, AYS), [*np.float32(AYS), 0.0])


def test_log_snr_and_karras_are_even_in_their_own_measure():
    schedule = CONTINUOUS["shifted_cosine"]
    times = time_grid(schedule, 20, "log_snr", t_min=0.01)
    assert times[0] == 1 and times[-2] == pytest.approx(0.01, rel=1e-5)
    steps = np.diff(np.asarray(schedule(times[:-1]).log_snr))
    np.testing.assert_allclose(steps, steps[0], rtol=2e-3)  # log-SNR near t = 1 moves 3e-4 with a bit of t
    edm = CONTINUOUS["edm"]
    times = time_grid(edm, 18, "karras", t_min=float(edm.time_of_log_snr(-2 * np.log(0.002))))
    i = np.arange(18)
    karras = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7  # Karras et al., eq. 5
    np.testing.assert_allclose(edm(times[:-1]).sigma, karras, rtol=1e-5)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_default_ends_are_noise_levels(name):
    """Of every continuous schedule sigma/alpha = 0.002, EDM's; t = 1e-3, once the default, is 8e-20 on EDM's."""
    schedule = CONTINUOUS[name]
    for spacing in ("leading", "linspace", "log_snr", "karras"):
        alpha, sigma = schedule(time_grid(schedule, 10, spacing)[-2])
        assert float(sigma / alpha) == pytest.approx(0.002, rel=2e-2), spacing  # a table's first entry is linear in t
    edm = CONTINUOUS["edm"]
    for spacing in ("karras", "linspace"):  # EDM's own grid, Karras et al., eq. 5
        karras = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        np.testing.assert_allclose(edm(time_grid(edm, 18, spacing)[:-1]).sigma, karras, rtol=1e-4)


@pytest.mark.parametrize("spacing", ["log_snr", "karras"])
def test_grids_in_noise_begin_at_a_noise_level_where_no_signal_is_left(spacing):
    """From t = 1, where sigma/alpha is infinite, to the second of the steps that EDM's sigma of 80 would begin."""
    times = time_grid(schedules.flow(), 10, spacing)
    assert times[0] == 1
    rho = np.float64(times[1:-1]) / (1.0 - np.float64(times[1:-1]))
    measure = np.log(rho) if spacing == "log_snr" else rho ** (1 / 7)
    first = np.log(80.0) if spacing == "log_snr" else 80.0 ** (1 / 7)
    assert first - measure[0] == pytest.approx(measure[0] - measure[1], rel=1e-3)


def test_a_list_is_resampled_log_linearly():
    times = time_grid(CONTINUOUS["flow"], 19, AYS)
    np.testing.assert_allclose(times[:-1:2], AYS, rtol=1e-6)
    np.testing.assert_allclose(times[1:-1:2], np.sqrt(np.array(AYS[1:]) * AYS[:-1]), rtol=1e-6)


def test_padding_adds_zeros_only():
    padded = time_grid(COSINE, 5, max_steps=8)
    np.testing.assert_array_equal(padded[:6], time_grid(COSINE, 5))
    assert padded.shape == (9,) and not padded[6:].any()


@pytest.mark.parametrize("spacing", ["trailing", "log_snr", "karras"])
def test_a_grid_can_be_made_while_tracing(spacing):
    grid = jax.jit(lambda x: x + time_grid(COSINE, 5, spacing))(0.0)
    np.testing.assert_array_equal(grid, time_grid(COSINE, 5, spacing))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((COSINE, 0), "num_steps must lie in 1..1000 (the schedule's T), got 0"),
        ((COSINE, 1001), "got 1001"),
        ((CONTINUOUS["flow"], 0), "num_steps must be at least 1, got 0"),
        ((COSINE, 10.0), "num_steps must be a whole number, got 10.0"),
        ((COSINE, "10"), "num_steps must be a whole number, got '10'"),
        ((COSINE, 10, "middling"), "choose one of trailing, leading, linspace, quadratic, log_snr, karras"),
        ((COSINE, 10, [0.1, 0.5]), "descending, in (0, 1]"),
        ((COSINE, 10, [0.5, 0.1, 0.0]), "without the final 0"),
        ((COSINE, 10, [1.5, 0.1]), "in (0, 1]"),
        ((COSINE, 10, [0.5]), "2 or more"),
        ((CONTINUOUS["flow"], 10**6, "karras"), "closer than float32 can tell apart"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError) as error:
        inspect.unwrap(time_grid)(*arguments)  # without the tests' own check of types
    assert message in str(error.value)
    with pytest.raises(ValueError, match="rho must be positive and finite"):
        time_grid(COSINE, 10, "karras", rho=0.0)


def test_refused_options():
    with pytest.raises(ValueError, match="t_min must lie in"):
        time_grid(COSINE, 10, "linspace", t_min=0.0)
    with pytest.raises(ValueError, match="max_steps must be at least num_steps=10"):
        time_grid(COSINE, 10, max_steps=9)
