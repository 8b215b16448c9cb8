"""The variational bound: equal to its closed form on a Gaussian, bins that sum to 1, a variance that learns."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxdiff import Marginal, Prediction, add_noise, denoising_loss, losses, schedules
from tests.losses.gaussian_bound import BITS_OF_A_NORMAL, bound_bits, closed_form, gaussian_denoiser, quadrature

LINEAR = schedules.linear()


SCHEDULES = {
    "linear": lambda: LINEAR,
    "linear_21": lambda: schedules.linear(21),
    "cosine_1000": schedules.cosine,
    "cosine_10": lambda: schedules.cosine(10),
    "one_step": lambda: schedules.from_betas([0.9]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_bound_of_a_standard_normal_is_its_entropy(name):
    """2.0470956 bits/dim for any schedule and any T, with the best reverse variance."""
    with jax.enable_x64(True):
        assert bound_bits(SCHEDULES[name](), 0.0, 1.0) == pytest.approx(BITS_OF_A_NORMAL, abs=1e-9)
    assert f"{BITS_OF_A_NORMAL:.7f}" == "2.0470956"


@pytest.mark.parametrize("name", SCHEDULES)
def test_bound_of_a_gaussian_is_entropy_and_prior_gap(name):
    """H(x_0) + KL(q(x_T), N(0, 1)) for N(0.5, 0.3^2)."""
    schedule, mean, scale = SCHEDULES[name](), 0.5, 0.3
    with jax.enable_x64(True):
        assert bound_bits(schedule, mean, scale) == pytest.approx(closed_form(schedule, mean, scale), abs=1e-9)


def test_any_other_variance_costs_more():
    with jax.enable_x64(True):
        schedule = SCHEDULES["cosine_10"]()
        best = bound_bits(schedule, 0.5, 0.3)
        assert bound_bits(schedule, 0.5, 0.3, 1.1) > best + 1e-3 and bound_bits(schedule, 0.5, 0.3, 0.9) > best + 1e-3
        slope = jax.jit(jax.grad(lambda log: _nats(schedule, log)))(0.0)
        assert abs(float(slope)) < 1e-9


def _nats(schedule, log_stretch):
    x_0, noise, weights = (jnp.asarray(a) for a in quadrature(0.5, 0.3))
    denoise = gaussian_denoiser(schedule, 0.5, 0.3, lambda t: t - 0.1, jnp.exp(log_stretch))
    m_s, m_t = schedule(0.5), schedule(0.6)
    x_t = add_noise(x_0, noise, m_t)
    return weights @ losses.bound_term(denoise(x_t, 0.6), x_0, x_t, m_s, m_t, levels=None)


def test_prior_term_is_the_closed_form():
    x_0 = jnp.full((1, 4, 4, 3), 0.5)
    bits = losses.bits_per_dim(losses.prior_term(x_0, LINEAR), (4, 4, 3))
    assert f"{float(bits[0]):.2e}" == "7.28e-06"
    for schedule in (schedules.linear(21), schedules.from_betas([0.5])):
        alpha_bar = float(np.prod(1 - schedule.betas))
        nats = 0.5 * (alpha_bar * (0.25 - 1) - math.log(1 - alpha_bar))
        assert float(losses.prior_term(x_0, schedule)[0]) == pytest.approx(48 * nats, rel=1e-5)
    assert float(losses.prior_term(x_0, LINEAR.rescale_zero_snr())[0]) == 0.0


def test_terms_are_gaussian_divergences():
    """Against KL by quadrature of log q - log p, at a fraction between the two variances."""
    m_s, m_t = LINEAR(0.4), LINEAR(0.5)
    x_0, x_t, guess = 0.3, -0.2, 0.5
    beta = float(m_t.sigma) ** 2 - (float(m_t.alpha) * float(m_s.sigma) / float(m_s.alpha)) ** 2
    small = beta * (float(m_s.sigma) / float(m_t.sigma)) ** 2
    keep = float(m_t.alpha / m_s.alpha) * (float(m_s.sigma) / float(m_t.sigma)) ** 2
    gain = float(m_s.alpha) * beta / float(m_t.sigma) ** 2
    q = stats.norm(keep * x_t + gain * x_0, math.sqrt(small))
    p = stats.norm(keep * x_t + gain * guess, math.sqrt(beta**0.3 * small**0.7))
    grid = np.linspace(*q.interval(1 - 1e-12), 20_001)
    expected = np.trapezoid(q.pdf(grid) * (q.logpdf(grid) - p.logpdf(grid)), grid)
    prediction = Prediction(*(jnp.full((1, 1), a) for a in (guess, 0.0, 0.3)))
    got = losses.bound_term(prediction, jnp.full((1, 1), x_0), jnp.full((1, 1), x_t), m_s, m_t)
    assert float(got[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.02), (0.98, 0.001), (-1.3, 0.3), (0.0, 5.0)])
def test_bins_hold_the_gaussians_mass(mean, std):
    """-log p(x_0 | x_1) of 256 levels against SciPy, and the 256 masses sum to 1."""
    levels = 2 * np.arange(256) / 255 - 1
    alpha, sigma = 1 / math.hypot(1, std), std / math.hypot(1, std)  # beta = sigma^2; fraction 1 gives that variance
    x_0, one = jnp.asarray(levels, jnp.float32)[:, None], jnp.ones((256, 1))
    m_t = Marginal(jnp.float32(alpha), jnp.float32(sigma))
    nats = losses.bound_term(Prediction(mean * one, one, one), x_0, x_0, LINEAR(0.0), m_t)
    edges = np.concatenate([[-np.inf], levels[:-1] + 1 / 255, [np.inf]])
    mass = np.diff(stats.norm.cdf(edges, mean, sigma))
    np.testing.assert_allclose(np.exp(-np.float64(nats)), mass, rtol=2e-2, atol=1e-6)
    assert np.exp(-np.float64(nats)).sum() == pytest.approx(1, abs=2e-4)
    assert np.all(np.isfinite(nats))


def test_bins_far_away_have_finite_cost_and_gradient():
    x_0 = jnp.array([[-1.0], [1.0], [0.0]])
    m_t = Marginal(jnp.float32(1.0), jnp.float32(1e-3))

    def cost(mean):
        p = Prediction(jnp.full((3, 1), mean), jnp.zeros((3, 1)), jnp.ones((3, 1)))
        return losses.bound_term(p, x_0, x_0, LINEAR(0.0), m_t).sum()

    value, slope = jax.jit(jax.vmap(jax.value_and_grad(cost)))(jnp.array([-2.0, 0.0, 0.5, 2.0]))
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(slope)) and slope[3] > 0 > slope[0]


def test_sampled_bound_is_the_entropy():
    """variational_bound itself, on 20,000 samples of N(0, 1), within 4 standard errors."""
    schedule = schedules.cosine(8)
    x_0 = jax.random.normal(jax.random.key(0), (20_000, 1))
    denoise = gaussian_denoiser(schedule, 0.0, 1.0, lambda t: jnp.maximum(t - 1 / 8, 0.0))
    run = jax.jit(lambda key, x_0: losses.variational_bound(key, denoise, x_0, schedule=schedule, levels=None))
    bound = run(jax.random.key(1), x_0)
    assert bound.terms.shape == (20_000, 8)
    bits = np.asarray(losses.bits_per_dim(bound.total, (1,)), np.float64)
    assert abs(bits.mean() - BITS_OF_A_NORMAL) < 4 * bits.std() / np.sqrt(20_000)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(20_000))
    np.testing.assert_array_equal(run(keys, x_0).terms, bound.terms)  # of each example's own key alone


def _two_headed(params, x_t, t, cond=None):
    return jnp.concatenate([params["mean"] * x_t, params["variance"] * jnp.ones_like(x_t)], axis=-1)


def test_hybrid_is_simple_and_a_thousandth_of_the_bound():
    schedule, key, params = schedules.cosine(10), jax.random.key(0), {"mean": 0.8, "variance": 0.3}
    x_0 = jnp.clip(jax.random.normal(jax.random.key(1), (6, 4, 4, 3)), -1, 1)

    @jax.jit
    def losses_at(t, t_before):
        seen = []

        def first_head(x_t, t, cond):
            seen.append(x_t)
            return params["mean"] * x_t

        simple = denoising_loss(key, first_head, x_0, schedule=schedule, t=t)
        m, x_t = schedule(t).like(x_0), seen[0]
        p = Prediction((x_t - m.sigma * 0.8 * x_t) / m.alpha, 0.8 * x_t, jnp.full_like(x_0, 0.65))
        term = losses.bound_term(p, x_0, x_t, schedule(t_before), schedule(t))
        hybrid = losses.hybrid_loss(key, partial(_two_headed, params), x_0, schedule=schedule, t=t)
        return hybrid, simple + 0.001 * 10 * term / (48 * math.log(2))

    for k in (1, 6, 10):
        np.testing.assert_allclose(*losses_at(jnp.full((6,), k / 10), jnp.full((6,), (k - 1) / 10)), rtol=1e-5)


def test_hybrid_trains_the_variance_by_the_bound_and_the_mean_by_the_simple_loss():
    schedule, key = schedules.cosine(10), jax.random.key(0)
    x_0 = jnp.clip(jax.random.normal(jax.random.key(1), (6, 4, 4, 3)), -1, 1)
    params = {"mean": 0.8, "variance": 0.3}

    def hybrid(params):
        predict = partial(_two_headed, params)
        return losses.hybrid_loss(key, predict, x_0, schedule=schedule, bound_weight=1.0).mean()

    def simple(params):
        return denoising_loss(key, lambda x, t, c: params["mean"] * x, x_0, schedule=schedule).mean()

    got, expected = jax.jit(lambda p: (jax.grad(hybrid)(p), jax.grad(simple)(p)))(params)
    assert float(got["mean"]) == pytest.approx(float(expected["mean"]), rel=1e-5)
    assert abs(float(got["variance"])) > 1e-3


def test_refusals():
    x_0, key, flow = jnp.zeros((1, 2)), jax.random.key(0), schedules.flow()
    with pytest.raises(ValueError, match="takes a discrete schedule"):
        losses.variational_bound(key, lambda x, t: Prediction(x, x), x_0, schedule=flow)
    with pytest.raises(ValueError, match="takes a discrete schedule"):
        losses.hybrid_loss(key, lambda x, t, c: x, x_0, schedule=flow)
    with pytest.raises(ValueError, match=r"it must be \(1, 4\)"):
        jax.eval_shape(lambda: losses.hybrid_loss(key, lambda x, t, c: x, x_0, schedule=LINEAR))
