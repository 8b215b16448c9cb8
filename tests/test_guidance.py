"""Guidance: against scores of Gaussians and Bayes, at both ends of the scale, and what every kind must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Prediction, add_noise, classifier_free, sample, sample_keys, samplers, schedules, static_threshold
from jaxdiff import guidance as g
from tests.oracles import MIXTURE, GaussianMixture, gaussian

VP, FLOW = schedules.shifted_cosine(), schedules.flow()
COND, UNCOND = gaussian([0.8, -0.5], [0.3, 0.6]), gaussian([0.0, 0.2], [1.0, 0.9])
X = jax.random.normal(jax.random.key(0), (4, 2))
T = jnp.array([0.05, 0.4, 0.8, 0.95])


def _pair(schedule):
    return COND.denoiser(schedule), UNCOND.denoiser(schedule)


def _all(schedule, scale):
    """Every guidance of two denoisers whose parts stay consistent with x_t."""
    pair = _pair(schedule)
    return {
        "classifier_free": classifier_free(*pair, scale),
        "autoguidance": g.autoguidance(*pair, scale),
        "interval": g.guidance_interval(classifier_free(*pair, scale), pair[0], 0.0, 0.9),
        "rescaled": g.rescaled_classifier_free(*pair, scale, schedule=schedule),
        "projected": g.adaptive_projected(*pair, scale, schedule=schedule, max_norm=1.0),
        "cfg_zero_star": g.cfg_zero_star(*pair, scale, schedule=schedule),
    }


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 7.5])
def test_guided_score_is_that_of_the_weighted_product(scale):
    """p_cond^w p_uncond^(1-w) of two Gaussians: precision w/v_c + (1-w)/v_u, at every noise level."""
    found = classifier_free(*_pair(VP), scale)(X, T)
    x, (alpha, sigma) = np.float64(X), (np.float64(a)[:, None] for a in VP(T))
    precision, pull = 0.0, 0.0
    for data, w in ((COND, scale), (UNCOND, 1 - scale)):
        v = alpha**2 * data.scales**2 + sigma**2
        precision, pull = precision + w / v, pull + w * alpha * data.means / v
    score = pull - precision * x
    np.testing.assert_allclose(-found.noise / sigma, score, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found.x_0, (x + sigma**2 * score) / alpha, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_scale_1_is_conditional_and_0_unconditional(schedule):
    """Trap 23, bit for bit where the formula is the plain one."""
    cond, uncond = (d(X, T) for d in _pair(schedule))
    for name, denoise in _all(schedule, 1.0).items():
        exact = 0.0 if name in ("classifier_free", "autoguidance", "interval") else 2e-6
        np.testing.assert_allclose(denoise(X, T).x_0, cond.x_0, rtol=0, atol=exact)
    for got, expected in zip(classifier_free(*_pair(schedule), 0.0)(X, T)[:2], uncond[:2], strict=True):
        np.testing.assert_array_equal(got, expected)
    plus = g.cfg_pp(*_pair(schedule), 1.0)(X, T)
    np.testing.assert_array_equal(plus.x_0, cond.x_0)
    np.testing.assert_array_equal(plus.noise, uncond.noise)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_parts_stay_consistent_with_x_t_and_finite(schedule):
    """alpha x_0 + sigma noise = x_t, at t = 1 without signal too, with the scale of each example its own and traced."""
    t = jnp.array([1e-3, 0.4, 0.8, 1.0])
    run = jax.jit(lambda scale: {name: d(X, t) for name, d in _all(schedule, scale).items()})
    for p in run(jnp.array([1.0, 2.0, 4.0, 8.0])).values():
        assert np.all(np.isfinite(p.x_0)) and np.all(np.isfinite(p.noise))
        np.testing.assert_allclose(add_noise(p.x_0, p.noise, schedule(t)), X, atol=5e-6)
    each = run(jnp.array([1.0, 2.0, 4.0, 8.0]))["projected"].x_0
    np.testing.assert_allclose(each[2], run(jnp.full((4,), 4.0))["projected"].x_0[2], rtol=1e-6)


def test_fraction_is_the_conditional_one():
    parts = [Prediction(X, X, jnp.full_like(X, v)) for v in (0.25, 0.75)]
    cond, uncond = (lambda x, t: parts[0]), (lambda x, t: parts[1])
    for denoise in (
        classifier_free(cond, uncond, 2.0),
        g.cfg_pp(cond, uncond, 0.5),
        g.cfg_zero_star(cond, uncond, 2.0, schedule=FLOW),
        g.adaptive_projected(cond, uncond, 2.0, schedule=FLOW),
        g.rescaled_classifier_free(cond, uncond, 2.0, schedule=FLOW),
        g.guidance_interval(cond, uncond, 0.1, 0.9),
        g.classifier_guidance(cond, lambda x, t: x[:, 0], 1.0, schedule=FLOW),
    ):
        assert np.all(denoise(X, 0.5).fraction == 0.25)


@pytest.mark.parametrize("component", [0, 1])
def test_classifier_guidance_with_the_true_classifier_is_bayes(component):
    """grad log p(component | x_t) added to the mixture's denoiser is the denoiser of that component alone."""

    def log_prob(x_t, t):
        m = VP(t).like(x_t)
        logs = [
            jnp.log(w)
            + jax.scipy.stats.norm.logpdf(
                x_t, m.alpha * jnp.asarray(mu)[None], jnp.sqrt((m.alpha * jnp.asarray(s)[None]) ** 2 + m.sigma**2)
            ).sum(axis=1)
            for w, mu, s in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.scales, strict=True)
        ]
        return logs[component] - jnp.logaddexp(*logs)

    guided = g.classifier_guidance(MIXTURE.denoiser(VP), log_prob, 1.0, schedule=VP)(X, T)
    alone = GaussianMixture(np.ones(1), MIXTURE.means[[component]], MIXTURE.scales[[component]]).denoiser(VP)(X, T)
    m = VP(T).like(X)
    np.testing.assert_allclose(guided.noise, alone.noise, atol=2e-5)
    np.testing.assert_allclose(m.alpha * guided.x_0, m.alpha * alone.x_0, atol=1e-5)


