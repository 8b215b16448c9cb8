"""Deterministic samplers: orders of convergence against exact flows, and cases that any number of steps gets right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.denoisers import Prediction
from jaxdiff.samplers.exponential import phi
from tests.oracles import GAUSSIAN, ddim_factor, gaussian_flow
from tests.samplers import convergence as c

STEPS = (200, 280, 400, 560, 800)
LENGTH = max(STEPS) + 6  # a ramped grid has six more steps
FLOW = 1  # index in SCHEDULES


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def program(name):
    return c.compile_run(c.METHODS[name].make, c.SCHEDULES)


def test_the_reference_is_exact(x64):
    """The fine solver that stands for the mixture's flow, on data whose flow is a closed form."""
    y = np.linspace(-60.0, 60.0, 8).reshape(4, 2)
    m_t, m_s = jd.Marginal(1.0, np.exp(4.0)), jd.Marginal(1.0, np.exp(-3.0))
    exact = gaussian_flow(y, m_t, m_s, GAUSSIAN.means[0], GAUSSIAN.scales[0])
    np.testing.assert_allclose(c.fine_flow(GAUSSIAN)(y, -4.0, 3.0), exact, atol=1e-12)


@pytest.mark.parametrize("name", c.METHODS)
def test_order(x64, name):
    """The order that the docstring states, on two data sets and two schedules, within 0.15; a point exactly."""
    for index, schedule in enumerate(c.SCHEDULES):
        x_t, exact = c.setting(index)
        grids = [c.padded(c.lambda_grid(schedule, n), LENGTH) for n in STEPS]
        errors = np.array([c.rms(np.asarray(program(name)(index, grid, x_t)) - exact) for grid in grids])
        for data in (0, 1):
            assert abs(c.fitted_order(STEPS, errors[:, data]) - c.METHODS[name].order) < 0.15, errors[:, data]
        assert np.max(errors[:, 2]) < 1e-12


def test_order_on_a_table(x64):
    """DPM-Solver-3's times within a step are rounded to entries: the nearest ones, so that it still has order 3."""
    schedule, steps = jd.schedules.cosine(100_000), (20, 28, 40, 56)
    run, errors = c.compile_run(jd.samplers.dpm_solver_3, (schedule,)), []
    for num_steps in steps:
        grid = np.unique(c.lambda_grid(schedule, num_steps))[::-1]
        x_t = c.start_points(c.at(schedule, grid[0]))
        exact = c.exact_flow(x_t, c.at(schedule, grid[0]), c.at(schedule, grid[-1]))
        errors.append(c.rms(np.asarray(run(0, c.padded(grid, max(steps) + 6), x_t)) - exact)[:2])
    for data in np.transpose(errors):
        assert abs(c.fitted_order(steps, data, bent=True) - 3) < 0.3, data


@pytest.mark.parametrize("spacing", [1, 2], ids=["trailing", "quadratic"])
@pytest.mark.parametrize("name", c.METHODS)
def test_whole_grid(x64, name, spacing):
    """From no signal (flow, t = 1) to no noise: 50 steps of a higher order beat DDIM's threefold; a point is exact.

    The flow from t = 1 is that from just below it. The same program as in the test of the order: nothing compiles.
    """
    x_T = c.start_points(jd.Marginal(0.0, 1.0))
    exact = c.exact_flow(x_T, jd.Marginal(1e-9, 1.0 - 1e-9), jd.Marginal(1.0, 0.0))
    grid = c.padded(np.linspace(1.0, 0.0, 51) ** spacing, LENGTH)
    error = c.rms(np.asarray(program(name)(FLOW, grid, x_T)) - exact)
    ddim = c.rms(np.asarray(program("ddim")(FLOW, grid, x_T)) - exact)
    assert np.all(error[:2] < (0.03 if name == "ddim" else ddim[:2] / 3)), (error, ddim)
    assert error[2] < 1e-12
    few = c.padded(np.array([1.0, 0.4, 0.0]), LENGTH)
    assert c.rms(np.asarray(program(name)(FLOW, few, x_T)) - exact)[2] < 1e-12
    assert program(name)._cache_size() == 1


def one_step(sampler, denoise, x, t, s, schedule):
    """One step of a sampler without a past."""
    keys = jd.sample_keys(jax.random.key(0), len(x))
    return np.asarray(jax.jit(lambda x: sampler.step(keys, denoise, x, (), t, s, schedule=schedule)[0])(x))


@pytest.mark.parametrize("make", [jd.samplers.ddim, jd.samplers.euler, jd.samplers.dpm_solver_1])
def test_ddim_factor(x64, make):
    """One step on Gaussian data multiplies x_t - alpha_t m by a known factor; so does a step up, in inversion."""
    schedule = jd.schedules.flow()
    x = np.linspace(-2.0, 2.0, 6).reshape(3, 2)
    for t, s in ((0.9, 0.5), (0.5, 0.0), (0.3, 0.6)):
        m_t, m_s = c.at(schedule, t), c.at(schedule, s)
        factor = ddim_factor(m_t, m_s, GAUSSIAN.scales[0])
        expected = m_s.alpha * GAUSSIAN.means[0] + factor * (x - m_t.alpha * GAUSSIAN.means[0])
        found = one_step(make(), GAUSSIAN.denoiser(schedule), x, jnp.array(t), jnp.array(s), schedule)
        np.testing.assert_allclose(found, expected, atol=1e-13)


