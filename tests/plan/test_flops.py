"""FLOPs are those of a count by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.plan import count_flops, step_memory


def _conv(stride=1, groups=1, h=8, c=4, d=6, k=3):
    """A convolution of [2, h, h, c] to d channels, padding 1, and the products of one output."""
    x, kernel = jnp.zeros((2, h, h, c)), jnp.zeros((k, k, c // groups, d))

    def fn(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=numbers, feature_group_count=groups
        )

    return fn, (x, kernel), 2 * k * k * (c // groups)


def test_batched_matrix_products():
    a, b = jnp.zeros((7, 2, 3)), jnp.zeros((7, 3, 5))
    assert count_flops(jnp.matmul, a, b) == 7 * 2 * 2 * 3 * 5


@pytest.mark.parametrize(("stride", "side"), [(1, 8), (2, 4)])
def test_convolutions(stride, side):
    fn, args, one = _conv(stride)
    assert count_flops(fn, *args) == 2 * side * side * 6 * one


def test_grouped_convolutions_see_their_group_alone():
    fn, args, one = _conv(groups=2)
    assert count_flops(fn, *args) == 2 * 64 * 6 * one


@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_of_a_convolution_costs_twice_the_convolution(stride):
    """One like it for the input and one for the kernel; zeros between strided gradients are no products."""
    fn, args, _ = _conv(stride)
    forward = count_flops(fn, *args)
    both = count_flops(jax.grad(lambda x, k: jnp.sum(fn(x, k) ** 2), argnums=(0, 1)), *args)
    assert both == 3 * forward


def test_scans_count_their_length_and_conds_their_dearest_branch():
    a = jnp.zeros((4, 4))
    one = 2 * 4**3

    def scan(a):
        return jax.lax.scan(lambda c, _: (c @ a, None), a, None, length=9)[0]

    assert count_flops(scan, a) == 9 * one
    assert count_flops(lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a), a) == 2 * one


def test_calls_of_every_kind_are_looked_into():
    a = jnp.zeros((4, 4))
    one = 2 * 4**3
    assert count_flops(jax.jit(jnp.dot), a, a) == one
    assert count_flops(jax.grad(lambda a: jax.checkpoint(lambda a: jnp.sum(jnp.tanh(a @ a) @ a))(a)), a) == 7 * one

    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    sharded = jax.shard_map(lambda x: x @ a, mesh=mesh, in_specs=spec, out_specs=spec)
    assert count_flops(sharded, jnp.zeros((16, 4))) == 16 * 2 * 4 * 4


def test_memory_of_a_donated_state_is_counted_once():
    step = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.zeros((256, 256))).compile()
    memory = step_memory(step)
    assert (memory.arguments, memory.outputs) == (256 * 256 * 4, 0)
    assert memory.total == memory.arguments + memory.temporaries