def test_classifier_guidance_without_signal_keeps_x_0():
    denoise = g.classifier_guidance(UNCOND.denoiser(FLOW), lambda x, t: x[:, 0], 3.0, schedule=FLOW)
    np.testing.assert_array_equal(denoise(X, 1.0).x_0, UNCOND.denoiser(FLOW)(X, 1.0).x_0)


def test_interval_guides_inside_and_calls_one_network_outside():
    calls = []

    def counted(x_t, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return UNCOND.denoiser(VP)(x_t, t)

    cond = COND.denoiser(VP)
    denoise = g.guidance_interval(classifier_free(cond, counted, 4.0), cond, 0.2, 0.7)
    times = np.float32([1.0, 0.85, 0.7, 0.5, 0.2, 0.1, 0.0])
    keys = sample_keys(jax.random.key(0), 3)
    sample(keys, denoise, samplers.ddim(), shape=(2,), times=times, schedule=VP).block_until_ready()
    jax.effects_barrier()
    assert sorted(calls) == pytest.approx([0.2, 0.5, 0.7])
    per_example = g.guidance_interval(classifier_free(*_pair(VP), 4.0), cond, 0.2, 0.7)(X, T)
    one_by_one = [denoise(X[i : i + 1], T[i]).x_0[0] for i in range(4)]
    np.testing.assert_allclose(per_example.x_0, np.stack(one_by_one), rtol=1e-6)
    with pytest.raises(ValueError, match=r"0 <= low < high <= 1, got 0\.7 and 0\.2"):
        g.guidance_interval(cond, cond, 0.7, 0.2)


def test_rescaling_keeps_the_spread_of_the_conditional_x_0():
    x = 3 * jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    cond = lambda x_t, t: Prediction(jnp.tanh(x_t), x_t)  # noqa: E731
    uncond = lambda x_t, t: Prediction(0.2 * x_t, x_t)  # noqa: E731
    plain = classifier_free(cond, uncond, 6.0)(x, 0.5).x_0
    spread = [np.std(a, axis=(1, 2, 3), keepdims=True) for a in (plain, cond(x, 0.5).x_0)]
    for rescale in (0.0, 0.7, 1.0):
        denoise = g.rescaled_classifier_free(cond, uncond, 6.0, schedule=VP, rescale=rescale)
        expected = rescale * plain * spread[1] / spread[0] + (1 - rescale) * plain  # eq. 15 and 16
        np.testing.assert_allclose(denoise(x, 0.5).x_0, expected, rtol=1e-4, atol=1e-6)


def test_projected_guidance_is_the_algorithm():
    """With both parts it is classifier-free; without the parallel one the update is orthogonal; d is cut to size."""
    pair = _pair(VP)
    cond, uncond = (np.float64(d(X, T).x_0) for d in pair)
    both = g.adaptive_projected(*pair, 4.0, schedule=VP, parallel=1.0)(X, T).x_0
    np.testing.assert_allclose(both, classifier_free(*pair, 4.0)(X, T).x_0, rtol=1e-4, atol=1e-5)
    update = np.float64(g.adaptive_projected(*pair, 4.0, schedule=VP)(X, T).x_0) - cond
    np.testing.assert_allclose(np.sum(update * cond, axis=1), 0, atol=1e-5)
    unit = cond / np.linalg.norm(cond, axis=1, keepdims=True)
    gap = cond - uncond
    orthogonal = gap - np.sum(gap * unit, axis=1, keepdims=True) * unit
    np.testing.assert_allclose(update, 3 * orthogonal, rtol=1e-3, atol=1e-5)
    cut = g.adaptive_projected(*pair, 4.0, schedule=VP, parallel=1.0, max_norm=0.5)(X, T).x_0 - cond
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 3 * np.minimum(np.linalg.norm(gap, axis=1), 0.5), rtol=1e-4)


