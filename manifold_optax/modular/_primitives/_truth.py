"""Sizes of truth values as numbers: masks, and one-hot vectors."""

import numpy as np

from manifold_optax.modular._bounds._mixed_norm import MixedNorm
from manifold_optax.modular._computation._constants import constant_array
from manifold_optax.modular._computation._graph import Graph, Operation, Value


def truth_size(value: Value, norm: MixedNorm, graph: Graph) -> float:
    """The norm of truth values that became numbers: 0 and 1.

    Along the axis of a one-hot vector there is a single 1, so that axis adds nothing.
    """
    hot = _hot_axes(value, graph)
    rest = MixedNorm(
        tuple(() if k in hot else axis for k, axis in enumerate(norm.axes))
    )
    return rest.of_ones


def _hot_axes(value: Value, graph: Graph) -> frozenset[int]:
    """The axis along which the entries are compared with different known numbers."""
    operation = _compared(value, graph)
    if operation is None:
        return frozenset()
    for known, other in (operation.operands, reversed(operation.operands)):
        array = constant_array(known)
        if array is None:
            continue
        equal = _equal_axes(other, graph)
        for axis in equal:
            if _all_different(array, axis):
                return frozenset({axis})
    return frozenset()


def _compared(value: Value, graph: Graph) -> Operation | None:
    """The comparison `==` that makes a value, through casts."""
    operation = graph.maker(value)
    while operation is not None and operation.name == "convert_element_type":
        operation = graph.maker(operation.operands[0])
    return operation if operation is not None and operation.name == "eq" else None


def _equal_axes(value: Value, graph: Graph) -> list[int]:
    """The axes along which a value repeats itself."""
    operation = graph.maker(value)
    if operation is None or operation.name != "broadcast_in_dim":
        return []
    (inner,) = operation.operands
    kept = {
        outer
        for k, outer in enumerate(operation.params["broadcast_dimensions"])
        if inner.shape[k] == value.shape[outer]
    }
    return [k for k in range(len(value.shape)) if k not in kept]


def _all_different(array: np.ndarray, axis: int) -> bool:
    ordered = np.sort(array, axis)
    return bool(np.all(np.diff(ordered, axis=axis) > 0))
