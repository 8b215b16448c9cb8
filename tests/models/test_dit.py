"""The diffusion transformer: parity with diffusers, published size, one program for any depth, structure, refusals."""

import functools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxdiff.models import DiT
from jaxdiff.models.attention import rotated
from jaxdiff.models.dit import modulated, rope_angles
from tests.stable_diffusion import weight

FIXTURE = Path(__file__).parent.parent / "fixtures" / "dit"
KEY = jax.random.key(0)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SMALL = DiT(width=16, depth=3, num_heads=2, dropout=0.5, num_classes=3)
X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 8, 3)), jnp.float32)
T, COND, KEYS = jnp.array([0.0, 0.3, 1.0]), jnp.array([0, 1, 3]), jax.random.split(KEY, 3)
NAMES = {  # of a block's modules in diffusers
    "modulation": "norm1.linear",
    **{f"attention/{ours}": f"attn1.to_{theirs}" for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"))},
    "attention/proj": "attn1.to_out.0",
    "dense1": "ff.net.0.proj",
    "dense2": "ff.net.2",
}
EMBEDDING = "transformer_blocks.0.norm1.emb."


def changed(**options):
    return DiT(**vars(SMALL) | options)


@functools.cache
def trained(options):
    """A network of three channels, and parameters none of which is zero."""
    net, generator = options.module(3), np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, KEY, X, T, COND)
    return net, jax.tree.map(lambda p: jnp.asarray(0.2 * generator.standard_normal(p.shape), p.dtype), shapes)


@functools.partial(jit, static_argnums=0)
def apply(net, params, x, t, cond, dropout_keys=None):
    return net.apply(params, x, t, cond, dropout_keys=dropout_keys)


def theirs_as_ours(tensors, config):
    """diffusers' tensors as our tree: kernels transposed, blocks stacked, sines before cosines."""

    def dense(name):
        return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}

    def stacked(name):
        blocks = [dense(f"transformer_blocks.{i}.{name}") for i in range(config["num_layers"])]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)

    blocks = {}
    for ours, theirs in NAMES.items():
        *outer, name = ours.split("/")
        functools.reduce(lambda tree, key: tree.setdefault(key, {}), outer, blocks)[name] = stacked(theirs)
    patches = tensors["pos_embed.proj.weight"]
    first = dense(f"{EMBEDDING}timestep_embedder.linear_1")
    first["kernel"] = np.concatenate(np.split(first["kernel"], 2)[::-1])
    return {
        "embedding": {
            "dense1": first,
            "dense2": dense(f"{EMBEDDING}timestep_embedder.linear_2"),
            "classes": {"embedding": tensors[f"{EMBEDDING}class_embedder.embedding_table.weight"]},
        },
        "proj_in": {
            "kernel": patches.transpose(2, 3, 1, 0).reshape(-1, len(patches)),
            "bias": tensors["pos_embed.proj.bias"],
        },
        "blocks": blocks,
        "modulation": dense("proj_out_1"),
        "proj_out": dense("proj_out_2"),
    }


def test_it_computes_what_diffusers_does():
    about, io = json.loads((FIXTURE / "about.json").read_text()), np.load(FIXTURE / "io.npz")
    config = about["config"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    options = DiT(
        width=width,
        depth=config["num_layers"],
        num_heads=config["num_attention_heads"],
        num_classes=config["num_embeds_ada_norm"],
        frequency_shift=1,
    )
    params = theirs_as_ours({name: weight(name, shape) for name, shape in about["tensors"].items()}, config)
    x, output = (io[name].transpose(0, 2, 3, 1) for name in ("x", "output"))
    t = (io["timesteps"] / 1000).astype(np.float32)
    y = apply(options.module(config["out_channels"]), {"params": params}, x, t, jnp.asarray(io["labels"], jnp.int32))
    assert np.abs(y - output).max() <= 2e-5 * np.abs(output).max()  # at k = 999 float32 rounds the angles to 6e-5


def test_dit_xl_2_has_its_published_size():
    """The paper's code counts 675,129,632 at 32x32x4 with learned variance, the 256 fixed positions among them."""
    net = DiT(width=1152, depth=28, num_heads=16, num_classes=1000).module(8)
    x, t = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(net.init, KEY, x, t, jax.ShapeDtypeStruct((1,), jnp.int32))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) + 256 * 1152 == 675_129_632


def test_the_program_does_not_grow_with_the_depth():
    """Forward and backward, plain and rematerialised."""
    for remat in (False, True):
        sizes = []
        for depth in (2, 9):
            net, params = trained(changed(depth=depth, remat=remat))

            def loss(params, net=net):
                return jnp.sum(net.apply(params, X, T, COND, dropout_keys=KEYS) ** 2)

            sizes.append(len(jax.jit(jax.grad(loss)).lower(params).as_text().splitlines()))
        assert sizes[0] == sizes[1]


