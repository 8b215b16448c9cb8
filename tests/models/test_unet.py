"""The U-Net as a whole: published sizes, structure, independence of examples, dtypes, remat, refusals."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import lax

from jaxdiff.models import UNet, check

KEY = jax.random.key(0)
# Programs that run once: compiling them plainly takes half the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SMALL = UNet(3, channels=8, channel_mults=(1, 2), blocks=1, attention_resolutions=(4,), dropout=0.5, num_classes=3)
ADM = SMALL.clone(time_injection="scale_shift", resample="resblock", head_dim=4)
CIFAR10 = UNet(3, dropout=0.1)
IMAGENET64 = UNet(
    6,
    channels=192,
    channel_mults=(1, 2, 3, 4),
    blocks=3,
    attention_resolutions=(32, 16, 8),
    head_dim=64,
    num_classes=1000,
    time_injection="scale_shift",
    resample="resblock",
    dtype="bfloat16",
)
X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 3)), jnp.float32)
T = jnp.array([0.0, 0.3, 0.6, 1.0])
COND = jnp.array([0, 1, 2, 3])
KEYS = jax.random.split(KEY, 4)


def abstract_params(net, size):
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((2,), jnp.float32)
    cond = jax.ShapeDtypeStruct((2,), jnp.int32) if net.num_classes else None
    return jax.eval_shape(net.init, KEY, x, t, cond)["params"]


def count(params):
    return sum(p.size for p in jax.tree.leaves(params))


@pytest.fixture
def unchecked_types(monkeypatch):
    """As in production, where nothing checks annotations before the network does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@functools.cache
def trained(net):
    """Parameters none of which is zero, as after training."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, KEY, X, T, COND)
    return jax.tree.map(lambda p: jnp.asarray(0.2 * generator.standard_normal(p.shape), p.dtype), shapes)


@functools.partial(jit, static_argnums=0)
def apply(net, params, x, t, cond, dropout_keys=None):
    return net.apply(params, x, t, cond, dropout_keys=dropout_keys)


@functools.partial(jit, static_argnums=0)
def loss_and_gradients(net, weights, params, x, t):
    """sum_i weights_i |output_i|^2 with dropout on, and its gradients by params, x and t."""

    def loss(params, x, t):
        y = net.apply(params, x, t, COND, dropout_keys=KEYS)
        return jnp.vdot(weights, jnp.sum(y**2, axis=(1, 2, 3)))

    return jax.value_and_grad(loss, (0, 1, 2))(params, x, t)


def equations(jaxpr):
    """All equations of a jaxpr, inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "eqns"):
                yield from equations(getattr(value, "jaxpr", value))


def test_ddpm_cifar10_has_its_published_size():
    assert count(abstract_params(CIFAR10, 32)) == 35_746_307


def test_ddpm_skips_are_taken_last_in_first_out():
    # Input channels of the up path in DDPM's CIFAR-10 network: h, then the skip pushed last.
    params = abstract_params(CIFAR10, 32)
    widths = [[params[f"up_{i}_block_{j}"]["conv1"]["kernel"].shape[2] for j in range(3)] for i in (3, 2, 1, 0)]
    assert widths == [[512, 512, 512], [512, 512, 512], [512, 512, 384], [384, 256, 256]]


def test_ddpm_attention_sits_at_16_and_in_the_middle():
    names = {name for name in abstract_params(CIFAR10, 32) if "attention" in name}
    down, up = ({f"{way}_1_attention_{j}" for j in range(n)} for way, n in (("down", 2), ("up", 3)))
    assert names == {"middle_attention"} | down | up


def adm_size(channels, mults, blocks, attention_levels, out_channels, num_classes):
    """Parameters of guided-diffusion's UNetModel (scale_shift_norm, resblock_updown), from its list of layers."""
    d = 4 * channels

    def conv(i, o, taps=9):
        return taps * i * o + o

    def res(i, o):
        return 2 * i + conv(i, o) + (d + 1) * 2 * o + 2 * o + conv(o, o) + (conv(i, o, 1) if i != o else 0)

    def attention(c):
        return 2 * c + conv(c, 3 * c, 1) + conv(c, c, 1)

    total = conv(channels, d, 1) + conv(d, d, 1) + num_classes * d + conv(3, channels)
    c, skips = channels, [channels]
    for i, mult in enumerate(mults):
        for _ in range(blocks):
            total += res(c, mult * channels) + (i in attention_levels) * attention(mult * channels)
            c = mult * channels
            skips.append(c)
        if i < len(mults) - 1:
            total += res(c, c)
            skips.append(c)
    total += 2 * res(c, c) + attention(c)
    for i, mult in reversed(list(enumerate(mults))):
        for _ in range(blocks + 1):
            total += res(c + skips.pop(), mult * channels) + (i in attention_levels) * attention(mult * channels)
            c = mult * channels
        total += res(c, c) if i > 0 else 0
    return total + 2 * c + conv(c, out_channels)


