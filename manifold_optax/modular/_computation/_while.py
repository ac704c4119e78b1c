"""A `while` loop whose number of steps is known, as a `scan`."""

import dataclasses

from manifold_optax.modular._bounds._sizes import unfollowed
from manifold_optax.modular._computation._constants import constant_number
from manifold_optax.modular._computation._graph import Graph, Operation, Value


def as_scan(operation: Operation) -> Operation:
    """The same loop as a scan.

    It counts if its condition is `i < n` for a carried integer that starts at a known
    number and that each step raises by a known one.

    Raises:
        Unreadable: for a loop that ends when its data say so.
    """
    test, body = operation.bodies
    tests, consts = operation.params["cond_nconsts"], operation.params["body_nconsts"]
    count = _steps(operation, test, body)
    if count is None:
        raise unfollowed(operation, "nothing known says how many steps the loop takes")
    carried = len(operation.operands) - tests - consts
    return dataclasses.replace(
        operation,
        name="scan",
        operands=operation.operands[tests:],
        params={
            "num_consts": consts, "num_carry": carried, "length": count,
            "reverse": False,
        },
        results=operation.results,
        bodies=(body,),
    )  # fmt: skip


def _steps(operation: Operation, test: Graph, body: Graph) -> int | None:
    """How many steps the loop takes; `None` if nothing known says so."""
    tests, consts = operation.params["cond_nconsts"], operation.params["body_nconsts"]
    compared = test.outputs[0].operation
    if compared is None or compared.name not in ("lt", "le"):
        return None
    counter, limit = compared.operands
    if counter.is_float or counter not in test.inputs[tests:]:
        return None
    place = test.inputs.index(counter) - tests
    start = constant_number(operation.operands[tests + consts + place])
    end = _number_in(limit, test, operation.operands[:tests])
    step = _raise(body.outputs[place], body.inputs[consts + place])
    if start is None or end is None or step is None:
        return None
    full = end - start + (compared.name == "le")
    return max(0, -(-int(full) // int(step)))


def _number_in(value: Value, graph: Graph, outside: tuple[Value, ...]) -> float | None:
    """A number inside of a graph, perhaps handed in from outside."""
    if value in graph.inputs:
        place = graph.inputs.index(value)
        return constant_number(outside[place]) if place < len(outside) else None
    return constant_number(value)


def _raise(after: Value, before: Value) -> float | None:
    """By how much a step raises its counter."""
    operation = after.operation
    if operation is None or operation.name != "add":
        return None
    others = [x for x in operation.operands if x is not before]
    if before not in operation.operands or len(others) != 1:
        return None
    step = constant_number(others[0])
    return step if step is not None and step > 0 else None