def test_new_network_predicts_zero_and_its_blocks_are_the_identity():
    net = SMALL.module(3)
    y, variables = jit(net.init_with_output)(KEY, X, T, {"label": COND, "text": jnp.ones((3, 2, 4))})
    np.testing.assert_array_equal(y, jnp.zeros(X.shape))
    blocks = variables["params"]["blocks"]
    for name in ("modulation", "cross_attention"):
        np.testing.assert_array_equal(blocks[name].get("proj", blocks[name])["kernel"], 0.0)
    assert np.std(blocks["dense1"]["kernel"], axis=(1, 2)).min() > 0
    assert np.abs(np.diff(blocks["dense1"]["kernel"], axis=0)).max() > 0, "each block has parameters of its own"


def test_dropout_is_the_example_s_own_and_another_in_each_block():
    net, params = trained(SMALL)
    whole = np.asarray(apply(net, params, X, T, COND, KEYS))
    parts = [apply(net, params, X[i : i + 1], T[i : i + 1], COND[i : i + 1], KEYS[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-4, atol=1e-5)
    assert np.abs(whole - apply(net, params, X, T, COND)).max() > 1e-2
    # Blocks 0 and 2 exchanged: under one mask for all, with equal parameters, nothing would tell them apart.
    masks = []
    for block in (0, 2):
        only = jax.tree.map(
            lambda leaf, block=block: jnp.zeros_like(leaf).at[block].set(leaf[0]), params["params"]["blocks"]
        )
        masks.append(apply(net, {"params": params["params"] | {"blocks": only}}, X, T, COND, KEYS))
    assert np.abs(masks[0] - masks[1]).max() > 1e-2


def test_bfloat16_and_remat_change_no_parameter_and_little_else():
    net, params = trained(SMALL)
    exact = np.asarray(apply(net, params, X, T, COND, KEYS))
    half, again = changed(dtype="bfloat16").module(3), changed(remat=True).module(3)
    assert jax.eval_shape(half.init, KEY, X, T, COND) == jax.eval_shape(again.init, KEY, X, T, COND)
    y = np.asarray(apply(half, params, X, T, COND, KEYS))
    assert y.dtype == np.float32 and 0 < np.abs(y - exact).max() / np.abs(exact).max() < 0.05

    @functools.partial(jit, static_argnums=0)
    def gradients(net, params):
        return jax.grad(lambda p: jnp.sum(net.apply(p, X, T, COND, dropout_keys=KEYS) ** 2))(params)

    plain, remat = gradients(net, params), gradients(again, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), plain, remat)
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf != 0) for leaf in map(np.asarray, jax.tree.leaves(plain)))


