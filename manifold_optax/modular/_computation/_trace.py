"""The graph of a JAX function: calls are entered, loops keep their bodies."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jax_core
import numpy as np

from manifold_optax.modular._computation._constants import is_constant
from manifold_optax.modular._computation._declare import declaration
from manifold_optax.modular._computation._graph import constant, Graph, made_by, Value
from manifold_optax.trees import leaf_path

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat2": "jaxpr",
    "remat": "jaxpr",
    "checkpoint": "jaxpr",
    "shard_map": "jaxpr",
}
"""Primitives that call one function once, and the parameter that holds it."""

_ALIKE = frozenset({
    "add", "sub", "mul", "div", "max", "min", "pow", "rem", "atan2", "nextafter",
    "select_n", "clamp", "and", "or", "xor", "not", "eq", "ne", "lt", "le", "gt",
    "ge", "add_any",
})  # fmt: skip
"""Primitives whose operands have one shape, up to axes of size 1, which some jaxprs
leave to be broadcast."""


class _Around(NamedTuple):
    """The calls around an equation, inner first: where they stand, and their names."""

    sources: tuple[Any, ...] = ()
    calls: tuple[str, ...] = ()

    def entered(self, equation: Any) -> "_Around":
        """Inside of a call."""
        name = equation.params.get("name")
        names = (name, *self.calls) if isinstance(name, str) else self.calls
        return _Around((equation.source_info, *self.sources), names)


_OUTSIDE = _Around()


def trace(
    function: Callable[..., Any], params: Any, *inputs: Any
) -> tuple[Graph, tuple[str, ...], tuple[str, ...]]:
    """The graph of `function(params, *inputs)`; nothing is computed.

    Returns:
        The graph, whose inputs are the leaves of `params` and then those of `inputs`;
        the paths of the parameters; the paths of the outputs.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, *inputs)
    arguments = tuple(_unknown(var.aval) for var in closed.jaxpr.invars)
    outputs = _interpret(closed.jaxpr, closed.consts, arguments)
    return Graph(arguments, outputs), _paths(params), _paths(shapes)


def _paths(tree: Any) -> tuple[str, ...]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return tuple(leaf_path(keys) for keys, _ in leaves)


def _unknown(aval: Any) -> Value:
    return Value(tuple(aval.shape), aval.dtype)


def _interpret(
    jaxpr: jax_core.Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Value],
    around: "_Around" = _OUTSIDE,
) -> tuple[Value, ...]:
    """The outputs of a jaxpr, applied to values."""
    known: dict[Any, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
    known.update(zip(jaxpr.constvars, map(constant, consts), strict=True))

    def read(atom: Any) -> Value:
        if isinstance(atom, jax_core.Literal):
            aval: Any = atom.aval
            return constant(np.asarray(atom.val, aval.dtype))
        return known[atom]

    for equation in jaxpr.eqns:
        results = _apply(equation, [read(atom) for atom in equation.invars], around)
        known.update(zip(equation.outvars, results, strict=True))
    return tuple(read(atom) for atom in jaxpr.outvars)


def _apply(
    equation: jax_core.JaxprEqn, operands: list[Value], around: "_Around"
) -> Sequence[Value]:
    """The results of one equation: of its body for a call, of an operation else."""
    name = equation.primitive.name
    inside = around.entered(equation)
    sources = inside.sources
    if name in _CALLS and declaration(equation.params.get("name")) is None:
        body = _body(equation.params[_CALLS[name]])
        if name == "shard_map":
            return _sharded(equation, body, operands, inside)
        return _interpret(*body, operands, inside)
    if name in _CALLS:
        name = "declared"
    avals: list[Any] = [var.aval for var in equation.outvars]
    shapes = [(aval.shape, aval.dtype) for aval in avals]
    if name in _ALIKE:
        operands = [_broadcast(x, shapes[0][0], sources) for x in operands]
    return made_by(
        name,
        operands,
        _plain(equation.params),
        shapes,
        bodies=tuple(_graphs(name, equation.params, operands, inside)),
        primitive=equation.primitive,
        sources=sources,
        calls=around.calls,
    )


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """Axes that NumPy made are integers as any others."""

    def plain(value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(plain, value))
        return int(value) if isinstance(value, np.integer) else value

    return {name: plain(value) for name, value in params.items()}


def _body(jaxpr: Any) -> tuple[jax_core.Jaxpr, Sequence[Any]]:
    """A jaxpr, open or closed, and its constants."""
    if isinstance(jaxpr, jax_core.ClosedJaxpr):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, ()


def _sharded(
    equation: jax_core.JaxprEqn,
    body: tuple[jax_core.Jaxpr, Sequence[Any]],
    operands: list[Value],
    inside: "_Around",
) -> list[Value]:
    """The results of a `shard_map`, whose body sees one shard of each array."""
    jaxpr, consts = body

    def fitted(name: str, value: Value, aval: Any) -> Value:
        if value.shape == tuple(aval.shape):
            return value
        pairs = zip(aval.shape, value.shape, strict=True)
        params = {"reps": tuple(max(1, new // old) for new, old in pairs)}
        shape = [(aval.shape, value.dtype)]
        (made,) = made_by(name, (value,), params, shape, sources=inside.sources)
        return made

    shards = [
        fitted("shard", value, var.aval)
        for value, var in zip(operands, jaxpr.invars, strict=True)
    ]
    results = _interpret(jaxpr, consts, shards, inside)
    return [
        fitted("joined_shards", value, var.aval)
        for value, var in zip(results, equation.outvars, strict=True)
    ]


def _graphs(
    name: str, params: Any, operands: list[Value], around: "_Around"
) -> list[Graph]:
    """The graphs of the functions that a loop or a branch calls.

    A constant that is handed in from outside is a constant inside, too.
    """
    graphs = []
    for jaxpr, handed in _calls(name, params, operands):
        body, consts = _body(jaxpr)
        arguments = tuple(
            value if value is not None and is_constant(value) else _unknown(var.aval)
            for var, value in zip(body.invars, handed, strict=True)
        )
        graphs.append(Graph(arguments, _interpret(body, consts, arguments, around)))
    return graphs


def _calls(
    name: str, params: Any, operands: list[Value]
) -> list[tuple[Any, list[Value | None]]]:
    """The jaxprs that an equation holds, each with what stays the same inside of it."""
    if name == "scan":
        first = params["num_consts"]
        rest: list[Value | None] = [None] * (len(operands) - first)
        return [(params["jaxpr"], [*operands[:first], *rest])]
    if name == "cond":
        return [(branch, list(operands[1:])) for branch in params["branches"]]
    if name == "while":
        tests, steps = params["cond_nconsts"], params["body_nconsts"]
        carried: list[Value | None] = [None] * (len(operands) - tests - steps)
        return [
            (params["cond_jaxpr"], [*operands[:tests], *carried]),
            (params["body_jaxpr"], [*operands[tests : tests + steps], *carried]),
        ]
    return []


def _broadcast(x: Value, shape: tuple[int, ...], sources: tuple[Any, ...]) -> Value:
    """`x` in the shape of the result, by an operation of its own where it differs."""
    if x.shape == shape or x.shape == ():
        return x
    (wide,) = made_by(
        "broadcast_in_dim",
        (x,),
        {
            "shape": shape,
            "broadcast_dimensions": tuple(range(len(shape))),
            "sharding": None,
        },
        [(shape, x.dtype)],
        primitive=jax.lax.broadcast_in_dim_p,
        sources=sources,
    )
    return wide
