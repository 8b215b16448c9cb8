"""The flow through diffrax: against the exact map of a Gaussian, and log-densities of a Gaussian and a mixture."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff import Marginal, Prediction, as_denoiser, ode, schedules
from tests.oracles import GAUSSIAN, MIXTURE, gaussian_flow

SCHEDULES = {
    "flow": schedules.flow(),  # no signal at t = 1
    "continuous_vp": schedules.continuous_vp(),
    "edm": schedules.edm(),
    "interpolate": schedules.interpolate(schedules.cosine()),
}
MEAN, SCALE = GAUSSIAN.means[0], GAUSSIAN.scales[0]


def _mixture_density(x, alpha=1.0, sigma=0.0):
    """log density of alpha x_0 + sigma noise for the mixture, by SciPy."""
    parts = [
        np.log(w) + stats.norm.logpdf(x, alpha * mu, np.hypot(alpha * s, sigma)).sum(axis=1)
        for w, mu, s in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.scales, strict=True)
    ]
    return np.logaddexp.reduce(parts)


@pytest.mark.parametrize("name", ["flow", "edm", "interpolate"])
def test_solve_is_the_exact_flow_of_a_gaussian_and_back(name):
    schedule = SCHEDULES[name]
    denoise = GAUSSIAN.denoiser(schedule)
    with jax.enable_x64(True):
        m_T, m_0 = (Marginal(*map(float, schedule(t))) for t in (1.0, 0.0))
        x_T = m_T.sigma * jax.random.normal(jax.random.key(0), (5, 2), jnp.float64)
        run = jax.jit(
            lambda x, t, s: ode.solve(denoise, x, schedule=schedule, t=t, s=s, rtol=1e-9, atol=1e-9),
            static_argnums=(1, 2),
        )
        x_0, steps = run(x_T, 1.0, 0.0)
        exact = gaussian_flow(np.asarray(x_T), m_T, m_0, MEAN, SCALE)
        np.testing.assert_allclose(x_0, exact, rtol=1e-7, atol=1e-7)
        back = run(x_0, 0.0, 1.0).x
        np.testing.assert_allclose(back, x_T, atol=1e-6 * m_T.sigma)
        assert steps.shape == (5,) and int(steps.max()) < 300


def test_tolerance_sets_the_error():
    schedule = SCHEDULES["continuous_vp"]
    denoise = MIXTURE.denoiser(schedule)
    with jax.enable_x64(True):
        x_T = jax.random.normal(jax.random.key(0), (20, 2), jnp.float64)

        @jax.jit
        def run(x, rtol):
            return ode.solve(denoise, x, schedule=schedule, rtol=rtol, atol=rtol).x

        exact = run(x_T, 1e-11)
        errors = [float(jnp.abs(run(x_T, rtol) - exact).max()) for rtol in (1e-3, 1e-5, 1e-7)]
        assert errors[0] < 3e-2 and errors[1] < 3e-4 and errors[2] < 3e-6
        other = ode.solve(denoise, x_T, schedule=schedule, rtol=1e-7, atol=1e-7, solver=diffrax.Dopri5()).x
        np.testing.assert_allclose(other, exact, atol=1e-5)


def test_log_likelihood_of_the_mixture():
    """The exact divergence, and t_min = 0: on the flow schedule q(x_T) is the prior exactly."""
    schedule = SCHEDULES["flow"]
    with jax.enable_x64(True):
        x_0 = MIXTURE.draw(jax.random.key(1), 6).astype(jnp.float64)
        denoise = MIXTURE.denoiser(schedule)
        found = ode.log_likelihood(denoise, x_0, schedule=schedule, t_min=0.0, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(found.log_prob, _mixture_density(np.asarray(x_0)), atol=1e-6)


def test_log_likelihood_is_that_of_what_sample_draws():
    """From N(0, sigma_T^2), be that far from q(x_T): here sigma_T = 2, and the flow of a Gaussian is linear."""
    schedule = schedules.edm(sigma_max=2.0)
    with jax.enable_x64(True):
        x_0 = GAUSSIAN.draw(jax.random.key(1), 6).astype(jnp.float64)
        denoise = GAUSSIAN.denoiser(schedule)
        found = ode.log_likelihood(denoise, x_0, schedule=schedule, t_min=0.0, rtol=1e-8, atol=1e-8)
        shrink = SCALE / np.hypot(SCALE, 2.0)
        exact = stats.norm.logpdf(np.asarray(x_0), MEAN - shrink * MEAN, 2.0 * shrink).sum(axis=1)
        np.testing.assert_allclose(found.log_prob, exact, atol=1e-6)
        np.testing.assert_allclose(found.x_T, MEAN + (np.asarray(x_0) - MEAN) / shrink, atol=1e-5)


def test_log_likelihood_in_float32_and_at_t_min():
    """At t_min the density is that of data with so much noise."""
    schedule = SCHEDULES["flow"]
    x_0 = MIXTURE.draw(jax.random.key(1), 6)
    found = ode.log_likelihood(MIXTURE.denoiser(schedule), x_0, schedule=schedule, t_min=0.1)
    expected = _mixture_density(np.asarray(x_0, np.float64), 0.9, 0.1)
    np.testing.assert_allclose(found.log_prob, expected, atol=2e-4)
    assert found.log_prob.dtype == jnp.float32


def test_random_divergence_is_unbiased():
    """sign . J sign has the trace of J for its mean; 4 standard errors over 1000 keys."""
    schedule = SCHEDULES["flow"]
    x_0 = jnp.tile(MIXTURE.draw(jax.random.key(3), 1), (1000, 1))
    keys = jax.random.split(jax.random.key(0), 1000)
    found = ode.log_likelihood(MIXTURE.denoiser(schedule), x_0, schedule=schedule, keys=keys, t_min=0.01)
    values = np.asarray(found.log_prob, np.float64)
    expected = _mixture_density(np.asarray(x_0[:1], np.float64), 0.99, 0.01)[0]
    assert values.std() > 1e-3  # the signs matter here
    assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(1000) + 2e-4


def test_an_example_does_not_depend_on_its_batch():
    """Not on a neighbour that is far out, nor on one that is NaN: to within the tolerance, as XLA rounds otherwise."""
    schedule = SCHEDULES["flow"]
    x_T = jnp.array([[1.0, -0.5], [300.0, 1.0], [0.1, 0.2]])
    run = jax.jit(lambda x: ode.solve(MIXTURE.denoiser(schedule), x, schedule=schedule))
    whole, part = run(x_T), run(x_T[:1])
    np.testing.assert_allclose(part.x, whole.x[:1], atol=1e-4)
    assert part.steps[0] == pytest.approx(float(whole.steps[0]), abs=2) and whole.steps[1] > whole.steps[0] + 2


def test_networks_of_images_pass_through():
    schedule = schedules.interpolate(schedules.cosine())
    denoise = as_denoiser(lambda x_t, t, cond: 0.1 * x_t, schedule=schedule, prediction="v")
    x_0 = ode.solve(denoise, jnp.ones((2, 4, 4, 1)), schedule=schedule).x
    np.testing.assert_allclose(x_0, np.exp(-0.1 * np.pi / 2), rtol=1e-4)  # dy/dphi = 0.1 y, from pi/2 down to 0


def test_refusals():
    denoise = lambda x, t: Prediction(x, x)  # noqa: E731
    x = jnp.zeros((1, 2))
    for call in (ode.solve, ode.log_likelihood):
        with pytest.raises(ValueError, match=r"use schedules.interpolate\(schedule\)"):
            call(denoise, x, schedule=schedules.cosine())
    with pytest.raises(ValueError, match=r"t_min must lie in \[0, 1\), got 1.0"):
        ode.log_likelihood(denoise, x, schedule=schedules.flow(), t_min=1.0)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        ode.solve(denoise, x, schedule=schedules.flow(), s=-0.5)