def test_cfg_pp_renoises_with_the_unconditional_noise():
    """One DDIM step is the paper's algorithm 2, and a threshold after it does not turn it back into plain guidance."""
    schedule, times = schedules.cosine(), np.float32([0.6, 0.4])
    cond, uncond = _pair(schedule)
    keys = sample_keys(jax.random.key(0), 4)
    denoise = g.cfg_pp(cond, uncond, 0.6)
    x_s = sample(keys, denoise, samplers.ddim(), x_T=X, times=times, schedule=schedule)
    c, u, m = cond(X, 0.6), uncond(X, 0.6), schedule(0.4)
    np.testing.assert_allclose(x_s, m.alpha * (0.4 * u.x_0 + 0.6 * c.x_0) + m.sigma * u.noise, atol=2e-6)
    np.testing.assert_array_equal(static_threshold(denoise, schedule=schedule, limit=99.0)(X, 0.6).noise, u.noise)


def test_cfg_zero_star_fits_the_unconditional_velocity_and_starts_still():
    cond, uncond = (d(X, T) for d in _pair(FLOW))
    c, u = (np.float64(p.noise) - np.float64(p.x_0) for p in (cond, uncond))
    found = g.cfg_zero_star(*_pair(FLOW), 5.0, schedule=FLOW, zero_above=0.9)(X, T)
    for i in range(3):
        s = np.linalg.lstsq(u[i][:, None], c[i], rcond=None)[0]
        expected = s * u[i] + 5.0 * (c[i] - s * u[i])
        np.testing.assert_allclose(found.noise[i] - found.x_0[i], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.x_0[3], X[3], atol=1e-6)  # t = 0.95: no velocity
    np.testing.assert_allclose(found.noise[3], X[3], atol=1e-6)


NAN = float("nan")
REFUSED = {
    "scale": (lambda pair: classifier_free(*pair, NAN), "scale must be finite, got nan"),
    "weak": (lambda pair: g.autoguidance(*pair, np.array([1.0, np.inf])), "scale must be finite"),
    "cfg_pp": (lambda pair: g.cfg_pp(*pair, 7.5), r"scale of CFG\+\+ must lie in \[0, 1\], got 7.5"),
    "rescale": (
        lambda pair: g.rescaled_classifier_free(*pair, 2.0, schedule=VP, rescale=1.5),
        r"rescale must lie in \[0, 1\], got 1.5",
    ),
    "parallel": (lambda pair: g.adaptive_projected(*pair, 2.0, schedule=VP, parallel=NAN), "parallel must be finite"),
    "max_norm": (
        lambda pair: g.adaptive_projected(*pair, 2.0, schedule=VP, max_norm=-1.0),
        "max_norm must be finite, >= 0, got -1.0",
    ),
    "zero_above": (
        lambda pair: g.cfg_zero_star(*pair, 2.0, schedule=FLOW, zero_above=96.0),
        r"zero_above must lie in \[0, 1\], got 96.0",
    ),
    "classifier": (
        lambda pair: g.classifier_guidance(pair[0], lambda x, t: x[:, 0], NAN, schedule=VP),
        "scale must be finite, got nan",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_cannot_work_are_refused_with_the_legal_range(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make(_pair(VP))


def test_traced_and_negative_scales_are_taken_as_they_are():
    """A negative scale leads away from the condition; a traced one has no value yet."""
    pair = _pair(VP)
    traced = jax.jit(lambda scale: g.cfg_pp(*pair, scale)(X, T).x_0)(0.6)
    np.testing.assert_allclose(traced, g.cfg_pp(*pair, 0.6)(X, T).x_0, atol=1e-6)
    assert np.all(np.isfinite(classifier_free(*pair, -2.0)(X, T).x_0))
