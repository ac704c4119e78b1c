"""What operations that are not linear do to values on a ball of inputs.

Each rule has one form. At the center the derivative is a known matrix `T`, which is
applied to the columns; `(T' − T) J'`, with the slopes `T'` and the Jacobian `J'` of
another point of the ball, is a new error.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from manifold_optax.modular._bounds._sizes import Unreadable
from manifold_optax.modular._certificates._local_affine import combined, Operand
from manifold_optax.modular._certificates._local_linear import dot
from manifold_optax.modular._certificates._local_slopes import (
    ranges,
    values_at,
)
from manifold_optax.modular._certificates._local_value import (
    Around,
    EXACT,
    Limits,
    only_moving,
    small_error,
    with_errors,
)
from manifold_optax.modular._certificates._local_vectors import (
    log_softmax,
    normalize,
    softmax,
)
from manifold_optax.modular._computation._graph import Operation
from manifold_optax.modular._scalar import apply, Expression, IDENTITY

_RELU = apply("max", [IDENTITY, 0.0], {})
_RECIPROCAL = apply("div", [1.0, IDENTITY], {})


def scalar_function(expression: Expression | None, x: Around) -> Around:
    """A function of every entry: the middle slope, and half of its range in error."""
    assert expression is not None
    # Masked logits are -∞, of which the arithmetic of intervals knows nothing.
    center, *ends = (np.clip(end, -_FAR, _FAR) for end in (x.center, *x.interval))
    (low, high), values = ranges(expression, *ends)
    middle, half = (low + high) / 2, (high - low) / 2
    value = x.scaled(middle).at(values_at(expression, center))
    most = np.maximum(np.abs(low), np.abs(high))
    if not np.all(half <= _STRAIGHT * most):
        value = with_errors(value, _diagonal(half, x), _diagonal(most, x))
    return dataclasses.replace(value, limits=values)


_FAR = 1e30
"""As good as ∞: a probability of e to the power of less is 0."""

_STRAIGHT = 1e-12
"""Slopes that differ by less, relative to their size, are equal: the rest is the
outward rounding of interval arithmetic."""


def _diagonal(factor: np.ndarray, x: Around) -> Limits:
    """An unknown diagonal matrix, bounded entry by entry, times a derivative."""
    root = np.sqrt(factor)
    inner = x.scaled(root)
    last = [len(x.shape) - 1] if x.shape else []
    groups = inner.norms(last)
    whole = float(groups.max()) if groups.size == 1 else inner.whole
    return Limits(root, inner.rows, whole, groups)


def _product_of_entries(x: Around, y: Around) -> Around:
    """The product rule; both slopes move."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    x, y = _stretched(x, shape), _stretched(y, shape)
    value = combined([x.scaled(y.center), y.scaled(x.center)])
    rows = x.reach * y.rows + x.rows * y.reach
    return with_errors(value.at(x.center * y.center), small_error(rows))


def _stretched(x: Around, shape: tuple[int, ...]) -> Around:
    """A lone number as an array."""
    if x.shape == shape:
        return x
    ones = [1] * len(shape)
    return x.map(
        lambda c: np.broadcast_to(c.reshape(-1, *ones), (len(c), *shape)),
        lambda c: np.broadcast_to(c, shape),
        np.broadcast_to(x.center, shape),
    )


def _mul(operation: Operation, operands: Sequence[Operand]) -> Around:
    x, y = only_moving(operation, operands)
    return _product_of_entries(x, y)


def _div(operation: Operation, operands: Sequence[Operand]) -> Around:
    """The numerator times the reciprocal of the divisor."""
    x, y = operands
    assert isinstance(y, Around)
    inverse = scalar_function(_RECIPROCAL, y)
    if isinstance(x, Around):
        return _product_of_entries(x, inverse)
    return _stretched(inverse, operation.results[0].shape).scaled(x)


def _dot_general(operation: Operation, operands: Sequence[Operand]) -> Around:
    """The product rule, with norms over what is summed, or entry by entry."""
    x, y = only_moving(operation, operands)
    numbers = operation.params["dimension_numbers"]
    (over_x, over_y), (_, batch_y) = numbers
    center = dot(x.center, y.center, numbers)
    absolute_x, absolute_y = np.abs(x.center), np.abs(y.center)
    from_x = x.map(
        lambda c: dot(c, y.center, numbers, 0),
        lambda c: dot(np.broadcast_to(c, x.shape), absolute_y, numbers),
        center,
    )
    from_y = y.map(
        lambda c: dot(x.center, c, numbers, 1),
        lambda c: dot(absolute_x, np.broadcast_to(c, y.shape), numbers),
        center,
    )
    rows = dot(x.reach, y.rows, numbers) + dot(x.rows, y.reach, numbers)
    together = dot(x.reach_of(over_x), y.norms(over_y), numbers) + dot(
        x.norms(over_x), y.reach_of(over_y), numbers
    )
    rows = np.minimum(rows, together)
    free = [k for k in range(len(y.shape)) if k not in (*over_y, *batch_y)]
    groups = _vectors_of_product(x, y, numbers, free) if len(free) == 1 else None
    return with_errors(combined([from_x, from_y]).at(center), small_error(rows, groups))


