"""The denoising loss: its floor on Gaussian data, weightings across parameterisations, keys, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import denoising_loss, from_x0_noise, losses, schedules
from jaxdiff.process import PREDICTIONS
from tests.oracles import as_network

LINEAR = schedules.linear()
ZERO_SNR = LINEAR.rescale_zero_snr()


def _loss(key, predict, x_0, t=None, **options):
    """denoising_loss, compiled."""
    return jax.jit(lambda key, x_0, t: denoising_loss(key, predict, x_0, t=t, **options))(key, x_0, t)


def _best(schedule, kind, scale=1.0):
    """The network of the given kind that knows N(0, scale^2): closed forms of x_0 and noise, put out as that kind."""

    def predict(x_t, t, cond=None):
        m = schedule(t).like(x_t)
        v = m.alpha**2 * scale**2 + m.sigma**2
        return from_x0_noise(kind, m.alpha * scale**2 * x_t / v, m.sigma * x_t / v, schedule(t))

    return as_network(kind, schedule, predict)


@pytest.mark.parametrize(("name", "floor"), [("linear", 0.27551), ("cosine", 0.49558)])
def test_loss_of_the_best_network_is_the_floor(name, floor):
    schedule = getattr(schedules, name)()
    x_0 = jax.random.normal(jax.random.key(1), (200_000, 1))
    t = losses.uniform(losses.stratified(jax.random.key(2), jnp.arange(200_000), 200_000), schedule)
    loss = _loss(jax.random.key(0), _best(schedule, "noise"), x_0, schedule=schedule, t=t)
    assert abs(float(loss.mean()) - floor) < 4 * float(loss.std()) / np.sqrt(200_000)


def test_loss_is_the_mean_square_over_an_example():
    flow, errors = schedules.flow(), jnp.arange(3.0)

    def predict(x_t, t, cond):  # exact for x_0 = 0, but for one pixel
        return x_t / flow(t).like(x_t).sigma + jnp.zeros((3, 4, 4, 2)).at[:, 0, 0, 0].set(errors)

    loss = _loss(jax.random.key(0), predict, jnp.zeros((3, 4, 4, 2)), schedule=flow)
    np.testing.assert_allclose(loss, errors**2 / 32, atol=1e-6)


@pytest.mark.parametrize("name", ["min_snr", "truncated_snr", "p2", "sigmoid", "edm"])
def test_a_weighted_loss_is_the_same_for_every_prediction(name):
    """The same (imperfect) denoiser behind each parameterisation, the same draws: the same loss."""
    weighting, x_0 = getattr(losses, name)(), jax.random.normal(jax.random.key(0), (64, 3))
    found = jax.jit(
        lambda key: {
            kind: denoising_loss(
                key, _best(LINEAR, kind, 0.5), x_0, schedule=LINEAR, prediction=kind, weighting=weighting
            )
            for kind in PREDICTIONS
        }
    )(jax.random.key(1))
    for kind in PREDICTIONS:
        np.testing.assert_allclose(found[kind], found["noise"], rtol=2e-3)


@pytest.mark.parametrize("kind", ["x_0", "v", "flow", "edm"])
def test_loss_and_gradient_are_finite_without_signal(kind):
    """Trap 22: at t = 1 of zero terminal SNR, for every weighting and every prediction that may be used there."""

    def loss(scale, name):
        predict, weighting = (lambda x_t, t, cond: scale * x_t), getattr(losses, name)()
        key, x_0, t = jax.random.key(0), jnp.ones((2, 3)), jnp.ones(2)
        return denoising_loss(key, predict, x_0, schedule=ZERO_SNR, prediction=kind, weighting=weighting, t=t).sum()

    names = ("min_snr", "truncated_snr", "p2", "sigmoid", "edm")
    found = jax.jit(lambda scale: [jax.value_and_grad(loss)(scale, name) for name in names])(0.3)
    assert np.all(np.isfinite(np.array(found)))


def test_example_i_depends_on_its_own_key_alone():
    keys, x_0 = jax.random.split(jax.random.key(0), 6), jax.random.normal(jax.random.key(1), (6, 4))
    predict = _best(LINEAR, "noise", 0.5)
    whole = _loss(keys, predict, x_0, schedule=LINEAR)
    part = _loss(keys[2:4], predict, x_0[2:4], schedule=LINEAR)
    np.testing.assert_allclose(part, whole[2:4], rtol=1e-6)
    one_key = _loss(jax.random.key(5), predict, x_0, schedule=LINEAR)
    folded = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(jnp.arange(6))
    np.testing.assert_allclose(one_key, _loss(folded, predict, x_0, schedule=LINEAR), rtol=1e-6)


def test_time_and_noise_are_drawn_with_different_keys():
    """Trap 30. Correlation over many examples of u and one noise value."""
    seen = {}

    def predict(x_t, t, cond=None):
        seen.update(x_t=x_t, t=t)
        return x_t

    denoising_loss(jax.random.key(0), predict, jnp.zeros((20_000, 1)), schedule=schedules.edm())
    noise = seen["x_t"][:, 0] / schedules.edm()(seen["t"]).sigma
    for draw in (noise, noise**2):
        assert abs(np.corrcoef(draw, seen["t"])[0, 1]) < 4 / np.sqrt(20_000)
    assert abs(float(noise.mean())) < 4 / np.sqrt(20_000) and abs(float(noise.std()) - 1) < 4 / np.sqrt(40_000)


def test_times_may_be_given_or_sampled_otherwise():
    seen = []

    def predict(x_t, t, cond=None):
        seen.append((t, cond))
        return x_t

    x_0, t, flow = jnp.zeros((5, 2)), jnp.linspace(0.1, 0.9, 5), schedules.flow()
    given = denoising_loss(jax.random.key(0), predict, x_0, schedule=flow, t=t, cond="label")
    np.testing.assert_array_equal(seen[0][0], t)
    assert seen[0][1] == "label"
    sampled = denoising_loss(jax.random.key(0), predict, x_0, schedule=flow, time_sampling=lambda u, schedule: t)
    np.testing.assert_array_equal(given, sampled)
    denoising_loss(jax.random.key(0), predict, x_0, schedule=flow, time_sampling=losses.log_normal(-30.0, 0.1))
    np.testing.assert_allclose(seen[2][0], 1e-5)


def test_bfloat16_networks_have_float32_losses():
    x_0 = jax.random.normal(jax.random.key(0), (8, 16))

    def predict(x_t, t, cond=None):
        return _best(LINEAR, "noise")(x_t, t).astype(jnp.bfloat16)

    loss = _loss(jax.random.key(1), predict, x_0, schedule=LINEAR)
    exact = _loss(jax.random.key(1), _best(LINEAR, "noise"), x_0, schedule=LINEAR)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, exact, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction": "eps"}, "unknown prediction 'eps'; choose one of noise, x_0, v, flow, score, edm"),
        ({"key": jnp.zeros(3)}, "made by jax.random.key"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, "one key or 2 of them"),
        ({"predict": lambda x_t, t, cond: x_t[..., None]}, "predict returned shape (2, 4, 1) for x_t of shape (2, 4)"),
        ({"t": jnp.array([0.5, 1.5])}, "t must lie in [0, 1]"),
    ],
)
def test_refusals(arguments, message):
    call = {"key": jax.random.key(0), "predict": lambda x_t, t, cond: x_t, "x_0": jnp.zeros((2, 4))} | arguments
    with pytest.raises(ValueError) as error:
        denoising_loss(call.pop("key"), call.pop("predict"), call.pop("x_0"), schedule=LINEAR, **call)
    assert message in str(error.value)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("weighting", [None, losses.min_snr()], ids=["plain", "min-SNR"])
def test_the_loss_has_the_type_of_x_under_x64(dtype, weighting):
    with jax.enable_x64(True):
        x_0 = jnp.ones((2, 3), dtype)
        for prediction in ("noise", "x_0", "v", "edm"):
            found = denoising_loss(
                jax.random.key(0),
                lambda x_t, t, cond: x_t,
                x_0,
                schedule=schedules.cosine(),
                prediction=prediction,
                weighting=weighting,
            )
            assert found.dtype == dtype
