"""What networks are conditioned on: each condition reaches the output, those of other examples do not, and refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxdiff.models import EDM2, NETWORKS, DiT, Hourglass, Model, UNet

KEY = jax.random.key(0)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
generator = np.random.default_rng(0)


def floats(*shape):
    return jnp.asarray(generator.standard_normal(shape), jnp.float32)


OPTIONS = {
    "unet": Model(
        channels=8, channel_mults=(1, 2), blocks=1, attention_levels=(1,), num_heads=(1, 2), num_classes=3, patch=2
    ),
    "dit": DiT(width=8, depth=2, num_heads=2, num_classes=3),
    "hourglass": Hourglass(widths=(8, 8), blocks=(1, 1), num_heads=2, num_classes=3),
}
X, T = floats(3, 8, 12, 5), jnp.array([0.1, 0.5, 0.9])  # neither square nor of three channels
COND = {
    "label": jnp.array([0, 2, 3]),
    "text": floats(3, 4, 6),
    "mask": jnp.array([[True, True, True, False]] * 3),
    "pooled": floats(3, 7),
    "image": floats(3, 8, 12, 2),
    "guidance": jnp.array([1.0, 4.0, 7.5]),
    "r": jnp.array([0.0, 0.2, 0.9]),
}


@functools.cache
def trained(name):
    """A network of five channels and parameters none of which is zero, under all conditions."""
    net = OPTIONS[name].module(5)
    shapes = jax.eval_shape(net.init, KEY, X, T, COND)
    values = np.random.default_rng(1)
    return net, jax.tree.map(lambda p: jnp.asarray(0.2 * values.standard_normal(p.shape), p.dtype), shapes)


@functools.cache
def program(name):
    net, params = trained(name)
    return functools.partial(jit(net.apply), params)


@pytest.fixture
def unchecked_types(monkeypatch):
    """As in production, where nothing checks annotations before the network does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_every_network_has_options_here():
    """EDM2's takes labels alone, and two towers draw nothing."""
    assert OPTIONS.keys() | {"edm2", "two_towers"} == NETWORKS.members.keys()
    with pytest.raises(ValueError, match="text"):
        EDM2(channels=4, num_classes=3).check((8, 8, 3), ["label", "text"])
    assert all(type(options) is NETWORKS.members[name] for name, options in OPTIONS.items())


@pytest.mark.parametrize("name", OPTIONS)
def test_every_condition_reaches_its_own_example_alone(name):
    y = np.asarray(program(name)(X, T, COND))
    assert y.shape == X.shape and np.all(np.isfinite(y))
    for condition, value in COND.items():
        changed = value.at[0].set(~value[0] if value.dtype == bool else value[0] + 1)
        found = np.asarray(program(name)(X, T, COND | {condition: changed}))
        assert np.abs(found[0] - y[0]).max() > 1e-4, condition
        np.testing.assert_array_equal(found[1:], y[1:], err_msg=condition)


@pytest.mark.parametrize("name", OPTIONS)
def test_masked_tokens_are_not_seen(name):
    y, noise = program(name)(X, T, COND), COND["text"].at[:, 3].set(100.0)
    np.testing.assert_array_equal(program(name)(X, T, COND | {"text": noise}), y)


@pytest.mark.parametrize("name", OPTIONS)
def test_new_vectors_change_nothing_at_first(name):
    """So that a trained network may be given them: a guidance scale, a second time."""
    net, params = trained(name)
    new = jax.tree.map(lambda leaf: leaf, params)
    for vector in ("guidance", "r", "pooled"):
        found = net.init(KEY, X, T, COND)["params"]["embedding"][vector]
        new["params"]["embedding"][vector] = found
    y = program(name).func(new, X, T, COND)
    other = COND | {name: COND[name] + 1 for name in ("guidance", "r", "pooled")}
    np.testing.assert_array_equal(program(name).func(new, X, T, other), y)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_bare_array_is_a_label_or_a_text(name):
    options = OPTIONS[name]
    for net, bare, named in (
        (options.module(5), COND["label"], {"label": COND["label"]}),
        (NETWORKS.members[name](**vars(options) | {"num_classes": 0}).module(5), COND["text"], {"text": COND["text"]}),
    ):
        first, second = (jax.eval_shape(net.init, KEY, X, T, cond) for cond in (bare, named))
        assert first == second


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({"label": None}, "pass cond with a label, 0 to 3"),
        ({"label": jnp.zeros(3)}, r"label is float32\[3\]; it must be one integer an image"),
        ({"text": jnp.zeros((3, 4))}, r"text is .*; it must be floats \[batch, tokens, width\]"),
        ({"mask": jnp.ones((3, 3), bool)}, "as many as the text has"),
        ({"mask": jnp.ones((3, 4))}, "booleans"),
        ({"image": jnp.zeros((3, 12, 8, 2))}, "of x's sides"),
        ({"image": jnp.zeros((3, 8, 12, 3))}, "have 8 channels; .* initialised with 7"),
        ({"image": None}, "have 5 channels; .* initialised with 7"),
        ({"guidance": jnp.zeros(2)}, "one number an image"),
        ({"guidance": None}, "initialised with the condition guidance; pass it"),
        ({"text": None, "mask": None}, "initialised with the condition text; pass it"),
        ({"text": None}, "pass the text that it is of"),
        ({"prompt": jnp.zeros(3)}, "cond has prompt; its names must be of label, text"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, changes, right, unchecked_types):
    net, params = trained(name)
    cond = {key: value for key, value in (COND | changes).items() if value is not None}
    with pytest.raises(ValueError, match=right) as error:
        net.apply(params, X, T, cond)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OPTIONS)
def test_conditions_that_a_network_was_not_initialised_with_are_refused(name):
    net = OPTIONS[name].module(5)
    params = {"params": jax.eval_shape(net.init, KEY, X, T, COND["label"])["params"]}
    for condition in ("text", "pooled", "guidance", "r"):
        with pytest.raises(ValueError, match=f"without the condition {condition}; leave it out"):
            jax.eval_shape(net.apply, params, X, T, {"label": COND["label"], condition: COND[condition]})


@pytest.mark.parametrize("name", OPTIONS)
def test_options_check_names(name):
    options = OPTIONS[name]
    options.check((8, 12, 5), COND)
    for cond, right in (
        ([], "pass cond with a label"),
        (["label", "prompt"], "cond has prompt"),
        (["label", "mask"], "pass the text"),
    ):
        with pytest.raises(ValueError, match=right):
            options.check((8, 12, 5), cond)
    with pytest.raises(ValueError, match="label must be None"):
        NETWORKS.members[name](**vars(options) | {"num_classes": 0}).check((8, 12, 5), ["label"])


def test_unet_has_the_fields_of_its_options_and_their_defaults():
    """The two lists of fields, which a Linen module and a frozen dataclass cannot share."""
    net = UNet(3)
    assert {name: getattr(net, name) for name in vars(Model())} == vars(Model())
    own = {"out_channels", "parent", "name"}
    assert UNet.__dataclass_fields__.keys() - own == vars(Model()).keys()
    assert {f: UNet.__annotations__[f] for f in vars(Model())} == {f.name: f.type for f in dataclasses.fields(Model)}
