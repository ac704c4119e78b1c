"""The graph in larger steps: scalar functions, patterns, loops without dead results."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from manifold_optax.modular._bounds._sizes import Unreadable
from manifold_optax.modular._computation._constants import constant_number, is_constant
from manifold_optax.modular._computation._graph import Graph, Operation, Value
from manifold_optax.modular._computation._while import as_scan
from manifold_optax.modular._patterns import recognise
from manifold_optax.modular._scalar import apply, Expression, IDENTITY


def fuse(graph: Graph) -> Graph:
    """The same function, in which what acts as one step is one operation.

    A chain of operations on the entries of one value is one scalar function of it, a
    softmax or a norm layer is one operation, a loop computes what is needed alone. The
    walk starts at the outputs, so what nobody needs any more is gone.
    """
    scalars = _scalars(graph)
    patterns: dict[Value, Operation] = {}
    needed: dict[Operation, set[int]] = _needed(graph)
    replaced: dict[Operation, Operation] = {}
    seen = set(graph.inputs)
    stack = list(graph.outputs)
    while stack:
        value = stack.pop()
        if value in seen or value.operation is None or is_constant(value):
            continue
        seen.add(value)
        operation = recognise(value) or _scalar(value, scalars)
        if operation is None:
            operation = value.operation
            if operation.bodies:
                if operation not in replaced:
                    replaced[operation] = _with_fused_bodies(
                        operation, needed[operation]
                    )
                operation = replaced[operation]
        if operation is not value.operation:
            patterns[value] = operation
        stack.extend(operation.operands)
    return Graph(graph.inputs, graph.outputs, patterns)


def _scalars(graph: Graph) -> dict[Value, tuple[Value, Expression]]:
    """For each value: the value that it is a scalar function of, and the function."""
    known: dict[Value, tuple[Value, Expression]] = {}
    for operation in graph.operations():
        result = operation.results[0]
        if len(operation.results) > 1 or is_constant(result):
            continue
        made = _combined(operation, known)
        if made is not None:
            known[result] = made
    return known


def _combined(
    operation: Operation, known: Mapping[Value, tuple[Value, Expression]]
) -> tuple[Value, Expression] | None:
    """One more step on functions of one root; `None` for everything else."""
    result = operation.results[0]
    root: Value | None = None
    operands: list[Expression | float | bool] = []
    for operand in operation.operands:
        number = constant_number(operand)
        if number is not None:
            operands.append(number)
            continue
        mine, expression = known.get(operand, (operand, IDENTITY))
        if mine.shape != result.shape or (root is not None and mine is not root):
            return None
        root = mine
        operands.append(expression)
    if root is None or not root.is_float or _rounds(operation):
        return None
    expression = apply(operation.name, operands, _plain(operation.params))
    return None if expression is None else (root, expression)


def _rounds(operation: Operation) -> bool:
    """Whether numbers become integers."""
    result = operation.results[0]
    if operation.name != "convert_element_type" or result.is_float:
        return False
    return operation.operands[0].is_float


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a scalar function has."""
    return {name: params[name] for name in ("y", "exponent") if name in params}


def _scalar(
    value: Value, scalars: Mapping[Value, tuple[Value, Expression]]
) -> Operation | None:
    """The operation that applies the scalar function which makes a value."""
    if value not in scalars or not value.is_float:
        return None
    root, expression = scalars[value]
    assert value.operation is not None
    return Operation(
        "entrywise",
        (root,),
        {"expression": expression},
        results=[value],
        sources=value.operation.sources,
    )


def _needed(graph: Graph) -> dict[Operation, set[int]]:
    """For each loop: which of its results something needs."""
    found: dict[Operation, set[int]] = {}
    operands = [x for operation in graph.operations() for x in operation.operands]
    for value in (*graph.outputs, *operands):
        operation = value.operation
        if operation is not None and operation.bodies:
            found.setdefault(operation, set()).add(value.index)
    return found


def _with_fused_bodies(operation: Operation, needed: set[int]) -> Operation:
    """A loop or a branch whose bodies are fused, and make what is needed alone."""
    if operation.name == "while":
        try:
            operation = as_scan(operation)
        except Unreadable:
            return operation  # Its rule says so where the loop matters.
    if operation.name == "scan":
        operation = _without_dead_results(operation, needed)
    bodies = tuple(fuse(body) for body in operation.bodies)
    return dataclasses.replace(operation, bodies=bodies)


def _without_dead_results(operation: Operation, needed: set[int]) -> Operation:
    """A scan without the results, and the carried values, that nothing needs."""
    (body,) = operation.bodies
    consts, count = operation.params["num_consts"], operation.params["num_carry"]
    live = set(needed)
    while True:
        reached = Graph(body.inputs, tuple(body.outputs[k] for k in sorted(live)))
        used = {x for step in reached.operations() for x in step.operands}
        used.update(reached.outputs)
        carried = {k for k in range(count) if body.inputs[consts + k] in used}
        if carried <= live:
            break
        live |= carried
    kept = [k for k in range(len(body.outputs)) if k in live]
    gone = {consts + k for k in range(count) if k not in live}
    inputs = [k for k in range(len(body.inputs)) if k not in gone]
    return dataclasses.replace(
        operation,
        operands=tuple(operation.operands[k] for k in inputs),
        params={**operation.params, "num_carry": count - len(gone)},
        results=[operation.results[k] for k in kept],
        bodies=(
            Graph(
                tuple(body.inputs[k] for k in inputs),
                tuple(body.outputs[k] for k in kept),
                body.patterns,
            ),
        ),
    )
