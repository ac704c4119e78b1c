"""Loops of known length, written out: each step has weights of its own."""

from collections.abc import Sequence

import jax

from manifold_optax.modular._bounds._sizes import Unreadable
from manifold_optax.modular._computation._graph import (
    Graph,
    made_by,
    Operation,
    Value,
)
from manifold_optax.modular._computation._while import as_scan

LONGEST = 256
"""Steps; longer loops stay, and count with the largest of their weights."""


def unrolled(graph: Graph) -> Graph:
    """The same function without its shorter loops.

    A loop is read once for all of its steps, which is right for assumed weights. Of
    live weights the product of their norms is less than the power of the largest.
    """
    if not any(operation.bodies for operation in graph.operations()):
        return graph
    return Graph(graph.inputs, _copied(graph, {}))


def _copied(graph: Graph, known: dict[Value, Value]) -> tuple[Value, ...]:
    """The outputs of a graph whose values are replaced as far as they are known."""
    for operation in graph.operations():
        operands = [known.get(x, x) for x in operation.operands]
        loop = _as_loop(operation)
        if loop is not None:
            results = _steps(loop, operands)
        elif all(x is y for x, y in zip(operands, operation.operands, strict=True)):
            continue
        else:
            results = made_by(
                operation.name,
                operands,
                operation.params,
                [(x.shape, x.dtype) for x in operation.results],
                bodies=operation.bodies,
                primitive=operation.primitive,
                sources=operation.sources,
                calls=operation.calls,
            )
        known.update(zip(operation.results, results, strict=True))
    return tuple(known.get(output, output) for output in graph.outputs)


def _as_loop(operation: Operation) -> Operation | None:
    """The loop of known and moderate length that an operation is."""
    if operation.name == "while":
        try:
            operation = as_scan(operation)
        except Unreadable:
            return None
    if operation.name != "scan" or operation.params["length"] > LONGEST:
        return None
    return operation


def _steps(loop: Operation, operands: Sequence[Value]) -> list[Value]:
    """The results of a loop, from one copy of its body for each step."""
    (body,) = loop.bodies
    params = loop.params
    first, count = params["num_consts"], params["num_carry"]
    constants, sliced = operands[:first], operands[first + count :]
    carried = list(operands[first : first + count])
    stacked: dict[int, list[Value]] = {}
    order = range(params["length"])
    for step in reversed(order) if params["reverse"] else order:
        given = [*constants, *carried, *(_slice(x, step, loop) for x in sliced)]
        results = _copied(body, dict(zip(body.inputs, given, strict=True)))
        carried, stacked[step] = list(results[:count]), list(results[count:])
    rows = zip(*(stacked[step] for step in order), strict=True)
    return [*carried, *(_stack(row, loop) for row in rows)]


def _slice(stack: Value, step: int, loop: Operation) -> Value:
    """One slice of what a loop runs through."""
    start = (step, *[0] * (len(stack.shape) - 1))
    limit = (step + 1, *stack.shape[1:])
    (piece,) = made_by(
        "slice",
        (stack,),
        {"start_indices": start, "limit_indices": limit, "strides": None},
        [((1, *stack.shape[1:]), stack.dtype)],
        primitive=jax.lax.slice_p,
        sources=loop.sources,
    )
    (flat,) = made_by(
        "squeeze",
        (piece,),
        {"dimensions": (0,)},
        [(stack.shape[1:], stack.dtype)],
        primitive=jax.lax.squeeze_p,
        sources=loop.sources,
    )
    return flat


def _stack(row: Sequence[Value], loop: Operation) -> Value:
    """What a loop collects from its steps."""
    shape, dtype = row[0].shape, row[0].dtype
    parts = [
        made_by(
            "broadcast_in_dim",
            (x,),
            {
                "shape": (1, *shape),
                "broadcast_dimensions": tuple(range(1, len(shape) + 1)),
                "sharding": None,
            },
            [((1, *shape), dtype)],
            primitive=jax.lax.broadcast_in_dim_p,
            sources=loop.sources,
        )[0]
        for x in row
    ]
    (whole,) = made_by(
        "concatenate",
        parts,
        {"dimension": 0},
        [((len(row), *shape), dtype)],
        primitive=jax.lax.concatenate_p,
        sources=loop.sources,
    )
    return whole
