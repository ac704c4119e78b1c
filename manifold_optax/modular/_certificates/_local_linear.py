"""Linear operations on many columns at once: what they do to Jacobians."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from manifold_optax.modular._computation._graph import Operation

Array: TypeAlias = np.ndarray

ADDITIVE = frozenset({
    "add", "add_any", "concatenate", "dynamic_update_slice", "pad", "select_n", "sub",
})  # fmt: skip
"""Operations on several values in which a constant does not move the others."""

_PRODUCTS = frozenset({"conv_general_dilated", "dot_general", "mul"})
"""Linear in either operand."""

_IN_THE_FIRST = frozenset({
    "broadcast_in_dim", "convert_element_type", "copy", "cumsum", "div",
    "dynamic_slice", "expand_dims", "gather", "neg", "reduce_sum", "reduce_window_sum",
    "reshape", "rev", "slice", "split", "squeeze", "stop_gradient", "transpose",
})  # fmt: skip
"""Linear in the first operand, if the others are constants."""


def is_linear(operation: Operation, moving: Sequence[bool]) -> bool:
    """Whether an operation is affine in the operands that move."""
    if not operation.results[0].is_float:
        return False
    if operation.name in ADDITIVE:
        if operation.name == "select_n":
            return not moving[0]
        return operation.name != "dynamic_update_slice" or not any(moving[2:])
    if operation.name in _PRODUCTS:
        return sum(moving) == 1
    return operation.name in _IN_THE_FIRST and not any(moving[1:])


def apply_linear(
    operation: Operation,
    operands: Sequence[Array],
    moving: Sequence[bool],
    *,
    absolute: bool = False,
) -> list[Array]:
    """The results for columns of the operands that move.

    Args:
        operation: one that is linear in them.
        operands: `[columns, *shape]` where it moves, else the constant.
        moving: which operands move.
        absolute: whether all coefficients are replaced by their absolute values.
    """
    given = list(operands)
    for k, (x, moves) in enumerate(zip(operands, moving, strict=True)):
        if moves or x.dtype.kind in "biu":
            continue
        if operation.name in ADDITIVE:
            given[k] = np.zeros_like(x)
        elif absolute:
            given[k] = np.abs(x)
    name = operation.name
    if name in _BY_NUMPY:
        return [_BY_NUMPY[name](operation, given, moving)]
    if name in ("sub", "neg"):
        sign = 1.0 if absolute else -1.0
        if name == "neg":
            return [sign * given[0]]
        x, y = _all_wide(operation, given, moving)
        return [x + sign * y]
    if name == "split":
        (x,), axis = given, operation.params["axis"] + 1
        return list(np.split(x, np.cumsum(operation.params["sizes"])[:-1], axis))
    return _by_jax(operation, given, moving)


def dot(x: Array, y: Array, dimensions: Any, columns: int | None = None) -> Array:
    """A `dot_general`, in which one operand may have a leading axis of columns."""
    (over_x, over_y), (batch_x, batch_y) = dimensions
    left = _parted(x, over_x, batch_x, columns == 0)
    right = _parted(y, over_y, batch_y, columns == 1)
    batch = [x.shape[k + (columns == 0)] for k in batch_x]
    inner = math.prod(x.shape[k + (columns == 0)] for k in over_x)
    free_x, free_y = left.shape[len(batch) : -1], right.shape[len(batch) : -1]
    rows = left.reshape(*batch, math.prod(free_x), inner)
    cols = right.reshape(*batch, math.prod(free_y), inner)
    product = (rows @ np.swapaxes(cols, -1, -2)).reshape(*batch, *free_x, *free_y)
    if columns is None:
        return product
    return np.moveaxis(product, len(batch) + (len(free_x) if columns else 0), 0)


def _parted(
    x: Array, over: Sequence[int], batch: Sequence[int], has_columns: bool
) -> Array:
    """`[*batch, (columns,) *free, inner]`."""
    shift = int(has_columns)
    over, batch = [k + shift for k in over], [k + shift for k in batch]
    free = [k for k in range(x.ndim) if k not in over and k not in batch]
    x = x.transpose(*batch, *free, *over)
    kept = x.shape[: x.ndim - len(over)]
    return x.reshape(*kept, math.prod(x.shape[len(kept) :]))


def _dot_general(
    operation: Operation, given: Sequence[Array], moving: Sequence[bool]
) -> Array:
    x, y = given
    return dot(x, y, operation.params["dimension_numbers"], 0 if moving[0] else 1)


def _wide(x: Array, rank: int, moves: bool) -> Array:
    """An operand with as many axes as the result; lone numbers count for all."""
    if moves and x.ndim == 1:
        return x.reshape(-1, *([1] * rank))
    return x


def _all_wide(
    operation: Operation, given: Sequence[Array], moving: Sequence[bool]
) -> list[Array]:
    rank = len(operation.results[0].shape)
    return [_wide(x, rank, moves) for x, moves in zip(given, moving, strict=True)]


def _sum(operation: Operation, given: Sequence[Array], moving: Sequence[bool]) -> Array:
    x, y = _all_wide(operation, given, moving)
    return _whole(operation, x + y)


def _mul(operation: Operation, given: Sequence[Array], moving: Sequence[bool]) -> Array:
    x, y = _all_wide(operation, given, moving)
    return _whole(operation, x * y)


def _div(operation: Operation, given: Sequence[Array], moving: Sequence[bool]) -> Array:
    x, y = _all_wide(operation, given, moving)
    return _whole(operation, x / y)


def _whole(operation: Operation, x: Array) -> Array:
    return np.broadcast_to(x, (len(x), *operation.results[0].shape))


def _reshaped(
    operation: Operation, given: Sequence[Array], moving: Sequence[bool]
) -> Array:
    del moving
    return given[0].reshape(len(given[0]), *operation.results[0].shape)


def _same(
    operation: Operation, given: Sequence[Array], moving: Sequence[bool]
) -> Array:
    del operation, moving
    return given[0]


def _transpose(
    operation: Operation, given: Sequence[Array], moving: Sequence[bool]
) -> Array:
    del moving
    return given[0].transpose(0, *(k + 1 for k in operation.params["permutation"]))


def _broadcast(
    operation: Operation, given: Sequence[Array], moving: Sequence[bool]
) -> Array:
    del moving
    x, shape = given[0], operation.results[0].shape
    sizes = [1] * len(shape)
    for place, size in zip(
        operation.params["broadcast_dimensions"], x.shape[1:], strict=True
    ):
        sizes[place] = size
    return np.broadcast_to(x.reshape(len(x), *sizes), (len(x), *shape))


def _reduce_sum(
    operation: Operation, given: Sequence[Array], moving: Sequence[bool]
) -> Array:
    del moving
    return given[0].sum(tuple(k + 1 for k in operation.params["axes"]))


def _slice(
    operation: Operation, given: Sequence[Array], moving: Sequence[bool]
) -> Array:
    del moving
    params = operation.params
    strides = params["strides"] or [1] * len(params["start_indices"])
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return given[0][(slice(None), *(slice(*bound) for bound in bounds))]


def _concatenate(
    operation: Operation, given: Sequence[Array], moving: Sequence[bool]
) -> Array:
    count = max(len(x) for x, moves in zip(given, moving, strict=True) if moves)
    parts = [
        x if moves else np.zeros((count, *x.shape))
        for x, moves in zip(given, moving, strict=True)
    ]
    return np.concatenate(parts, operation.params["dimension"] + 1)


def _select(
    operation: Operation, given: Sequence[Array], moving: Sequence[bool]
) -> Array:
    which, *cases = given
    rank = len(operation.results[0].shape)
    found: Any = 0.0
    for k, (case, moves) in enumerate(zip(cases, moving[1:], strict=True)):
        if moves:
            found = found + np.where(which == k, _wide(case, rank, moves), 0.0)
    return found


_BY_NUMPY: dict[str, Callable[[Operation, Sequence[Array], Sequence[bool]], Array]] = {
    "add": _sum,
    "add_any": _sum,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "convert_element_type": _same,
    "copy": _same,
    "div": _div,
    "dot_general": _dot_general,
    "expand_dims": _reshaped,
    "mul": _mul,
    "reduce_sum": _reduce_sum,
    "reshape": _reshaped,
    "select_n": _select,
    "slice": _slice,
    "squeeze": _reshaped,
    "stop_gradient": _same,
    "transpose": _transpose,
}
"""In float64, and without a compilation for each number of columns."""

_MULTIPLE = 64
"""Columns are padded to multiples of it, so that JAX compiles for few shapes."""


def _by_jax(
    operation: Operation, given: Sequence[Array], moving: Sequence[bool]
) -> list[Array]:
    """Any other primitive, in the precision of the computation."""
    primitive = operation.primitive
    assert primitive is not None
    count = max(len(x) for x, moves in zip(given, moving, strict=True) if moves)
    more = -count % _MULTIPLE if count > 1 else 0
    arrays = [
        jax.numpy.asarray(
            np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1)) if moves else x,
            operand.dtype,
        )
        for x, moves, operand in zip(given, moving, operation.operands, strict=True)
    ]

    def one(*operands: jax.Array) -> Any:
        return primitive.bind(*operands, **operation.params)

    found = jax.vmap(one, [0 if moves else None for moves in moving])(*arrays)
    results = found if primitive.multiple_results else [found]
    return [np.asarray(x, np.float64)[:count] for x in results]
