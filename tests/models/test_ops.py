"""Attention's fused way, with XLA in place of cuDNN, which has no forward mode: derivatives of both, where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models import ops

Q, K, V, DOT = (jax.random.normal(key, (1, 6, 2, 8)) for key in jax.random.split(jax.random.key(0), 4))


@jax.custom_vjp
def stand_in(query, key, value):
    return jax.nn.dot_product_attention(query, key, value)


stand_in.defvjp(
    lambda *args: (stand_in(*args), args), lambda args, ct: jax.vjp(jax.nn.dot_product_attention, *args)[1](ct)
)


@pytest.fixture
def fused(monkeypatch):
    """The way that a GPU takes, on a CPU."""
    monkeypatch.setattr(ops, "_cudnn", stand_in)
    monkeypatch.setattr(ops.lax, "platform_dependent", lambda *args, cuda, default: cuda(*args))
    return ops._fused


def test_values_and_derivatives_of_both_modes_are_those_of_attention(fused):
    plain = jax.nn.dot_product_attention
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(stand_in, (Q, K, V), (V, Q, K))
    for result in (
        lambda f: f(Q, K, V),
        lambda f: jax.jvp(f, (Q, K, V), (V, Q, K)),
        lambda f: jax.jit(jax.grad(lambda *args: jnp.vdot(f(*args), DOT), (0, 1, 2)))(Q, K, V),
        lambda f: jax.linearize(f, Q, K, V)[1](V, Q, K),
        lambda f: jax.grad(lambda q: jnp.vdot(jax.checkpoint(f)(q, K, V), DOT))(Q),
        lambda f: jax.grad(lambda q: jnp.sum(jax.lax.scan(lambda q, _: (f(q, K, q), None), q, None, length=2)[0]))(Q),
        lambda f: jax.vmap(f)(*(x[None] for x in (Q, K, V))),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result(fused), result(plain))


def test_only_programs_for_nvidia_s_gpus_are_fused(monkeypatch):
    """And only for what it has: the others are XLA's, in one program text."""

    def fuses(shape, dtype):
        args = [jax.ShapeDtypeStruct(shape, dtype)] * 3
        return "custom_jvp" in str(jax.make_jaxpr(lambda *args: ops.attention(*args))(*args))

    assert not fuses((1, 4096, 2, 8), "bfloat16")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(ops, "_cudnn", lambda q, k, v: q + 1)
    assert fuses((1, 4096, 2, 8), "bfloat16")
    others = (
        ((1, 4096, 2, 8), "float32"),
        *(((1, *n), "bfloat16") for n in ((4094, 2, 8), (4097, 2, 8), (4096, 2, 12))),
    )
    assert not any(fuses(*other) for other in others)
    long = [jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.bfloat16)] * 3
    for platform, products in (("cuda", 0), ("cpu", 2), ("tpu", 2)):
        text = jax.jit(lambda *args: ops.attention(*args)).trace(*long).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.dot_general") == products


def test_a_dense_layer_is_a_product_of_matrices_where_rows_can_be_joined():
    """So is its derivative; of seven tokens the axes stay, since rows of eight would have to be copied."""
    kernel, dims = jnp.arange(6.0).reshape(3, 2), (((2,), (0,)), ((), ()))
    for tokens, axes in ((8, 2), (7, 3)):
        x = jax.random.normal(jax.random.key(0), (2, tokens, 3))
        pairs = [
            jax.value_and_grad(lambda x, k, f=f: jnp.sum(f(x, k, dims) ** 2), (0, 1))(x, kernel)
            for f in (ops.dense_product, jax.lax.dot_general)
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *pairs)
        jaxpr = jax.make_jaxpr(lambda x: ops.dense_product(x, kernel, dims))(x)
        assert [e.invars[0].aval.ndim for e in jaxpr.eqns if e.primitive.name == "dot_general"] == [axes]
