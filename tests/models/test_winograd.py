"""Winograd's convolution against XLA's: values, gradients, where it is used, a whole network, sampling with it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxdiff.models import UNet, layers, ops, winograd

KEYS = jax.random.split(jax.random.key(0), 3)
# Programs that run once: compiling them plainly takes half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def direct(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
@pytest.mark.parametrize(("dtype", "bound", "cache"), [("float32", 1e-5, 0), ("float64", 1e-14, 2**19)])
def test_values_and_gradients_are_those_of_the_convolution(dtype, bound, cache, size, monkeypatch):
    """Within 1e-5 of the largest in float32; in float64 as exact as that, so the constants are right."""
    monkeypatch.setattr(ops, "IN_CACHE", cache)
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        x, kernel, weights = (
            jnp.asarray(generator.standard_normal(shape), dtype)
            for shape in ((2, *size, 6), (3, 3, 6, 5), (2, *size, 5))
        )

        def of(convolve):
            def loss(x, kernel):
                return jnp.vdot(weights, convolve(x, kernel))

            def slope(x):  # forward mode, to be differentiated backwards
                return jax.jvp(lambda *args: convolve(*args) ** 2, (x, kernel), (x**2, kernel[::-1]))[1].sum()

            return jit(lambda x, kernel: (jax.value_and_grad(loss, (0, 1))(x, kernel), jax.grad(slope)(x)))(x, kernel)

        for a, b in zip(jax.tree.leaves(of(ops._transformed)), jax.tree.leaves(of(direct)), strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=bound * 6 * np.abs(b).max())


def lowered(platform, fn, *args):
    return jax.jit(fn).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
@pytest.mark.parametrize(("derived", "batch", "mixed"), [(False, 2, False), (True, 2, False), (True, 128, True)])
def test_the_platform_that_a_program_is_for_decides(platform, derived, batch, mixed):
    """On a machine without TPUs too, where their programs are compiled for planning; forward and backward."""

    def loss(x, kernel):
        return jnp.sum(ops.conv3x3(x, kernel) ** 2)

    fn = jax.grad(loss, (0, 1)) if derived else loss
    text = lowered(platform, fn, jnp.ones((batch, 16, 16, 32)), jnp.ones((3, 3, 32, 32)))
    assert ("stablehlo.dot_general" in text) == (platform == "cpu")
    assert ("stablehlo.convolution" in text) == (platform != "cpu" or mixed)


@pytest.mark.parametrize(
    ("shape", "channels", "dtype"),
    [
        ((1, 16, 16, 3), 32, "float32"),
        ((1, 8, 8, 32), 32, "float32"),
        ((1, 32, 8, 32), 32, "float32"),
        ((1, 16, 16, 32), 32, "bfloat16"),
        ((1, 16, 16, 32), 16, "float32"),
    ],
)
def test_what_it_is_not_for_is_the_plain_program(shape, channels, dtype):
    """Bit for bit that of nn.Conv, once rounded: a network of small images is what it was before there was a choice."""
    args = {"dtype": jnp.dtype(dtype), "kernel_init": jax.nn.initializers.normal()}
    pair = layers.Conv3x3(channels, **args), nn.Conv(channels, (3, 3), padding=1, **args)
    x = jax.random.normal(KEYS[0], shape)
    plain, ours = (jit(net.init_with_output)(KEYS[1], x)[0] for net in pair)
    np.testing.assert_array_equal(plain.astype(ours.dtype), ours)  # ours is float32 still: what comes next rounds
    names = str(jax.make_jaxpr(lambda x: pair[0].init_with_output(KEYS[1], x)[0])(x))
    assert "conv_general_dilated" in names and "platform" not in names


@pytest.fixture(scope="module")
def network():
    net = UNet(3, channels=32, channel_mults=(1,), blocks=1, attention_resolutions=())
    x, t = jax.random.normal(KEYS[0], (2, 16, 16, 3)), jnp.array([0.1, 0.9])
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, KEYS[1], x, t)["params"]
    params = jax.tree.map(lambda p: jnp.asarray(0.2 * generator.standard_normal(p.shape), p.dtype), shapes)
    return net, params, (x, t)


def test_a_network_computes_the_same(network, monkeypatch):
    net, params, inputs = network
    variables = {"params": params}
    found, again = (
        jit(lambda v, *inputs: net.apply(v, *inputs))(v, *inputs) for v in (variables, winograd.prepared(params))
    )
    few = lowered("cpu", net.apply, variables, *inputs).count("stablehlo.convolution")
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", {})
    many = lowered("cpu", lambda *args: net.apply(*args), variables, *inputs).count("stablehlo.convolution")
    exact = jit(lambda v, *inputs: net.apply(v, *inputs))(variables, *inputs)
    assert many > few > 0
    np.testing.assert_allclose(found, exact, atol=1e-5 * float(jnp.abs(exact).max()))
    np.testing.assert_allclose(again, found, atol=1e-6 * float(jnp.abs(exact).max()))


def test_kernels_are_transformed_once_however_many_steps(network):
    """The body of a loop over times, as in a sampler, holds no product with G; the program before it one a kernel."""
    net, params, (x, t) = network

    def steps(params, x):
        variables = winograd.prepared(params)
        return lax.scan(lambda x, t: (net.apply(variables, x, jnp.full(2, t)), None), x, t)[0]

    def count(jaxpr):
        own = [e for e in jaxpr.eqns if e.primitive.name == "dot_general" and e.invars[0].aval.shape == (36, 9)]
        return len(own) + sum(count(getattr(v, "jaxpr", v)) for e in jaxpr.eqns for v in inner(e))

    def inner(equation):
        return [v for v in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")) if hasattr(v, "eqns")]

    jaxpr = jax.make_jaxpr(steps)(params, x).jaxpr
    inside = sum(count(v.jaxpr) for e in jaxpr.eqns if e.primitive.name == "scan" for v in inner(e))
    assert (count(jaxpr) > 0, inside) == (True, 0)


def test_nothing_is_prepared_where_nothing_is_gained():
    assert winograd.prepared({"conv1": {"kernel": jnp.ones((3, 3, 8, 64))}}).keys() == {"params"}
