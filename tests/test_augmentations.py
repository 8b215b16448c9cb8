"""Augmentation: known transformations, what the network is told, and where: in training, never in samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.assembly.recipe import make_recipe, make_setting
from jaxdiff.assembly.training_program import example
from jaxdiff.augmentations import AUGMENTATIONS, crop, edm, warp
from jaxdiff.config import Config, Data, validate
from jaxdiff.models import DiT
from jaxdiff.objectives.base import seen

IMAGES = np.random.default_rng(0).uniform(-1, 1, (64, 6, 8, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 64)


def test_warps_are_the_turns_shifts_and_scalings_of_numpy():
    square, still, none = jnp.asarray(IMAGES[0, :, :6]), jnp.eye(2), jnp.zeros(2)
    np.testing.assert_array_equal(warp(square, still, none), square)
    quarter = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    np.testing.assert_allclose(warp(square, quarter, none), np.rot90(square, -1), atol=1e-6)
    moved = np.pad(square, ((2, 0), (0, 1), (0, 0)), mode="reflect")[:6, 1:]  # 1 to the left, 2 down
    np.testing.assert_allclose(warp(square, still, jnp.array([-1.0, 2.0])), moved, atol=1e-6)
    ramp = jnp.broadcast_to(jnp.arange(6.0)[None, :, None] - 2.5, (6, 6, 1))
    np.testing.assert_allclose(warp(ramp, still / 2, none), ramp / 2, atol=1e-6)


def test_edm_tells_all_that_it_does_and_leaves_alone_what_it_tells_nothing_of():
    changed, told = map(np.asarray, jax.jit(jax.vmap(edm(0.3).apply))(KEYS, IMAGES))
    flips, rest = told[:, :2].astype(bool), told[:, 2:]
    still = ~rest.any(axis=1)
    assert 0.05 < still.mean() < 0.5 and 0.3 < flips[:, 0].mean() < 0.7 and 0.05 < flips[:, 1].mean() < 0.3
    for i in np.flatnonzero(still):
        expected = IMAGES[i, :: -1 if flips[i, 1] else 1, :: -1 if flips[i, 0] else 1]
        np.testing.assert_array_equal(changed[i], expected)
    assert np.abs(changed[~still] - IMAGES[~still]).max(axis=(1, 2, 3)).min() > 0.01
    assert np.all((rest != 0).mean(axis=0) > 0.1), "each of the seven numbers is used"
    moved_alone = ~told[:, 2:7].any(axis=1) & told[:, 7:].any(axis=1)
    for i in np.flatnonzero(moved_alone):
        image = IMAGES[i, :: -1 if flips[i, 1] else 1, :: -1 if flips[i, 0] else 1]
        again = warp(jnp.asarray(image), jnp.eye(2), 0.125 * jnp.asarray(told[i, 7:]) * jnp.array([8.0, 6.0]))
        np.testing.assert_allclose(changed[i], again, atol=1e-5)
    assert moved_alone.any()
    turned = ~told[:, [2, 5, 6, 7, 8]].any(axis=1) & told[:, 4].astype(bool) & ~flips.any(axis=1)
    for i in np.flatnonzero(turned):
        cos, sin = 1 + told[i, 3], told[i, 4]
        assert cos**2 + sin**2 == pytest.approx(1, abs=1e-5)
        again = warp(jnp.asarray(IMAGES[i]), jnp.array([[cos, sin], [-sin, cos]]), jnp.zeros(2))
        np.testing.assert_allclose(changed[i], again, atol=1e-4)


def test_crops_are_all_places_and_an_image_is_changed_by_its_own_key():
    ramp = np.broadcast_to(np.arange(48.0, dtype=np.float32).reshape(6, 8, 1), (64, 6, 8, 1))
    found = np.asarray(jax.vmap(crop(1).apply)(KEYS, ramp)[0])
    inside = np.pad(ramp[0], ((1, 1), (1, 1), (0, 0)), mode="reflect")
    corners = [inside[y : y + 6, x : x + 8] for y in range(3) for x in range(3)]
    places = [[(corner == image).all() for corner in corners] for image in found]
    assert np.sum(places, axis=1).min() == 1 and np.any(places, axis=0).all()
    np.testing.assert_array_equal(jax.vmap(crop(1).apply)(KEYS[7:9], ramp[7:9])[0], found[7:9])


def test_training_is_told_and_samples_are_told_nothing_was_done():
    """Hidden conditions hide the class and not the augmentation; held-out images are left alone, and told so."""
    data = Data(augmentation="edm", augmentation_options={"p": 1.0})
    config = Config(data=data, model=DiT(width=8, depth=1, num_heads=1, num_classes=2))
    config = validate(dataclasses.replace(config, diffusion=dataclasses.replace(config.diffusion, class_dropout=1.0)))
    recipe = make_recipe(config, (6, 8, 3))
    batch = {"image": jnp.zeros((4, 6, 8, 3), jnp.uint8).at[:, :3].set(255), "label": jnp.arange(4) % 2}
    setting = make_setting(config, recipe)
    params = jax.eval_shape(recipe.network.init, KEYS[0], *example(recipe))["params"]
    params = jax.tree.map(lambda p: 0.1 * jnp.ones(p.shape), params)
    told = seen(setting, params, {}, batch, KEYS[:4])
    assert np.all(told.cond["augment"][:, 2:] != 0) and np.all(told.cond["label"] == 2)
    plain = seen(setting._replace(augmentation=None), params, {}, batch, KEYS[:4])
    np.testing.assert_array_equal(plain.cond["augment"], 0)
    assert np.all(plain.keys == told.keys) and np.abs(told.x_0 - plain.x_0).max() > 0.1
    for cond in (recipe.embed({}, jax.tree.map(jnp.asarray, recipe.conditioner.parse([], 4))), recipe.null({}, 4)):
        np.testing.assert_array_equal(cond["augment"], np.zeros((4, 9)))
    x, t = plain.x_0, jnp.full(4, 0.5)
    one, other = (recipe.network.apply({"params": params}, x, t, cond) for cond in (told.cond, plain.cond))
    assert np.abs(one - other).max() > 1e-4, "the network sees what it is told"
    losses = config.objective.make(setting).loss(params, {}, batch, KEYS[:4])
    assert losses.shape == (4,) and np.all(np.isfinite(losses))


@pytest.mark.parametrize(
    ("name", "options", "right"),
    [
        ("edm", {"p": 2.0}, r"p must lie in \[0, 1\]"),
        ("crop", {"padding": 0}, "at least 1"),
        ("edn", {}, "choose one of none, crop, edm"),
    ],
)
def test_what_cannot_be_is_refused(name, options, right):
    with pytest.raises(ValueError, match=right):
        AUGMENTATIONS.build(name, options)
