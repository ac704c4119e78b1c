"""How small the entries of a value may be, where something bounds them from below."""

import math
from collections.abc import Callable

import numpy as np

from manifold_optax.modular._computation._constants import constant_array
from manifold_optax.modular._computation._graph import Graph, Operation, Value
from manifold_optax.modular._scalar import analyse

Least = Callable[[Value], float]


def least_entry(value: Value, graph: Graph, least: Least) -> float:
    """A lower bound of the entries, through what is added, multiplied and moved.

    Args:
        value: a value of the graph.
        graph: what makes it.
        least: the same for its operands.
    """
    array = constant_array(value)
    if array is not None:
        entry = float(np.min(array, initial=math.inf))
        return -math.inf if math.isnan(entry) else entry
    operation = graph.maker(value)
    if operation is None or operation.name not in _LEAST:
        return -math.inf
    return _LEAST[operation.name](operation, least)


def _of_product(operation: Operation, least: Least) -> float:
    x, y = map(least, operation.operands)
    return x * y if x >= 0 and y >= 0 else -math.inf


def _of_sum(operation: Operation, least: Least) -> float:
    (x,) = operation.operands
    terms = math.prod(x.shape) // max(1, math.prod(operation.results[0].shape))
    return least(x) * terms if terms else 0.0


_LEAST: dict[str, Callable[[Operation, Least], float]] = {
    "add": lambda operation, least: sum(map(least, operation.operands)),
    "max": lambda operation, least: max(map(least, operation.operands)),
    "mul": _of_product,
    "reduce_sum": _of_sum,
    "entrywise": lambda operation, least: analyse(
        operation.params["expression"], least(operation.operands[0])
    ).lo,
    **dict.fromkeys(
        ("broadcast_in_dim", "reshape", "squeeze", "transpose", "reduce_max", "slice",
         "reduce_min", "convert_element_type", "stop_gradient"),
        lambda operation, least: least(operation.operands[0]),
    ),
}  # fmt: skip
"""What bounds the entries of a result from below, by the name of the operation."""
