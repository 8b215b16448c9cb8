"""The U-Net's layers, against definitions, closed forms and the plain formulations they rewrite."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax import lax

from jaxdiff.models import layers

KEY = jax.random.key(0)
# Programs that run once: compiling them plainly takes half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def new(net, *args):
    return jit(net.init)(KEY, *args)


def apply(net, params, *args):
    return jit(net.apply)(params, *args)


def capture(net, params, *args):
    """The output, and each layer's by name."""
    y, state = jit(functools.partial(net.apply, capture_intermediates=True))(params, *args)
    return y, {name: layer["__call__"][0] for name, layer in state["intermediates"].items() if name != "__call__"}


def trained(net, *args):
    """Parameters none of which is zero, as after training."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, KEY, *args)
    return jax.tree.map(lambda p: jnp.asarray(0.3 * generator.standard_normal(p.shape), p.dtype), shapes)


@pytest.mark.parametrize("shift", [1, 0])
def test_time_embedding_is_that_of_integer_steps(shift):
    k, half = np.arange(1001), 64
    angles = k[:, None] * np.exp(-np.log(10000.0) * np.arange(half) / (half - shift))[None, :]
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    embed = jit(layers.timestep_embedding, static_argnums=(1, 2))
    emb = embed(jnp.asarray(k / 1000, jnp.float32), 2 * half, shift)
    assert emb.dtype == jnp.float32
    np.testing.assert_allclose(emb, expected, rtol=0, atol=2e-4)


def test_times_too_close_for_bfloat16_embed_apart():
    near, far = layers.timestep_embedding(jnp.array([0.999, 1.0]), 32)
    assert jnp.abs(near - far).max() > 0.5


def test_groups():
    for channels in range(4, 1200, 4):
        groups = layers.group_count(channels)
        assert channels % groups == 0 and groups <= 32 and channels // groups >= 4
        if channels >= 128 and channels % 32 == 0:
            assert groups == 32


@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (2, 3, 5, 4), (1, 8, 8, 2)])
def test_subpixel_upsampling_is_nearest_then_convolution(shape):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    weights = np.linspace(-1.0, 1.0, 4 * shape[0] * shape[1] * shape[2] * 5, dtype=np.float32)
    weights = weights.reshape(shape[0], 2 * shape[1], 2 * shape[2], 5)
    subpixel, plain = layers.UpsampleConv(5), nn.Conv(5, (3, 3), padding="SAME")
    params = trained(subpixel, x)
    shapes = jax.eval_shape(plain.init, KEY, jnp.zeros((*weights.shape[:3], shape[3])))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    @functools.partial(jit, static_argnums=0)
    def values_and_gradients(net, params, x):
        def loss(params, x):
            large = x if net is subpixel else jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            y = net.apply(params, large)
            return jnp.sum(weights * y**2), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    (_, y), gradients = values_and_gradients(subpixel, params, x)
    (_, expected), expected_gradients = values_and_gradients(plain, params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, gradients, expected_gradients)


def test_subpixel_upsampling_takes_four_ninths_of_the_products():
    x = jnp.zeros((1, 16, 16, 8))
    upsample = layers.UpsampleConv(8)
    params = trained(upsample, x)
    convolutions = [
        e for e in jax.make_jaxpr(upsample.apply)(params, x).eqns if e.primitive is lax.conv_general_dilated_p
    ]
    products = sum(e.outvars[0].aval.size * np.prod(e.invars[1].aval.shape[:3]) for e in convolutions)
    assert products * 9 == 4 * (32 * 32 * 8) * (3 * 3 * 8)


@pytest.mark.parametrize(("padding", "before"), [("end", 0), ("both", 1)])
@pytest.mark.parametrize("tap", [0, 1, 2])
def test_padding_of_strided_convolutions(padding, before, tap):
    # DDPM pads (0, 1): output i sees inputs 2i, 2i+1, 2i+2. ADM pads (1, 1): 2i-1, 2i, 2i+1. Zeros beyond the image.
    x = np.random.default_rng(0).standard_normal((1, 6, 6, 1), np.float32)
    conv = layers.conv3x3(1, jnp.float32, "conv", stride=2, padding=padding)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[tap, tap] = 1.0
    y = apply(conv, {"params": {"kernel": kernel, "bias": np.zeros(1, np.float32)}}, x)
    seen = 2 * np.arange(3) + tap - before
    expected = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, seen + 1][:, :, seen + 1]
    np.testing.assert_array_equal(y, expected)


class TwoDropouts(nn.Module):
    @nn.compact
    def __call__(self, x, keys):
        return layers.Dropout(0.25, name="a")(x, keys), layers.Dropout(0.25, name="b")(x, keys)


def test_dropout_masks_belong_to_the_examples():
    x = jnp.ones((6, 4, 4, 8))
    keys = jax.random.split(KEY, 6)
    whole, other_layer = apply(TwoDropouts(), {}, x, keys)
    parts = [apply(TwoDropouts(), {}, x[i : i + 2], keys[i : i + 2])[0] for i in (0, 2, 4)]
    np.testing.assert_array_equal(whole, jnp.concatenate(parts))
    order = jnp.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_array_equal(whole[order], apply(TwoDropouts(), {}, x, keys[order])[0])
    assert not jnp.array_equal(whole, other_layer)
    assert not jnp.array_equal(whole[0], whole[1])


def test_dropout_rate_and_scale():
    x = jnp.ones((8, 32, 32, 8))
    y = apply(layers.Dropout(0.25), {}, x, jax.random.split(KEY, 8))
    kept = y != 0
    np.testing.assert_allclose(y[kept], 1 / 0.75, rtol=1e-6)
    deviation = np.sqrt(0.25 * 0.75 / x.size)
    assert abs(kept.mean() - 0.75) < 4 * deviation
    np.testing.assert_array_equal(apply(layers.Dropout(0.25), {}, x, None), x)


def block(time_injection="add", resample=None, channels=8, dropout=0.0):
    return layers.ResBlock(channels, time_injection, dropout, jnp.float32, resample)


X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 8)), jnp.float32)
EMB = jnp.asarray(np.random.default_rng(1).standard_normal((2, 16)), jnp.float32)


@pytest.mark.parametrize("time_injection", ["add", "scale_shift"])
def test_new_block_is_the_identity(time_injection):
    net = block(time_injection)
    np.testing.assert_array_equal(apply(net, new(net, X, EMB), X, EMB), X)


def test_new_resampling_blocks_resample():
    up, down = block(resample="up"), block(resample="down")
    large = apply(up, new(up, X, EMB), X, EMB)
    np.testing.assert_array_equal(large, np.kron(X, np.ones((1, 2, 2, 1))))
    np.testing.assert_allclose(apply(down, new(down, X, EMB), large, EMB), X, rtol=1e-6)


@pytest.mark.parametrize("resample", ["up", "down"])
def test_resampling_blocks_resample_both_branches(resample):
    # With the convolutions reduced to their middle taps, what a block does to a constant image is what the block
    # without resampling does: any resampling keeps constants.
    x = jnp.broadcast_to(X[:, :1, :1], X.shape)
    net = block(resample=resample)
    params = trained(net, x, EMB)
    for name in ("conv1", "conv2"):
        kernel = params["params"][name]["kernel"]
        params["params"][name]["kernel"] = jnp.zeros_like(kernel).at[1, 1].set(kernel[1, 1])
    y, expected = apply(net, params, x, EMB), apply(block(), params, x, EMB)
    assert y.shape == ((2, 8, 8, 8) if resample == "up" else (2, 2, 2, 8))
    np.testing.assert_allclose(y, jnp.broadcast_to(expected[:, :1, :1], y.shape), rtol=1e-4, atol=1e-5)


def test_scale_and_shift():
    # scale = -1 removes what the second norm returns, for every input; then only shift is left.
    net = block("scale_shift", channels=12)
    params = trained(net, X, EMB)
    shift = jnp.linspace(-2.0, 2.0, 12)
    params["params"]["time"] = {
        "kernel": jnp.zeros((16, 24)),
        "bias": jnp.concatenate([-jnp.ones(12), shift]),
    }
    _, outputs = capture(net, params, X, EMB)
    dropped = outputs["dropout"]
    np.testing.assert_allclose(dropped, np.broadcast_to(shift * scipy.special.expit(shift), dropped.shape), rtol=1e-5)


@pytest.mark.parametrize("time_injection", ["add", "scale_shift"])
def test_time_reaches_the_output(time_injection):
    net = block(time_injection, channels=12)
    params = trained(net, X, EMB)
    change = apply(net, params, X, EMB) - apply(net, params, X, EMB + 1)
    assert jnp.all(jnp.abs(change).max(axis=(1, 2, 3)) > 1e-2)


def test_dropout_follows_the_second_norm_and_activation():
    net = block(dropout=0.5)
    params = trained(net, X, EMB)
    keys = jax.random.split(KEY, 2)
    _, outputs = capture(net, params, X, EMB, keys)
    norm, dropped = np.asarray(outputs["norm2"]), np.asarray(outputs["dropout"])
    active = norm * scipy.special.expit(norm)
    np.testing.assert_allclose(dropped, np.where(dropped != 0, active / 0.5, 0.0), rtol=1e-5)
    assert 0.3 < (dropped == 0).mean() < 0.7
    _, outputs = capture(net, params, X, EMB)
    np.testing.assert_allclose(outputs["dropout"], active, rtol=1e-5)


def test_attention_is_that_of_its_equation():
    # softmax(q k^T / sqrt(head_dim)) v a head, heads being consecutive channels.
    net = layers.SelfAttention(head_dim=4, dtype=jnp.float32)
    params = trained(net, X)
    y, outputs = capture(net, params, X)
    query, key, value = (
        np.asarray(outputs[name], np.float64).reshape(2, 16, 2, 4) for name in ("query", "key", "value")
    )
    heads = []
    for n in range(2):
        logits = query[:, :, n] @ key[:, :, n].transpose(0, 2, 1) / np.sqrt(4)
        heads.append(scipy.special.softmax(logits, axis=-1) @ value[:, :, n])
    attended = np.concatenate(heads, axis=-1).reshape(X.shape)
    proj = params["params"]["proj"]
    np.testing.assert_allclose(
        y, X + (attended @ np.asarray(proj["kernel"]) + np.asarray(proj["bias"])), rtol=1e-4, atol=1e-5
    )


def test_new_attention_is_the_identity_and_has_one_head_by_default():
    net = layers.SelfAttention(head_dim=None, dtype=jnp.float32)
    params = new(net, X)
    np.testing.assert_array_equal(apply(net, params, X), X)
    params = trained(net, X)
    np.testing.assert_array_equal(apply(net, params, X), apply(net.clone(head_dim=8), params, X))


def test_attention_has_no_positions():
    net = layers.SelfAttention(head_dim=4, dtype=jnp.float32)
    params = trained(net, X)
    np.testing.assert_allclose(apply(net, params, X[:, ::-1]), apply(net, params, X)[:, ::-1], rtol=1e-4, atol=1e-5)


def test_norm_is_float32_a_group_and_keeps_the_dtype():
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.group_norm(x, "norm", layers.Norm())

    # Mean 1000, deviation 0.1: a variance computed as E[x^2] - E[x]^2 in float32 would be noise.
    x = jnp.asarray(1000.0 + 0.1 * np.random.default_rng(0).standard_normal((2, 16, 16, 8)), jnp.float32)
    params = new(Norm(), x)
    y = apply(Norm(), params, x)
    groups = np.asarray(y).reshape(2, 256, 2, 4)
    np.testing.assert_allclose(groups.mean(axis=(1, 3)), 0.0, atol=1e-2)
    np.testing.assert_allclose(groups.std(axis=(1, 3)), 1.0, atol=1e-2)
    assert apply(Norm(), params, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_embedding_is_float32_and_adds_a_row_a_class():
    net = layers.Embedding(channels=8, num_classes=3)
    t, cond = jnp.array([0.1, 0.1, 0.7]), jnp.array([0, 3, 3])
    params = trained(net, t, cond)
    table = params["params"]["classes"]["embedding"]
    emb = apply(net, params, t, cond)
    assert table.shape == (4, 32) and emb.dtype == jnp.float32
    np.testing.assert_allclose(emb[0] - emb[1], table[0] - table[3], rtol=1e-4, atol=1e-5)
    assert jnp.abs(emb[1] - emb[2]).max() > 1e-2


def test_times_may_be_counted_in_larger_steps():
    """time_scale: both times, and no guidance scale."""
    t, cond = jnp.array([0.5, 1.0]), {"r": jnp.array([0.2, 0.7]), "guidance": jnp.array([1.5, 4.0])}
    params = trained(layers.Embedding(8, 0), t, cond)
    slow = apply(layers.Embedding(8, 0, time_scale=20.0), params, t, cond)
    np.testing.assert_allclose(slow, apply(layers.Embedding(8, 0), params, t / 50, cond | {"r": cond["r"] / 50}), 1e-4)
