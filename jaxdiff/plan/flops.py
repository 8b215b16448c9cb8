"""Arithmetic of a program, counted from its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn  # pyright: ignore[reportPrivateImportUsage]


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of fn's convolutions and matrix products, two a multiply-add.

    Counted on the jaxpr, since XLA's own figure counts the body of a scan once and misses some convolutions. A
    scan counts its length times, of the branches of a cond the dearest, and the body of a while loop once, as its
    number of turns is not known. Products with padding count.

    Args:
      fn: any function that JAX can trace.
      *args: arrays, or `jax.ShapeDtypeStruct`s, since nothing is computed.

    >>> import jax.numpy as jnp
    >>> count_flops(lambda a, b: jnp.tanh(a @ b), jnp.zeros((2, 3)), jnp.zeros((3, 5)))  # 2 * 2 * 3 * 5
    60
    """
    return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _flops(jaxpr: Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    shapes: list[tuple[int, ...]] = [getattr(var.aval, "shape", ()) for var in equation.invars]
    outputs = sum(math.prod(getattr(var.aval, "shape", ())) for var in equation.outvars)
    if name == "dot_general":
        (contracting, _), _ = params["dimension_numbers"]
        terms = math.prod(shapes[0][axis] for axis in contracting)
        return 2 * terms * outputs
    if name == "conv_general_dilated":
        # A zero that dilation put between inputs is no product: an output sees one in prod(lhs_dilation) of the taps.
        _, channels, *taps = params["dimension_numbers"].rhs_spec
        kernel = shapes[1]
        terms = kernel[channels] * math.prod(kernel[axis] for axis in taps)
        return 2 * terms * outputs // math.prod(params["lhs_dilation"])
    if name == "scan":
        return params["length"] * _flops(params["jaxpr"].jaxpr)
    if name == "cond":
        return max(_flops(branch.jaxpr) for branch in params["branches"])
    inner = sum(_flops(jaxpr) for jaxpr in _inner(params))
    return inner * params["mesh"].size if name == "shard_map" else inner


def _inner(params: dict[str, Any]) -> list[Jaxpr]:
    """The jaxprs among an equation's parameters: calls, loops, rematerialisation, custom derivatives."""
    values = [value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in params.values()]
    return [value for value in values if isinstance(value, Jaxpr)]