def test_adm_imagenet64_has_its_published_size_and_the_null_class():
    published = adm_size(192, (1, 2, 3, 4), 3, (1, 2, 3), 6, 1000)
    assert round(published / 1e6, 1) == 295.9
    assert count(abstract_params(IMAGENET64, 64)) == published + 4 * 192


@pytest.mark.parametrize("net", [SMALL, ADM])
def test_new_network_predicts_zero_and_a_trained_one_does_not(net):
    y, _ = jit(net.init_with_output)(KEY, X, T, COND)
    np.testing.assert_array_equal(y, jnp.zeros(X.shape))
    assert np.all(np.abs(apply(net, trained(net), X, T, COND)).max(axis=(1, 2, 3)) > 1e-2)


@pytest.mark.parametrize("net", [SMALL, ADM])
def test_examples_do_not_see_each_other(net):
    first = jnp.array([1.0, 0.0, 0.0, 0.0])
    _, (_, by_x, by_t) = loss_and_gradients(net, first, trained(net), X, T)
    assert np.any(np.asarray(by_x)[0] != 0) and by_t[0] != 0
    np.testing.assert_array_equal(np.asarray(by_x)[1:], 0.0)
    np.testing.assert_array_equal(np.asarray(by_t)[1:], 0.0)


def test_dropout_does_not_depend_on_the_batch():
    whole = np.asarray(apply(SMALL, trained(SMALL), X, T, COND, KEYS))
    parts = [apply(SMALL, trained(SMALL), X[i : i + 2], T[i : i + 2], COND[i : i + 2], KEYS[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-4, atol=1e-5)
    assert np.abs(whole - apply(SMALL, trained(SMALL), X, T, COND)).max() > 1e-2
    assert np.abs(whole - apply(SMALL, trained(SMALL), X, T, COND, KEYS[::-1])).max() > 1e-2


@pytest.mark.parametrize(("changes", "bound"), [({}, 2.5e-3), ({"resample": "resblock"}, 2.1e-3)])
def test_bfloat16_rounds_once_between_convolutions(changes, bound):
    """Bias, time, norm and SiLU in float32: rounding after each has errors half as large again."""
    net = UNet(3, channels=16, channel_mults=(1, 2), blocks=1, attention_resolutions=(4,), **changes)
    errors = []
    for seed in range(4):
        generator = np.random.default_rng(seed)
        params = jax.tree.map(
            lambda p, g=generator: g.standard_normal(p.shape, np.float32) * max(np.prod(p.shape[:-1]), 100) ** -0.5,
            jax.eval_shape(net.init, KEY, X, T, None),
        )
        exact, half = (np.asarray(apply(n, params, X, T, None)) for n in (net, net.clone(dtype="bfloat16")))
        errors.append(np.linalg.norm(half - exact) / np.linalg.norm(exact))
    assert np.mean(errors) < bound, errors


@pytest.mark.parametrize("net", [SMALL, ADM])
def test_bfloat16_policy(net):
    half = net.clone(dtype="bfloat16")
    assert {p.dtype for p in jax.tree.leaves(abstract_params(half, 8))} == {jnp.dtype("float32")}

    closed = jax.make_jaxpr(functools.partial(half.apply, dropout_keys=KEYS))(trained(net), X, T, COND)
    found = list(equations(closed.jaxpr))
    convolutions = [e.invars[0].aval.dtype for e in found if e.primitive is lax.conv_general_dilated_p]
    assert set(convolutions[:-1]) == {jnp.dtype("bfloat16")} and convolutions[-1] == jnp.float32
    dots = [e.invars[0].aval.dtype for e in found if e.primitive is lax.dot_general_p]
    assert set(dots[:2]) == {jnp.dtype("float32")}, "the time embedding's MLP"
    assert set(dots[2:]) == {jnp.dtype("bfloat16")}
    smooth = {lax.exp_p, lax.rsqrt_p, lax.sin_p, lax.cos_p, lax.logistic_p}  # softmax, norms, times, SiLU
    for e in found:
        if e.primitive in smooth:
            assert e.outvars[0].aval.dtype == jnp.float32, e

    y, expected = (np.asarray(apply(n, trained(net), X, T, COND)) for n in (half, net))
    assert y.dtype == np.float32
    error = np.abs(y - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.05


@pytest.mark.parametrize("net", [SMALL, ADM])
def test_remat_wraps_each_block(net):
    remat = net.clone(remat=True)
    assert abstract_params(remat, 8) == abstract_params(net, 8)
    jaxpr = jax.make_jaxpr(remat.apply)(trained(net), X, T, COND).jaxpr
    wrapped = [e for e in equations(jaxpr) if e.primitive.name.startswith(("remat", "checkpoint"))]
    blocks = [name for name in trained(net)["params"] if "block" in name or "attention" in name]
    assert len(wrapped) == len(blocks) + (2 if net.resample == "resblock" else 0)


def test_remat_changes_no_gradient_and_no_mask():
    plain, again = (loss_and_gradients(n, jnp.ones(4), trained(SMALL), X, T) for n in (SMALL, SMALL.clone(remat=True)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), plain, again)


def test_classes_change_the_output_and_the_null_class_is_one_of_them():
    x, t = X[:1].repeat(4, axis=0), jnp.full(4, 0.5, jnp.float32)
    y = np.asarray(apply(SMALL, trained(SMALL), x, t, COND))
    change = np.abs(y[:, None] - y[None]).max(axis=(2, 3, 4))
    assert np.all(change + np.eye(4) > 1e-3)
    beyond = apply(SMALL, trained(SMALL), x, t, jnp.array([0, 1, 2, 4]))
    np.testing.assert_array_equal(np.isnan(beyond).any(axis=(1, 2, 3)), [False, False, False, True])


def test_time_changes_the_output():
    x = X[:1].repeat(4, axis=0)
    y = np.asarray(apply(SMALL, trained(SMALL), x, T, jnp.zeros(4, jnp.int32)))
    assert np.abs(np.diff(y, axis=0)).max(axis=(1, 2, 3)).min() > 1e-3


def test_vmap():
    single = jax.vmap(lambda x, t, cond: SMALL.apply(trained(SMALL), x[None], t[None], cond[None])[0])
    whole = apply(SMALL, trained(SMALL), X, T, COND)
    np.testing.assert_allclose(jit(single)(X, T, COND), whole, rtol=1e-4, atol=1e-4)


def test_gradients():
    weights = jnp.ones(4)
    value, (by_params, by_x, _) = loss_and_gradients(SMALL, weights, trained(SMALL), X, T)
    for gradient in map(np.asarray, jax.tree.leaves(by_params)):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)
    norm = np.linalg.norm(by_x)
    step = 1e-3 * np.asarray(by_x) / norm
    up, down = (loss_and_gradients(SMALL, weights, trained(SMALL), X + d, T)[0] for d in (step, -step))
    np.testing.assert_allclose((up - down) / 2e-3, norm, rtol=2e-2)
    assert down < value < up


def test_patches_are_pixels_of_many_channels():
    """With patch 2 the network is that of the image whose pixels are the patches, cut here by hand."""
    net = SMALL.clone(patch=2, attention_resolutions=())
    whole = net.clone(out_channels=12, patch=1)
    batch, h, w, c = X.shape
    cut = jnp.stack([X[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=3).reshape(batch, h // 2, w // 2, 4 * c)
    y = apply(net, trained(net), X, T, COND)
    expected = apply(whole, trained(net), cut, T, COND)
    for channels, (i, j) in zip(jnp.split(expected, 4, axis=-1), ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        np.testing.assert_array_equal(y[:, i::2, j::2], channels)


def test_levels_say_where_to_attend_at_any_height_and_with_how_many_heads():
    levels = SMALL.clone(attention_resolutions=(), attention_levels=(1,), num_heads=(1, 4))
    heights = SMALL.clone(attention_resolutions=(4,), head_dim=4)  # 16 channels at level 1
    np.testing.assert_array_equal(*(apply(net, trained(heights), X, T, COND) for net in (levels, heights)))
    names = jax.eval_shape(levels.init, KEY, jnp.zeros((1, 6, 16, 3)), T[:1], COND[:1])["params"].keys()
    assert {name for name in names if "attention" in name} == {
        *("down_1_attention_0", "middle_attention", "up_1_attention_0", "up_1_attention_1")
    }


def test_images_need_not_be_square():
    x = jnp.zeros((1, 4, 8, 3))
    net = SMALL.clone(num_classes=0)
    assert jax.eval_shape(net.init_with_output, KEY, x, jnp.zeros(1))[0].shape == x.shape


@pytest.mark.parametrize(
    ("changes", "shape", "right"),
    [
        ({"channel_mults": (1, 2, 2)}, (30, 32, 3), "multiples of 4"),
        ({"patch": 4, "channel_mults": (1, 2)}, (28, 28, 3), "multiples of 8"),
        ({"patch": 0}, (32, 32, 3), "at least 1"),
        ({}, (8, 8), r"\(h, w, c\)"),
        ({"channels": 6}, (8, 8, 3), "multiple of 4"),
        ({"channel_mults": ()}, (8, 8, 3), "one or more"),
        ({"channel_mults": (1, 0)}, (8, 8, 3), "positive"),
        ({"blocks": 0}, (8, 8, 3), "at least 1"),
        ({"attention_resolutions": (4, 16)}, (8, 8, 3), r"\[16\] never occur; .* \[8, 4\]"),
        ({"head_dim": 3}, (8, 8, 3), "must divide the 16 channels at height 4"),
        ({"head_dim": 16, "attention_resolutions": (8,)}, (8, 8, 3), "must divide the 8 channels at height 8"),
        ({"head_dim": 0}, (8, 8, 3), "must divide"),
        ({"dropout": 1.0}, (8, 8, 3), r"\[0, 1\)"),
        ({"num_classes": -1}, (8, 8, 3), "0 .unconditional. or more"),
        ({"time_injection": "film"}, (8, 8, 3), "add, scale_shift"),
        ({"resample": "pool"}, (8, 8, 3), "conv, resblock"),
        ({"dtype": "float16"}, (8, 8, 3), "float32, bfloat16"),
        ({"downsample_padding": "start"}, (8, 8, 3), "end, both"),
        ({"frequency_shift": 2}, (8, 8, 3), "0, 1"),
        ({"time_scale": 0.0}, (8, 8, 3), "time_scale is 0.0"),
        ({"norm_groups": 3}, (8, 8, 3), r"must divide the channels of every level, \[8, 16\]"),
        ({"num_heads": 16}, (8, 8, 3), r"must divide the channels of every level, \[8, 16\]"),
        ({"num_heads": 2, "head_dim": 4}, (8, 8, 3), "give one of them"),
        ({"num_heads": (2, 2, 2)}, (8, 8, 3), "one number, or one for each of 2 levels"),
        ({"num_heads": (3, 2)}, (8, 8, 3), "must divide the channels"),
        ({"attention_levels": (2,), "attention_resolutions": ()}, (8, 8, 3), r"must be of 0\.\.1"),
        ({"attention_levels": (1,)}, (8, 8, 3), "give one of them"),
        ({"blocks": 65}, (8, 8, 3), "at most 64"),
        ({"channel_mults": (1, 65)}, (8, 8, 3), "at most 64"),
        ({"norm_eps": 1.0}, (8, 8, 3), r"1e-12\.\.0\.1"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(changes, shape, right, unchecked_types):
    check(SMALL, (8, 8, 3))
    with pytest.raises(ValueError, match=right):
        check(SMALL.clone(**changes), shape)


def test_calls_that_do_not_fit_are_refused(unchecked_types):
    with pytest.raises(ValueError, match="multiples of 2"):
        SMALL.init(KEY, X[:, :7], T, COND)
    with pytest.raises(ValueError, match="one time an image"):
        SMALL.init(KEY, X, T[:2], COND)
    with pytest.raises(ValueError, match="pass cond"):
        SMALL.init(KEY, X, T)
    with pytest.raises(ValueError, match="must be None"):
        SMALL.clone(num_classes=0).init(KEY, X, T, COND)
    with pytest.raises(ValueError, match="one integer an image"):
        SMALL.init(KEY, X, T, COND[:2])
