"""Weightings: one weighting is the same objective for every parameterisation, and finite where the loss is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import Marginal, losses, to_x0_noise
from jaxdiff.assembly.recipe import make_recipe, make_setting
from jaxdiff.config import Config, Diffusion
from jaxdiff.models import DiT
from jaxdiff.objectives import Denoising
from jaxdiff.process import PREDICTIONS

WEIGHTINGS = {
    "min_snr": losses.min_snr(),
    "truncated_snr": losses.truncated_snr(),
    "p2": losses.p2(gamma=0.5, k=2.0),
    "sigmoid": losses.sigmoid(-2.0),
    "edm": losses.edm(),
}
LOG_SNR = np.linspace(-20, 20, 81)
NO_SIGNAL = Marginal(jnp.array([0.0]), jnp.array([1.0]))


def _grid(family):
    ratio = np.exp(-0.5 * LOG_SNR)
    alpha = {"vp": 1 / np.hypot(1, ratio), "ve": np.ones_like(ratio), "flow": 1 / (1 + ratio)}[family]
    return Marginal(jnp.asarray(alpha, jnp.float32), jnp.asarray(alpha * ratio, jnp.float32))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_two_forms_are_one_weighting(name):
    weights = WEIGHTINGS[name](jnp.asarray(LOG_SNR, jnp.float32))
    np.testing.assert_allclose(weights.x_0, np.exp(LOG_SNR) * weights.noise, rtol=2e-5)


@pytest.mark.parametrize("family", ["vp", "ve", "flow"])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_an_error_costs_the_same_in_every_parameterisation(kind, family):
    """A change of the output by 1 changes noise and x_0 by what the hub says; the weighted cost is that of either."""
    m, one, zero = _grid(family), jnp.ones((81,)), jnp.zeros((81,))
    x_0, noise = (a - b for a, b in zip(to_x0_noise(kind, one, zero, m), to_x0_noise(kind, zero, zero, m), strict=True))
    for weighting in WEIGHTINGS.values():
        got = np.asarray(losses.output_weight(kind, weighting, m))
        weights = weighting(m.log_snr)
        expected = np.where(LOG_SNR > 0, weights.noise * np.square(noise), weights.x_0 * np.square(x_0))
        np.testing.assert_allclose(got, expected, rtol=3e-5)


def test_weights_at_snr_0():
    """Trap 22. What is infinite there is the weight of an error that a noise prediction cannot make."""
    at = {
        (name, kind): float(losses.output_weight(kind, weighting, NO_SIGNAL)[0])
        for name, weighting in WEIGHTINGS.items()
        for kind in ("noise", "x_0", "v", "flow", "edm")
    }
    assert all(np.isfinite(weight) for (_, kind), weight in at.items() if kind != "noise")
    expected = {"min_snr": (1, 0, 0), "truncated_snr": (np.inf, 1, 1), "p2": (2**-0.5, 0, 0), "sigmoid": (1, 0, 0)}
    for name, (noise, x_0, v) in expected.items():
        assert [at[name, kind] for kind in ("noise", "x_0", "v")] == pytest.approx([noise, x_0, v])
    assert at["edm", "edm"] == pytest.approx(1.0) and at["edm", "x_0"] == pytest.approx(4.0)


def test_published_forms():
    m, snr = _grid("vp"), np.exp(LOG_SNR)

    def weight(kind, weighting, m=m):
        return np.asarray(losses.output_weight(kind, weighting, m), np.float64)

    near = {"rtol": 3e-5}
    np.testing.assert_allclose(weight("noise", losses.min_snr(5.0)), np.minimum(snr, 5) / snr, **near)
    np.testing.assert_allclose(weight("x_0", losses.min_snr(5.0)), np.minimum(snr, 5), **near)
    np.testing.assert_allclose(weight("v", losses.min_snr(5.0)), np.minimum(snr, 5) / (snr + 1), **near)
    np.testing.assert_allclose(weight("x_0", losses.truncated_snr()), np.maximum(snr, 1), **near)
    np.testing.assert_allclose(weight("noise", losses.p2(2.0, 0.5)), (0.5 + snr) ** -2.0, **near)
    np.testing.assert_allclose(weight("noise", losses.sigmoid(-2.0)), 1 / (1 + np.exp(2 + LOG_SNR)), **near)
    np.testing.assert_allclose(weight("v", losses.edm(1.0)), 1, **near)  # SNR + 1 is the v loss
    ve = _grid("ve")
    sigma = np.asarray(ve.sigma, np.float64)
    np.testing.assert_allclose(weight("x_0", losses.edm(), ve), (sigma**2 + 0.25) / (0.5 * sigma) ** 2, **near)
    for family in ("vp", "ve", "flow"):
        np.testing.assert_allclose(weight("edm", losses.edm(), _grid(family)), 1, **near)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.min_snr(0.0), "gamma must be positive, got 0.0"),
        (lambda: losses.p2(1.0, -1.0), "k must be positive, got -1.0"),
        (lambda: losses.p2(-0.5), "gamma must be finite, >= 0, got -0.5"),
        (lambda: losses.p2(float("inf")), "gamma must be finite, >= 0, got inf"),
        (lambda: losses.p2(float("nan")), "gamma must be finite, >= 0, got nan"),
        (lambda: losses.sigmoid(1e4), "bias must lie in [-80, 80] (its exponential is a float32), got 10000.0"),
        (lambda: losses.edm(0.0), "data_std must be positive"),
        (lambda: losses.output_weight("eps", losses.min_snr(), NO_SIGNAL), "choose one of noise, x_0, v"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


class _Zero:
    """A network that predicts zero, whatever its parameters."""

    def apply(self, variables, x_t, t, cond, dropout_keys=None):
        return jnp.zeros_like(x_t)


def test_learned_uncertainty_finds_the_loss_of_each_noise_level():
    """v = alpha noise - sigma x_0 with x_0 = 3: of a prediction of zero the loss is alpha^2 + 9 sigma^2."""
    config = Config(model=DiT(), diffusion=Diffusion(prediction="v"), objective=Denoising(uncertainty=True))
    recipe = make_recipe(config, (8, 8, 1))
    codec = recipe.codec._replace(encode=lambda params, image: jnp.full(image.shape, 3.0))
    objective = config.objective.make(make_setting(config, recipe._replace(codec=codec, network=_Zero())))
    batch, optimizer = {"image": jnp.zeros((64, 8, 8, 1), jnp.uint8)}, optax.adam(0.1)

    def step(carry, key):
        loss = lambda p: objective.loss(p, {}, batch, jax.random.split(key, 64)).mean()  # noqa: E731
        value, grads = jax.value_and_grad(loss)(carry[0])
        updates, state = optimizer.update(grads, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), value

    params = {"objective": objective.params()}
    keys = jax.random.split(jax.random.key(0), 300)
    (params, _), values = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, optimizer.init(params)))
    m = recipe.schedule(jnp.linspace(0.1, 0.9, 9))
    found = losses.weightings.uncertainty().log_loss(params["objective"], m.log_snr)
    np.testing.assert_allclose(found, jnp.log(m.alpha**2 + 9 * m.sigma**2), atol=0.2)
    assert values[-20:].mean() < values[:5].mean() - 1
