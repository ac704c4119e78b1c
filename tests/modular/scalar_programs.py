"""Scalar functions of JAX as expressions of the scalar analysis."""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from manifold_optax.modular._scalar import apply, Expression, IDENTITY

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}
"""Primitives that call a function, and where they keep its jaxpr."""


def expression(function: Callable[..., Any]) -> Expression:
    """The expression of a function of a float32 scalar."""
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), jnp.float32))
    (result,) = _interpret(closed.jaxpr, closed.consts, [IDENTITY])
    return result


def _interpret(jaxpr: Any, consts: Any, arguments: list[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(
        zip(jaxpr.constvars, map(_number, consts), strict=True)
    )
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return _number(atom.val) if isinstance(atom, jex.Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        if name in CALLS:
            inner = equation.params[CALLS[name]]
            results = _interpret(inner.jaxpr, inner.consts, operands)
        else:
            result = apply(name, operands, equation.params)
            assert result is not None, f"no rule: {equation}"
            results = [result]
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _number(value: Any) -> float | bool:
    value = jnp.asarray(value)
    return bool(value) if value.dtype == jnp.bool_ else float(value)
