"""Slips of the hand that would give garbage or an error of another's: each is a line that says what was meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.models import conditions

SCHEDULE = jd.schedules.cosine()
KEYS = jd.sample_keys(jax.random.key(0), 4)
TIMES = jd.time_grid(SCHEDULE, 3)


def zero(x, t, cond=None):
    return jnp.zeros_like(x)


DENOISE = jd.as_denoiser(zero, schedule=SCHEDULE)


def draw(keys=KEYS, sampler="ddim", **options):
    how = {"shape": (2,), "times": TIMES, "schedule": SCHEDULE, **options}
    return jd.sample(keys, DENOISE, sampler, **how)


def loss(key=KEYS, **options):
    return jd.denoising_loss(key, zero, jnp.ones((4, 2)), **{"schedule": SCHEDULE, **options})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: draw(sampler="dimm"), "unknown sampler 'dimm'; choose one of ddpm"),
        (lambda: draw(times=TIMES[::-1]), r"inversion, of given x_T; .* times\[::-1\]"),
        (lambda: draw(jax.random.key(0)), r"sample_keys\(key, num\) makes them; got one key"),
        (lambda: draw(jax.random.PRNGKey(0)), "got one key"),
        (lambda: draw(jnp.zeros(4)), r"made by jax.random.key; got an array \(4,\) of float32"),
        (lambda: jd.sample_keys(KEYS, 4), "from one key; got 4 of them"),
        (
            lambda: conditions.check_arrays({}, jnp.zeros((1, 2, 2, 1)), jnp.array([9.0]), {}, 1),
            r"takes times in \[0, 1\], t/T of step t",
        ),
        (lambda: jd.schedules.from_function(lambda t: (1 - 0.5 * t, 0.1 + t)), "clean data, .* got 1 and 0.1"),
        (lambda: jd.schedules.from_function(lambda t: (1 - t, jnp.minimum(t, 0.5) * 0)), "must fall with t"),
        (lambda: jd.schedules.from_function(lambda t: (1 - t, jnp.log(t))), "must be finite and >= 0"),
    ],
)
def test_a_slip_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("family", "value"),
    [
        (jd.samplers.SAMPLERS, jd.samplers.ddim),
        (jd.schedules.SCHEDULES, jd.schedules.flow),
        (jd.losses.WEIGHTINGS, jd.losses.min_snr),
        (jd.losses.TIME_SAMPLINGS, jd.losses.log_normal),
    ],
)
def test_a_factory_is_to_be_called(family, value):
    with pytest.raises(ValueError, match=rf"{value.__name__} makes a .*: call it, {value.__name__}\(\)"):
        family.made(value)


def test_a_batch_as_the_shape_of_one_sample_is_warned_of():
    with pytest.warns(UserWarning, match=r"shape \(4, 8, 8, 1\) is that of one sample; for 4 images it is \(8, 8, 1\)"):
        draw(shape=(4, 8, 8, 1))


def test_a_name_stands_for_the_member():
    np.testing.assert_array_equal(draw(sampler="ddpm"), draw(sampler=jd.samplers.ddpm()))
    np.testing.assert_array_equal(loss(weighting="min_snr"), loss(weighting=jd.losses.min_snr()))
    np.testing.assert_array_equal(loss(schedule="flow"), loss(schedule=jd.schedules.flow()))
    np.testing.assert_array_equal(jd.time_grid("flow", 5), jd.time_grid(jd.schedules.flow(), 5))
    np.testing.assert_array_equal(draw(schedule="cosine"), draw())


def test_keys_of_either_kind_are_the_same_everywhere():
    old = jax.random.PRNGKey(3)
    new, of_old = jd.sample_keys(jax.random.key(3), 4), jd.sample_keys(old, 4)
    np.testing.assert_array_equal(draw(new), draw(jax.random.key_data(of_old)))
    np.testing.assert_array_equal(loss(jax.random.key(3)), loss(old))
    np.testing.assert_array_equal(loss(new), loss(jax.random.key_data(new)))


def test_a_schedule_of_a_function_alone_is_the_schedule():
    flow, own = jd.schedules.flow(), jd.schedules.from_function(lambda t: (1 - t, t))
    t = jnp.linspace(0.0, 1.0, 101)
    np.testing.assert_allclose(own(t).alpha, flow(t).alpha, atol=1e-6)
    log_snr = flow(t[1:-1]).log_snr
    np.testing.assert_allclose(own.time_of_log_snr(log_snr), t[1:-1], atol=1e-5)
    assert own.time_of_log_snr(jnp.array([jnp.inf, -jnp.inf])).tolist() == [0.0, 1.0]
    np.testing.assert_allclose(jd.time_grid(own, 5, "karras"), jd.time_grid(flow, 5, "karras"), atol=1e-4)
    np.testing.assert_allclose(draw(schedule=own), draw(schedule=flow), atol=1e-6)


def test_a_weighting_of_a_function_alone_is_the_weighting():
    sigmoid, own = jd.losses.sigmoid(1.0), jd.losses.from_log_snr(lambda log_snr: jax.nn.sigmoid(1.0 - log_snr))
    for prediction in ("noise", "x_0", "v"):
        a, b = (loss(weighting=weighting, prediction=prediction) for weighting in (sigmoid, own))
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert np.isfinite(np.concatenate(own(jnp.array([-jnp.inf, jnp.inf])))).all()


def test_parts_say_what_they_are():
    assert repr(jd.schedules.cosine()) == "<Schedule from_betas, 1000 steps>"
    assert repr(jd.schedules.flow()) == "<Schedule flow, continuous>"
    assert repr(jd.samplers.heun()) == "<Sampler heun, 2 evaluations a step>"
