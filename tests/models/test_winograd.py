"""Winograd's convolution against XLA's: values, gradients, what it is not for, a whole network, sampling with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxdiff import schedules
from jaxdiff.codecs import pixels
from jaxdiff.conditioning import nothing
from jaxdiff.diffusion import Recipe, denoiser
from jaxdiff.models import UNet, winograd

KEYS = jax.random.split(jax.random.key(0), 3)
# Programs that run once: compiling them plainly takes half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def direct(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def ours(x, kernel):
    return winograd.convolve(x, winograd.transform(kernel))


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-14)])
def test_values_and_gradients_are_those_of_the_convolution(dtype, bound, size):
    """Within 1e-5 of the largest in float32; in float64 as exact as that, so the constants are right."""
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        x, kernel, weights = (
            jnp.asarray(generator.standard_normal(shape), dtype)
            for shape in ((2, *size, 6), (3, 3, 6, 5), (2, *size, 5))
        )

        def of(convolve):
            return jit(jax.value_and_grad(lambda x, kernel: jnp.vdot(weights, convolve(x, kernel)), (0, 1)))(x, kernel)

        for a, b in zip(jax.tree.leaves(of(ours)), jax.tree.leaves(of(direct)), strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=bound * 6 * np.abs(b).max())


@pytest.mark.parametrize(
    ("shape", "channels", "dtype"),
    [
        ((1, 16, 16, 3), 32, "float32"),
        ((1, 8, 8, 32), 32, "float32"),
        ((1, 16, 16, 32), 32, "bfloat16"),
        ((1, 16, 16, 32), 16, "float32"),
    ],
)
def test_what_it_is_not_for_is_left_to_xla(shape, channels, dtype):
    layer = winograd.Conv3x3(channels, dtype, jax.nn.initializers.ones)
    names = str(jax.make_jaxpr(lambda key, x: layer.init_with_output(key, x)[0])(KEYS[0], jnp.ones(shape)))
    assert "conv_general_dilated" in names and "dot_general" not in names


@pytest.fixture(scope="module")
def network():
    net = UNet(3, channels=32, channel_mults=(1,), blocks=1, attention_resolutions=())
    x, t = jax.random.normal(KEYS[0], (2, 16, 16, 3)), jnp.array([0.1, 0.9])
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, KEYS[1], x, t)["params"]
    params = jax.tree.map(lambda p: jnp.asarray(0.2 * generator.standard_normal(p.shape), p.dtype), shapes)
    other = net.clone(winograd=True)
    assert jax.tree.structure(jax.eval_shape(other.init, KEYS[1], x, t)["params"]) == jax.tree.structure(params)
    return net, other, params, (x, t)


def test_a_network_computes_the_same(network):
    net, other, params, inputs = network
    variables = {"params": params}
    programs = [
        str(jax.make_jaxpr(model.apply)(variables, *inputs)).count("conv_general_dilated") for model in (net, other)
    ]
    assert programs[0] > programs[1] > 0
    exact, found = (jit(model.apply)(variables, *inputs) for model in (net, other))
    np.testing.assert_allclose(found, exact, atol=1e-5 * float(jnp.abs(exact).max()))
    again = jit(other.apply)(winograd.prepared(params), *inputs)
    np.testing.assert_allclose(again, found, atol=1e-6 * float(jnp.abs(exact).max()))


def test_kernels_are_transformed_once_however_many_steps(network):
    """A denoiser's calls, as in a sampler's loop, hold no product with G; making it holds one a kernel."""
    *_, params, (x, t) = network
    made = Recipe(
        schedules.cosine(),
        "noise",
        UNet(3, channels=32, channel_mults=(1,), blocks=1, attention_resolutions=(), winograd=True),
        nothing(),
        pixels(),
        (16, 16, 3),
        prepare=winograd.prepared,
    )

    def steps(params, x):
        denoise = denoiser(made, params, {})
        return lax.scan(lambda x, t: (denoise(x, t).x_0, None), x, t)[0]

    def transforms(jaxpr):
        own = [e for e in jaxpr.eqns if e.primitive.name == "dot_general" and e.invars[0].aval.shape == (36, 9)]
        inner = [e.params["jaxpr"].jaxpr for e in jaxpr.eqns if e.primitive.name in ("scan", "jit")]
        return len(own), sum(sum(transforms(body)) for body in inner)

    outside, inside = transforms(jax.make_jaxpr(steps)(params, x).jaxpr)
    assert (outside > 0, inside) == (True, 0)