def test_ddim_on_standard_normal_data_is_a_product_of_cosines(x64):
    schedule = jd.schedules.continuous_vp()
    times = jnp.array([1.0, 0.7, 0.6, 0.2, 0.05])
    angles = jnp.arctan2(schedule(times).sigma, schedule(times).alpha)
    data = c.gaussian([0.0], [1.0])
    keys, x_T = jd.sample_keys(jax.random.key(0), 3), jnp.array([[-1.0], [0.5], [2.0]])
    x = jd.sample(keys, data.denoiser(schedule), jd.samplers.ddim(), times=times, schedule=schedule, x_T=x_T)
    np.testing.assert_allclose(x, jnp.prod(jnp.cos(jnp.diff(angles))) * x_T, rtol=1e-12)


def linear_in_lambda(schedule, part):
    """A denoiser whose x_0 (or noise) is 1 + lambda/2, whatever x: what a rule of order 2 takes for exact."""

    def denoise(x_t, t):
        m = schedule(t)
        value = (1.0 + 0.25 * m.log_snr) * jnp.ones_like(x_t)
        if part == "x_0":
            return Prediction(value, (x_t - m.alpha * value) / m.sigma)
        return Prediction((x_t - m.sigma * value) / m.alpha, value)

    return denoise


@pytest.mark.parametrize("name, part", [("dpmpp_2s", "x_0"), ("dpm_solver_2", "noise"), ("dpm_solver_3", "noise")])
def test_intermediate_times_are_entries_of_a_discrete_schedule(x64, name, part):
    """Rounding moves the intermediate time far from the middle; a rule that knows where it is gives the same result.

    For x_0 or noise linear in lambda with value v at t: orders 2 take v + slope h/2 for its mean, whatever r; order 3
    integrates it exactly.
    """
    schedule = jd.schedules.cosine(12)  # a step of three entries: two to choose from
    t, s = jnp.array(9 / 12), jnp.array(6 / 12)
    m_t, m_s = schedule(t), schedule(s)
    lam, h = 0.5 * m_t.log_snr, 0.5 * (m_s.log_snr - m_t.log_snr)
    x = jnp.array([[0.3, -1.2]])
    if name == "dpmpp_2s":
        mean = 1.0 + 0.5 * lam + 0.25 * h
        expected = m_s.sigma / m_t.sigma * x + m_s.alpha * (1.0 - jnp.exp(-h)) * mean
    elif name == "dpm_solver_2":
        mean = 1.0 + 0.5 * lam + 0.25 * h
        expected = m_s.alpha / m_t.alpha * x - m_s.sigma * (jnp.exp(h) - 1.0) * mean
    else:
        integral = (jnp.exp(h) - 1.0) * (1.0 + 0.5 * lam) + 0.5 * (jnp.exp(h) - 1.0 - h)
        expected = m_s.alpha / m_t.alpha * x - m_s.sigma * integral
    found = one_step(jd.samplers.by_name(name), linear_in_lambda(schedule, part), x, t, s, schedule)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("name", ["dpm_solver_2", "dpmpp_2s", "dpm_solver_3"])
def test_neighbouring_entries_leave_no_time_between(x64, name):
    """Every entry of the schedule a step: the middle is t itself and the step DDIM's; two thirds of the way is s."""
    schedule = jd.schedules.cosine(30)
    keys, x_T = jd.sample_keys(jax.random.key(0), 2), np.array([[0.5, -1.0], [1.5, 0.1]])
    times = np.arange(30, -1, -1) / 30
    run = functools.partial(jd.sample, keys, GAUSSIAN.denoiser(schedule), times=times, x_T=jnp.asarray(x_T))
    exact = gaussian_flow(x_T, c.at(schedule, 1.0), jd.Marginal(1.0, 0.0), GAUSSIAN.means[0], GAUSSIAN.scales[0])
    ddim = np.abs(run(sampler=jd.samplers.ddim(), schedule=schedule) - exact)
    error = np.abs(run(sampler=jd.samplers.by_name(name), schedule=schedule) - exact)
    if name == "dpm_solver_3":
        assert np.all(error < ddim)
    else:
        np.testing.assert_allclose(error, ddim, rtol=1e-10)


@pytest.mark.parametrize("sde, ode", [("dpmpp_sde", "dpmpp_2s"), ("dpmpp_2m_sde", "dpmpp_2m")])
def test_without_noise_the_sde_is_the_ode(x64, sde, ode):
    schedule = jd.schedules.flow()
    keys, x_T = jd.sample_keys(jax.random.key(0), 3), jnp.array([[0.5, -1.0], [1.5, 0.1], [0.0, 2.0]])
    run = functools.partial(jd.sample, keys, GAUSSIAN.denoiser(schedule), times=np.linspace(1, 0, 6), x_T=x_T)
    with_noise = run(sampler=jd.samplers.by_name(sde, eta=0.0), schedule=schedule)
    np.testing.assert_allclose(with_noise, run(sampler=jd.samplers.by_name(ode), schedule=schedule), atol=1e-13)


@pytest.mark.parametrize("z", [1e-3, 0.7, 1.3, -1e-3, -0.7, -1.3, -70.0])
def test_phi_against_its_integral(x64, z):
    """phi_{k+1}(z) = int_0^1 e^(z (1 - u)) u^k/k! du, by Gauss-Legendre quadrature; the recursion is only for big z."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    u = 0.5 * (nodes + 1.0)
    for k, factorial in ((1, 1), (2, 1), (3, 2), (4, 6)):
        integral = 0.5 * np.sum(weights * np.exp(z * (1.0 - u)) * u ** (k - 1)) / factorial
        np.testing.assert_allclose(phi(k, jnp.array(z)), integral, rtol=1e-12)
