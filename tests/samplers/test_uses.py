"""Ways of calling `sample`: inpainting, image to image, inversion, between two seeds; each against a closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from tests.oracles import MIXTURE, gaussian

VP, FLOW = jd.schedules.continuous_vp(), jd.schedules.flow()
NUM = 100_000


def test_image_to_image_forgets_as_much_as_the_noise_hides():
    """Noise to t and ancestral steps back to s: N(0, 1), with correlation alpha_t^2/alpha_s to where it came from."""
    times, data = np.float32([1.0, 0.6, 0.4, 0.2, 0.1])[2:], gaussian([0.0], [1.0])
    keys, x_0 = jd.sample_keys(jax.random.key(0), NUM), jax.random.normal(jax.random.key(1), (NUM, 1))
    m_t, m_s = VP(times[0]), VP(times[-1])
    x_t = jd.add_noise(x_0, jax.random.normal(jax.random.key(2), x_0.shape), m_t)
    denoise, sampler = data.denoiser(VP), jd.samplers.ddpm("large")  # exact on N(0, 1), but for a step to 0
    run = jax.jit(lambda x_t: jd.sample(keys, denoise, sampler, times=times, schedule=VP, x_T=x_t))
    x = np.asarray(run(x_t), np.float64)
    products = x * np.asarray(x_0)
    assert abs(x.mean()) < 4 / NUM**0.5 and abs(x.std() - 1) < 4 / (2 * NUM) ** 0.5
    assert abs(products.mean() - float(m_t.alpha**2 / m_s.alpha)) < 4 * products.std() / NUM**0.5
    assert 0.1 < float(m_t.alpha) ** 2 < 0.9


def conditional(value):
    """Mean and standard deviation of the mixture's second entry where its first is `value`."""
    near = MIXTURE.weights * np.exp(-0.5 * ((value - MIXTURE.means[:, 0]) / MIXTURE.scales[:, 0]) ** 2)
    share = near / MIXTURE.scales[:, 0] / np.sum(near / MIXTURE.scales[:, 0])
    mean = share @ MIXTURE.means[:, 1]
    return mean, np.sqrt(share @ (MIXTURE.scales[:, 1] ** 2 + MIXTURE.means[:, 1] ** 2) - mean**2)


@pytest.mark.parametrize("value", [0.8, -1.0])
def test_inpainting_draws_what_goes_with_the_known_part(value):
    """The known entry exactly; the other from its law given that one. What is not known is not read."""
    times = jd.time_grid(FLOW, 60)  # RePaint's spread is short by 0.02 at 30 steps, 0.006 at 60
    keys, known = jd.sample_keys(jax.random.key(0), 4000), jnp.tile(jnp.array([[value, jnp.nan]]), (4000, 1))
    mask = jnp.array([[True, False]])

    @jax.jit
    def run(known):
        sampler = jd.samplers.inpaint(jd.samplers.heun(), mask, known, rounds=10)
        return jd.sample(keys, MIXTURE.denoiser(FLOW), sampler, shape=(2,), times=times, schedule=FLOW)

    x = np.asarray(run(known))
    np.testing.assert_array_equal(x[:, 0], np.float32(value))
    mean, std = conditional(value)
    free_mean, free_covariance = MIXTURE.moments()
    assert abs(mean - free_mean[1]) > 0.2 and free_covariance[1, 1] ** 0.5 - std > 0.035
    assert abs(x[:, 1].mean() - mean) < 0.02 and abs(x[:, 1].std() - std) < 0.02


def test_inpainting_all_or_nothing():
    """All known: the known. Nothing known, one round: what the sampler itself would draw from those keys' parts."""
    times = jd.time_grid(FLOW, 6)
    keys, known = jd.sample_keys(jax.random.key(0), 5), jax.random.normal(jax.random.key(1), (5, 2))
    run = functools.partial(jd.sample, keys, MIXTURE.denoiser(FLOW), shape=(2,), times=times, schedule=FLOW)
    all_known = run(sampler=jd.samplers.inpaint(jd.samplers.ddim(), jnp.array([[True]]), known))
    np.testing.assert_array_equal(all_known, known)
    nothing = run(sampler=jd.samplers.inpaint(jd.samplers.ddim(), jnp.array([[False]]), known))
    np.testing.assert_allclose(nothing, run(sampler=jd.samplers.ddim()), atol=1e-6)


def test_inpainting_refuses():
    mask, known = jnp.array([[True]]), jnp.zeros((2, 2))
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        jd.samplers.inpaint(jd.samplers.ddim(), mask, known, rounds=0)
    for name in ("dpmpp_2m", "unipc", "plms"):
        with pytest.raises(ValueError, match="takes a sampler without memory"):
            jd.samplers.inpaint(jd.samplers.by_name(name), mask, known)


def test_inversion_leads_back_to_its_start():
    """Up along the times and down again, on the mixture: the more iterations the nearer, in the end to rounding."""
    times = np.linspace(0.0, 0.9, 21)
    errors = []
    with jax.enable_x64(True):
        x_0 = MIXTURE.draw(jax.random.key(0), 64).astype(jnp.float64)
        keys, denoise = jd.sample_keys(jax.random.key(0), 64), MIXTURE.denoiser(FLOW)
        for iterations in (1, 3, 60):

            @jax.jit
            def there_and_back(x_0, iterations=iterations):
                up, down = jd.samplers.ddim_inversion(iterations), jd.samplers.ddim()
                x_t = jd.sample(keys, denoise, up, times=times, schedule=FLOW, x_T=x_0)
                return x_t, jd.sample(keys, denoise, down, times=times[::-1], schedule=FLOW, x_T=x_t)

            x_t, x = there_and_back(x_0)
            errors.append(float(jnp.abs(x - x_0).max()))
    assert np.std(np.asarray(x_t)) > 0.7 and np.abs(np.asarray(x_t - x_0)).max() > 0.5
    assert errors[0] > 5 * errors[1] > 1e-9 and errors[2] < 1e-12, errors


def test_slerp_walks_the_great_circle():
    a, b = (jax.random.normal(jax.random.key(i), (3, 4, 4, 2)) for i in (0, 1))
    np.testing.assert_allclose(jd.samplers.slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(jd.samplers.slerp(a, b, 1.0), b, atol=1e-6)
    unit_a, unit_b = (x / np.linalg.norm(x.reshape(3, -1), axis=1).reshape(3, 1, 1, 1) for x in (a, b))
    fraction = jnp.array([0.1, 0.5, 0.8])
    mixed = np.asarray(jd.samplers.slerp(unit_a, unit_b, fraction)).reshape(3, -1)
    whole = np.arccos(np.sum(np.asarray(unit_a * unit_b).reshape(3, -1), axis=1))
    walked = np.arccos(np.sum(np.asarray(unit_a).reshape(3, -1) * mixed, axis=1))
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(walked, fraction * whole, rtol=1e-4)
    np.testing.assert_allclose(jd.samplers.slerp(a, 3 * a, 0.25), 1.5 * a, rtol=1e-5)


def test_slerp_of_noise_is_noise():
    """Half-way between two seeds the variance is 1 to 1 part in the dimension; on a line it would be 1/2."""
    a, b = (jax.random.normal(jax.random.key(i), (64, 4096)) for i in (2, 3))
    assert float(jd.samplers.slerp(a, b, 0.5).std()) == pytest.approx(1.0, abs=0.02)
    assert float((0.5 * a + 0.5 * b).std()) == pytest.approx(0.5**0.5, abs=0.02)
