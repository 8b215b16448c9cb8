"""Every public pure function of the core: the same with and without jit, pmapped, vmapped; differentiable."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from jaxdiff import (
    Prediction,
    add_noise,
    as_denoiser,
    classifier_free,
    denoising_loss,
    dynamic_threshold,
    from_x0_noise,
    guidance,
    losses,
    noise_step,
    posterior,
    schedules,
    static_threshold,
    time_grid,
    to_x0_noise,
    transition,
)
from jaxdiff.denoisers import with_x_0
from jaxdiff.process import PREDICTIONS, learned_log_variance

DISCRETE, CONTINUOUS, FLOW = schedules.cosine(20), schedules.shifted_cosine(), schedules.flow()
X = jax.random.normal(jax.random.key(0), (3, 4))
NOISE = jax.random.normal(jax.random.key(1), (3, 4))
S, T = jnp.array([0.1, 0.35, 0.6]), jnp.array([0.15, 0.5, 0.95])
KEYS = jax.random.split(jax.random.key(2), 3)


def _marginal(schedule, t):
    return tuple(schedule(t))


def _network(x_t, t, cond=None):
    return jnp.tanh(x_t) * (1.0 + t[:, None])


def _two_headed(x_t, t, cond=None):
    return jnp.concatenate([_network(x_t, t), 0.5 * x_t], axis=-1)


COND, UNCOND = (as_denoiser(_network, schedule=CONTINUOUS, prediction=kind) for kind in ("v", "x_0"))
RESAMPLER = losses.loss_aware(20, history=1)


def _guided(make, scale=3.0, **options):
    return lambda x, t: make(COND, UNCOND, scale, **options)(x, t)[:2]


# name: (function of arrays, arguments with a leading batch axis). Its floating arguments are differentiated.
FUNCTIONS = {
    "schedule": (lambda t: tuple(DISCRETE(t)), (T,)),
    "time_of_log_snr": (CONTINUOUS.time_of_log_snr, (jnp.array([-3.0, 0.0, 5.0]),)),
    "log_snr": (lambda t: FLOW(t).log_snr, (T,)),
    "add_noise": (lambda x, n, t: add_noise(x, n, CONTINUOUS(t)), (X, NOISE, T)),
    "transition": (lambda s, t: tuple(transition(CONTINUOUS(s), CONTINUOUS(t))), (S, T)),
    "noise_step": (
        jax.vmap(lambda key, x, s, t: noise_step(key, x, s, t, DISCRETE)),
        (KEYS, X, S, T),
    ),
    "posterior": (lambda x, n, s, t: tuple(posterior(x, n, CONTINUOUS(s), CONTINUOUS(t))), (X, NOISE, S, T)),
    "learned_log_variance": (
        lambda f, s, t: learned_log_variance(f, CONTINUOUS(s), CONTINUOUS(t)),
        (jax.nn.sigmoid(X), S, T),
    ),
    "to_x0_noise": (lambda o, x, t: [to_x0_noise(k, o, x, CONTINUOUS(t)) for k in PREDICTIONS], (NOISE, X, T)),
    "from_x0_noise": (lambda x, n, t: [from_x0_noise(k, x, n, CONTINUOUS(t)) for k in PREDICTIONS], (X, NOISE, T)),
    "denoising_loss": (
        lambda keys, x: denoising_loss(keys, _network, x, schedule=DISCRETE, weighting=losses.min_snr()),
        (KEYS, X),
    ),
    "hybrid_loss": (lambda keys, x: losses.hybrid_loss(keys, _two_headed, x, schedule=DISCRETE), (KEYS, X)),
    "variational_bound": (
        lambda keys, x: (
            losses.variational_bound(keys, as_denoiser(_network, schedule=DISCRETE), x, schedule=DISCRETE).terms
        ),
        (KEYS, X),
    ),
    "prior_term": (lambda x: losses.prior_term(x, DISCRETE), (X,)),
    "uniforms": (losses.uniforms, (KEYS,)),
    "times": (
        lambda u: [
            sampling(u, FLOW)
            for sampling in (losses.uniform, losses.log_normal(), losses.logit_normal(), losses.uniform_log_snr())
        ],
        (T,),
    ),
    "weightings": (
        lambda t: [
            losses.output_weight(k, w, CONTINUOUS(t))
            for k in PREDICTIONS
            for w in (losses.min_snr(), losses.truncated_snr(), losses.p2(), losses.sigmoid(), losses.edm())
        ],
        (T,),
    ),
    "as_denoiser": (lambda x, t: as_denoiser(_network, schedule=DISCRETE)(x, t)[:2], (X, T)),
    "static_threshold": (lambda x, t: static_threshold(COND, schedule=CONTINUOUS)(3 * x, t)[:2], (X, T)),
    "dynamic_threshold": (lambda x, t: dynamic_threshold(COND, schedule=CONTINUOUS)(3 * x, t)[:2], (X, T)),
    "with_x_0": (lambda x, n, t: with_x_0(Prediction(x, n), 2 * x, CONTINUOUS(t))[:2], (X, NOISE, T)),
    "classifier_free": (_guided(classifier_free), (X, T)),
    "autoguidance": (_guided(guidance.autoguidance), (X, T)),
    "guidance_interval": (lambda x, t: guidance.guidance_interval(COND, UNCOND, 0.2, 0.7)(x, t)[:2], (X, T)),
    "rescaled_classifier_free": (_guided(guidance.rescaled_classifier_free, schedule=CONTINUOUS), (X, T)),
    "adaptive_projected": (_guided(guidance.adaptive_projected, schedule=CONTINUOUS, max_norm=0.5), (X, T)),
    "cfg_pp": (_guided(guidance.cfg_pp, 0.6), (X, T)),
    "cfg_zero_star": (_guided(guidance.cfg_zero_star, schedule=CONTINUOUS), (X, T)),
    "classifier_guidance": (
        lambda x, t: guidance.classifier_guidance(
            COND, lambda x, t: jnp.sum(jnp.tanh(x), axis=1), 2.0, schedule=CONTINUOUS
        )(x, t)[:2],
        (X, T),
    ),
}
# batch-wide by nature, so not vmapped over examples
STATEFUL = {
    "stratified": (lambda rows: losses.stratified(jax.random.key(0), rows, 3), (jnp.arange(3),)),
    "loss_aware_update": (lambda t, loss: RESAMPLER.update(RESAMPLER.init(), t, loss), (T, X[:, 0])),
    "loss_aware_sample": (lambda keys: RESAMPLER.sample(RESAMPLER.init(), keys), (KEYS,)),
    "time_grid": (lambda x: x + time_grid(DISCRETE, 3, "log_snr")[:3], (T,)),
}
# tables; functions of keys only; noise that is cut off; what is never differentiated; what holds its gradient back
NOT_SMOOTH = ("schedule", "uniforms", "noise_step", "times", "weightings", "variational_bound", "hybrid_loss")


def _close(found, expected):
    chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=2e-6)


EXPECTED = {}


def _expected(name):
    """The function without any transformation, computed once."""
    if name not in EXPECTED:
        function, arguments = (FUNCTIONS | STATEFUL)[name]
        EXPECTED[name] = function(*arguments)
    return EXPECTED[name]


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, with_pmap=True)
    @parameterized.named_parameters(*[(name, name) for name in FUNCTIONS | STATEFUL])
    def test_transformed(self, name):
        function, arguments = (FUNCTIONS | STATEFUL)[name]
        _close(self.variant(function)(*arguments), _expected(name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_over_examples_changes_nothing(name):
    """A batch of one, vmapped over the examples: example i does not see the others."""
    function, arguments = FUNCTIONS[name]

    def one(*example):
        return jax.tree.map(lambda a: a[0], function(*(a[None] for a in example)))

    _close(jax.jit(jax.vmap(one))(*arguments), _expected(name))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in NOT_SMOOTH])
def test_gradients_are_those_of_finite_differences(name):
    """Along a random direction of all floating arguments, in float64."""
    function, arguments = FUNCTIONS[name]
    smooth = [jnp.issubdtype(a.dtype, jnp.floating) for a in arguments]
    with jax.enable_x64(True):
        floats = [np.asarray(a, np.float64) for a, is_float in zip(arguments, smooth, strict=True) if is_float]
        keys = [a for a, is_float in zip(arguments, smooth, strict=True) if not is_float]
        rng = np.random.default_rng(0)
        direction = [rng.normal(size=a.shape) * 0.1 for a in floats]

        @jax.jit
        def total(step):
            moved = [a + step * d for a, d in zip(floats, direction, strict=True)]
            return sum(
                jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape))
                for leaf in jax.tree.leaves(function(*keys, *moved))
            )

        slope = float(jax.grad(total)(0.0))
        h = 1e-5
        assert slope == pytest.approx(float(total(h) - total(-h)) / (2 * h), rel=1e-5, abs=1e-7)
        assert np.isfinite(slope)