def _vectors_of_product(
    x: Around, y: Around, numbers: Any, free: list[int]
) -> np.ndarray:
    """Bounds of the error of a product along its last axis, the free one of y.

    Of a sum of numbers times vectors: the sum of the products of norms, or the norm of
    the numbers times that of all vectors as one matrix.
    """
    over_x, over_y = numbers[0]
    both = (*over_y, *free)
    bounds = []
    for rate_x, rate_y, at_x, at_y in (
        (x.reach, y.norms(free), x.reach_of(over_x), y.norms(both)),
        (x.rows, y.reach_of(free), x.norms(over_x), y.reach_of(both)),
    ):
        one_by_one = dot(rate_x, rate_y, numbers)
        bounds.append(np.minimum(one_by_one, dot(at_x, at_y, numbers)))
    return bounds[0] + bounds[1]


def larger(x: Operand, y: Operand) -> Around:
    """The larger of two: `y + relu(x − y)`."""
    if not isinstance(x, Around):
        x, y = y, x
    assert isinstance(x, Around)
    if not isinstance(y, Around):
        constant = np.broadcast_to(np.asarray(y, np.float64), x.shape)
        y = Around(x.ball, constant, (EXACT,))
    shape = np.broadcast_shapes(x.shape, y.shape)
    x, y = _stretched(x, shape), _stretched(y, shape)
    minus = np.full(shape, -1.0)
    return combined([y, scalar_function(_RELU, combined([x, y.scaled(minus)]))])


def _max(operation: Operation, operands: Sequence[Operand]) -> Around:
    del operation
    return larger(*operands)


def _min(operation: Operation, operands: Sequence[Operand]) -> Around:
    """The larger of the negatives, negated."""
    minus = np.full(operation.results[0].shape, -1.0)
    turned = [
        _stretched(x, minus.shape).scaled(minus) if isinstance(x, Around) else -x
        for x in operands
    ]
    return larger(*turned).scaled(minus)


def _pieces(x: Around, index: tuple[slice | int, ...]) -> Around:
    return x.map(
        lambda c: c[(slice(None), *index)],
        lambda c: np.broadcast_to(c, x.shape)[index],
        x.center[index],
    )


def _largest_of(values: list[Around]) -> Around:
    """In a tournament, so that few errors meet."""
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=False)
        rest = values[len(values) - len(values) % 2 :]
        values = [larger(x, y) for x, y in pairs] + rest
    return values[0]


def _reduce_max(operation: Operation, operands: Sequence[Operand]) -> Around:
    (x,) = only_moving(operation, operands)
    for axis in sorted(operation.params["axes"], reverse=True):
        before = (slice(None),) * axis
        x = _largest_of([_pieces(x, (*before, k)) for k in range(x.shape[axis])])
    return x


def _window_max(operation: Operation, operands: Sequence[Operand]) -> Around:
    """The largest of the places of a window, each a strided part of the whole."""
    (x,) = only_moving(operation, operands)
    params = operation.params
    if any(tuple(p) != (0, 0) for p in params["padding"]) or any(
        d != 1 for d in (*params["base_dilation"], *params["window_dilation"])
    ):
        raise Unreadable(
            f"reduce_window_max: padding has no local rule [{operation.line}]"
        )
    places = np.ndindex(*params["window_dimensions"])
    shape, strides = operation.results[0].shape, params["window_strides"]
    return _largest_of([
        _pieces(x, tuple(
            slice(first, first + (size - 1) * stride + 1, stride)
            for first, size, stride in zip(place, shape, strides, strict=True)
        ))
        for place in places
    ])  # fmt: skip


def _entrywise(operation: Operation, operands: Sequence[Operand]) -> Around:
    (x,) = only_moving(operation, operands)
    try:
        return scalar_function(operation.params["expression"], x)
    except Unreadable as error:
        raise Unreadable(f"{error} [{operation.line}]") from error


LOCAL_RULES: dict[str, Callable[[Operation, Sequence[Operand]], Around]] = {
    "div": _div,
    "dot_general": _dot_general,
    "entrywise": _entrywise,
    "log_softmax": log_softmax,
    "max": _max,
    "min": _min,
    "mul": _mul,
    "normalize": normalize,
    "reduce_max": _reduce_max,
    "reduce_window_max": _window_max,
    "softmax": softmax,
}
"""By the name of an operation that is not linear in what moves."""