@pytest.mark.parametrize(
    ("changes", "shape", "right"),
    [
        ({"patch": 3}, (8, 9, 3), "must divide the sides of the images, 8x9"),
        ({"patch": 0}, (8, 8, 3), r"patch is 0; it must be in 1\.\.64"),
        ({"depth": 0}, (8, 8, 3), r"depth is 0; it must be in 1\.\.1000"),
        ({"width": 18}, (8, 8, 3), "multiple of 4"),
        ({"num_heads": 3}, (8, 8, 3), "must divide the width, 16"),
        ({"mlp_ratio": 0}, (8, 8, 3), "mlp_ratio is 0"),
        ({"num_classes": -1}, (8, 8, 3), "num_classes is -1"),
        ({"dropout": 1.0}, (8, 8, 3), r"\[0, 1\)"),
        ({"dtype": "float16"}, (8, 8, 3), "float32, bfloat16"),
        ({"frequency_shift": 2}, (8, 8, 3), "0, 1"),
        ({"time_scale": 0.0}, (8, 8, 3), "time_scale is 0.0"),
        ({"mlp": "relu"}, (8, 8, 3), "gelu, swiglu"),
        ({"registers": -1}, (8, 8, 3), r"registers is -1; it must be in 0\.\.1024"),
        ({"positions": "rope", "width": 12}, (8, 8, 3), "a head's features, 6, must be in fours"),
        ({}, (8, 8), r"\(h, w, c\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(changes, shape, right, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    SMALL.check((8, 12, 3), ["label"])
    with pytest.raises(ValueError, match=right):
        changed(**changes).check(shape, ["label"])


def test_blocks_keep_products_for_the_backward_pass_and_no_norms():
    net = DiT(width=64, depth=3, num_heads=2, dtype="bfloat16").module(3)
    x, t = jnp.zeros((2, 16, 16, 3)), jnp.zeros(2)
    params = jax.eval_shape(net.init, jax.random.key(0), x, t)
    kept = jax.eval_shape(lambda p: jax.vjp(lambda p: net.apply(p, x, t), p)[1], params)
    stacked = [leaf for leaf in jax.tree.leaves(kept) if leaf.shape[:3] == (3, 2, 64)]  # blocks, batch, tokens
    assert stacked and {leaf.dtype for leaf in stacked} == {jnp.dtype(jnp.bfloat16)}


ALL = {
    "norm": "rms",
    "qk_norm": True,
    "mlp": "swiglu",
    "positions": "rope",
    "registers": 2,
    "modulation": "shared",
    "dropout": 0.0,
}


def edited(tree, *path, change):
    """The parameters with one leaf changed."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    hits = [p for p, _ in flat if [key.key for key in p][-len(path) :] == list(path)]
    assert len(hits) == 1, hits
    return jax.tree_util.tree_map_with_path(lambda p, leaf: change(leaf) if p == hits[0] else leaf, tree)


def test_norms_see_only_directions_and_swiglu_is_linear_in_its_values():
    """Queries and keys 8 times as long, and registers in another order, change nothing; larger values do, linearly."""
    net, params = trained(changed(**ALL))
    y = np.asarray(apply(net, params, X, T, COND))
    same = edited(params, "attention", "query", "kernel", change=lambda k: 8 * k)
    same = edited(same, "attention", "query", "bias", change=lambda k: 8 * k)
    same = edited(same, "register_tokens", change=lambda r: r[::-1])
    for leaf in ("kernel", "bias"):
        same = edited(same, "blocks", "dense1", leaf, change=lambda k: k.at[..., k.shape[-1] // 2 :].multiply(4.0))
    same = edited(same, "blocks", "dense2", "kernel", change=lambda k: k / 4)
    np.testing.assert_allclose(apply(net, same, X, T, COND), y, rtol=1e-4, atol=1e-4 * np.abs(y).max())
    gate = edited(params, "blocks", "dense1", "kernel", change=lambda k: k.at[..., : k.shape[-1] // 2].multiply(4.0))
    gate = edited(gate, "blocks", "dense2", "kernel", change=lambda k: k / 4)
    plain = edited(params, "register_tokens", change=lambda r: r + 1)
    for other in (gate, plain):
        assert np.abs(apply(net, other, X, T, COND) - y).max() > 1e-2 * np.abs(y).max()
    sizes = [trained(changed(mlp=mlp, width=24))[1]["params"]["blocks"] for mlp in ("gelu", "swiglu")]
    plain, gated = (sum(leaf.size for leaf in jax.tree.leaves((b["dense1"], b["dense2"]))) for b in sizes)
    assert abs(gated / plain - 1) < 0.02


class _Modulated(nn.Module):
    norm: str

    @nn.compact
    def __call__(self, x):
        none = jnp.zeros((1, x.shape[-1]))
        return modulated(x, none, none, self.norm)


def test_rms_divides_by_the_root_mean_square_and_moves_no_mean_away():
    x = jnp.asarray([[[3.0, 4.0, 0.0, 0.0]]])
    np.testing.assert_allclose(_Modulated("rms").apply({}, x)[0, 0], [1.2, 1.6, 0, 0], rtol=1e-5)
    assert abs(_Modulated("layer").apply({}, x).mean()) < 1e-6


def test_rope_sees_the_offsets_of_rows_and_columns_alone():
    """Products of any two tokens of a 3x5 grid are those of the pair moved by one row and two columns."""
    angles = rope_angles(4, 7, 8).reshape(4, 7, 4)
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 2, 8)).astype(np.float32)

    def products(part):
        flat = part.reshape(-1, 4)
        turned = [np.asarray(rotated(jnp.asarray(np.repeat(x, len(flat), axis=1)), flat)) for x in (q, k)]
        return np.einsum("bqhd,bkhd->hqk", *turned)

    first = products(angles[:3, :5])
    np.testing.assert_allclose(first, products(angles[1:4, 2:7]), atol=1e-4)
    assert np.abs(first[:, 0, 1:] - first[:, 0, :1]).min() > 1e-3, "each offset is another product"


def test_shared_modulation_is_that_of_blocks_with_equal_projections():
    """W_i = W and b_i = b + table_i: PixArt's adaLN-single is a special case of adaLN."""
    net, shared = trained(changed(modulation="shared", dropout=0.0))
    own = dict(shared["params"])
    one, table = own.pop("block_modulation"), own["blocks"]["modulation_bias"]
    each = {"kernel": jnp.repeat(one["kernel"][None], len(table), 0), "bias": one["bias"][None] + table}
    own["blocks"] = {n: p for n, p in own["blocks"].items() if n != "modulation_bias"} | {"modulation": each}
    y = apply(changed(dropout=0.0).module(3), {"params": own}, X, T, COND)
    np.testing.assert_allclose(apply(net, shared, X, T, COND), y, rtol=1e-4, atol=1e-4)
