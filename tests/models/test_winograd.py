"""Winograd's convolution against XLA's: values, gradients, what it leaves alone, and a whole network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxdiff.models import UNet, winograd

KEYS = jax.random.split(jax.random.key(0), 3)
# Programs that run once: compiling them plainly takes half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def direct(x, kernel, strides=(1, 1), padding=((1, 1), (1, 1))):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(("m", "bound"), [(2, 1e-6), (4, 1e-5)])
@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_values_and_gradients_are_those_of_the_convolution(m, bound, size):
    x, kernel = jax.random.normal(KEYS[0], (2, *size, 6)), jax.random.normal(KEYS[1], (3, 3, 6, 5))
    weights = jax.random.normal(KEYS[2], (2, *size, 5))

    def of(convolve):
        return jit(jax.value_and_grad(lambda x, kernel: jnp.vdot(weights, convolve(x, kernel)), (0, 1)))(x, kernel)

    ours, exact = of(lambda x, kernel: winograd.conv3x3(x, kernel, m)), of(direct)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * 6 * np.abs(b).max())


def test_it_is_exact_in_exact_arithmetic():
    """Small integers: F(2, 3) has halves only, so float32 makes no error at all; the border is zeros."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.integers(-4, 5, (1, 6, 6, 3)), jnp.float32)
    kernel = jnp.asarray(4 * generator.integers(-4, 5, (3, 3, 3, 2)), jnp.float32)
    np.testing.assert_array_equal(winograd.conv3x3(x, kernel, 2), direct(x, kernel))


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "padding"),
    [
        ((1, 16, 16, 32), (3, 3, 32, 32), (2, 2), ((0, 1), (0, 1))),
        ((1, 16, 16, 32), (1, 1, 32, 32), (1, 1), ((0, 0), (0, 0))),
        ((1, 16, 16, 3), (3, 3, 3, 32), (1, 1), ((1, 1), (1, 1))),
        ((1, 8, 8, 32), (3, 3, 32, 32), (1, 1), ((1, 1), (1, 1))),
    ],
)
def test_what_it_is_not_for_is_left_to_lax(shape, kernel, strides, padding):
    x, kernel = jnp.ones(shape), jnp.ones(kernel)
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    jaxpr = jax.make_jaxpr(lambda x, k: winograd.conv_general_dilated(x, k, strides, padding, **numbers))(x, kernel)
    assert [equation.primitive.name for equation in jaxpr.eqns] == ["conv_general_dilated"]


def test_a_network_computes_the_same():
    net = UNet(3, channels=32, channel_mults=(1,), blocks=1, attention_resolutions=())
    x, t = jax.random.normal(KEYS[0], (2, 16, 16, 3)), jnp.array([0.1, 0.9])
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, KEYS[1], x, t)
    params = jax.tree.map(lambda p: jnp.asarray(0.2 * generator.standard_normal(p.shape), p.dtype), shapes)
    other = net.clone(winograd=True)
    programs = [str(jax.make_jaxpr(model.apply)(params, x, t)).count("conv_general_dilated") for model in (net, other)]
    assert programs[0] > programs[1] > 0
    exact = jit(net.apply)(params, x, t)
    np.testing.assert_allclose(jit(other.apply)(params, x, t), exact, atol=1e-5 * float(jnp.abs(exact).max()))
