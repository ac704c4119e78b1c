"""FLOPs of the matrix products of a traced function, loops of known length included.

XLA's own count takes the body of a loop once, whatever the number of trips.
`mo.programs.dot_flops` counts what a compiled program executes; this counts what the
algorithm asks for, and names the factorisations in it, which are no products.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

# Factorisations are no products: a function that has one is not matmul-only.
FACTORISATIONS = ("cholesky", "eigh", "lu", "qr", "svd", "triangular_solve")


def dot_flops(function: Callable[..., Any], *args: Any) -> int:
    """2 m k n for each product [m, k] [k, n], times the trips of the loops around it.

    What no output depends on is not counted: compilers drop it.

    Raises:
        ValueError: A loop without a known length, or branches of unequal cost.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def factorisations(function: Callable[..., Any], *args: Any) -> set[str]:
    """Names of the factorisations that the outputs of a traced function depend on."""
    names = _primitives(jax.make_jaxpr(function)(*args).jaxpr)
    return {name for name in names if name in FACTORISATIONS}


def custom_calls(function: Callable[..., Any], *args: Any) -> set[str]:
    """Targets of the custom calls in the compiled program."""
    text = jax.jit(function).lower(*args).compile().as_text() or ""
    pieces = text.split('custom_call_target="')[1:]
    return {piece.split('"', maxsplit=1)[0] for piece in pieces}


def _count(jaxpr: core.Jaxpr, wanted: Sequence[bool] | None = None) -> int:
    return sum(_count_equation(*found) for found in _live(jaxpr, wanted))


def _count_equation(equation: core.JaxprEqn, used: Sequence[bool]) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        left, result = (_shape(v) for v in (equation.invars[0], equation.outvars[0]))
        return 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)
    costs = [_count(*inside) for inside in _inside(equation, used)]
    if name == "scan":
        return equation.params["length"] * sum(costs)
    if name == "while" and any(costs):
        raise ValueError("A while loop has no known length: count a fixed number.")
    if name == "cond":
        if len(set(costs)) > 1:
            raise ValueError(f"The branches of a cond cost {costs}: count one of them.")
        return costs[0]
    return sum(costs)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _primitives(
    jaxpr: core.Jaxpr, wanted: Sequence[bool] | None = None
) -> Iterator[str]:
    for equation, used in _live(jaxpr, wanted):
        yield equation.primitive.name
        for inside in _inside(equation, used):
            yield from _primitives(*inside)


def _live(
    jaxpr: core.Jaxpr, wanted: Sequence[bool] | None
) -> Iterator[tuple[core.JaxprEqn, list[bool]]]:
    """Equations that the wanted outputs depend on (None: all), last first.

    With each comes which of its own outputs are used.
    """
    outputs = zip(jaxpr.outvars, wanted or [True] * len(jaxpr.outvars), strict=True)
    live = {v for v, keep in outputs if keep and isinstance(v, core.Var)}
    for equation in reversed(jaxpr.eqns):
        used = [variable in live for variable in equation.outvars]
        if any(used):
            live |= {v for v in equation.invars if isinstance(v, core.Var)}
            yield equation, used


def _inside(
    equation: core.JaxprEqn, used: Sequence[bool]
) -> Iterator[tuple[core.Jaxpr, Sequence[bool] | None]]:
    """Programs inside an equation, and which outputs are wanted of each."""
    # The outputs of a called function are those of the call; a loop needs all of its.
    wanted = used if equation.primitive.name in ("jit", "pjit") else None
    for value in equation.params.values():
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, core.ClosedJaxpr):
                yield entry.jaxpr, wanted
            elif isinstance(entry, core.Jaxpr):
                yield entry, wanted
