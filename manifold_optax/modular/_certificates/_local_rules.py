"""What operations that are not linear do to values on a ball of inputs.

Each rule has one form. At the center the derivative is a known matrix `T`, which is
applied to the columns; `(T' − T) J'`, with the slopes `T'` and the Jacobian `J'` of
another point of the ball, is a new error.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from manifold_optax.modular._bounds._sizes import Unreadable
from manifold_optax.modular._certificates._local_linear import apply_linear, dot
from manifold_optax.modular._certificates._local_slopes import (
    slopes_between,
    values_at,
)
from manifold_optax.modular._certificates._local_value import (
    Around,
    Description,
    EXACT,
    Limits,
    ROUNDING,
    with_errors,
)
from manifold_optax.modular._computation._graph import Operation
from manifold_optax.modular._scalar import apply, Expression, IDENTITY

Operand: TypeAlias = Around | np.ndarray

_RELU = apply("max", [IDENTITY, 0.0], {})
_RECIPROCAL = apply("div", [1.0, IDENTITY], {})

_SKEWNESS = math.sqrt(2) / (3 * math.sqrt(3))
"""The largest third derivative of log Σ exp in directions of length 1. It is the third
central moment of the direction under p; of numbers whose mean is given the largest is
that of two of them, at most `range³ max p (1 − p)(1 − 2p) = range³ / (6 √3)`, and
numbers of length 1 have a range of at most √2."""

_CURVATURE = 2 / math.sqrt(3)
"""The largest second derivative of `y ↦ y / √(‖y‖² + c)`, times `‖y‖² + c`. It is the
gradient of a function, so that its second derivative is a symmetric form in three
directions, which is largest with all three equal: `3 q (1 − q²)` with q in [0, 1]."""


def linear(operation: Operation, operands: Sequence[Operand]) -> list[Around]:
    """An operation that is affine in what moves: exact."""
    values = [x for x in operands if isinstance(x, Around)]
    count = max(len(x.descriptions) for x in values)
    described = [
        _described(
            operation,
            [_description(x, k) if isinstance(x, Around) else x for x in operands],
        )
        for k in range(count)
    ]
    pairs = zip(centers_of(operation, operands), *described, strict=True)
    return [Around(values[0].ball, center, tuple(own)) for center, *own in pairs]


def _description(x: Around, k: int) -> tuple[Description, tuple[int, ...]]:
    """One of several descriptions, the last where there are fewer; and the shape."""
    return x.descriptions[min(k, len(x.descriptions) - 1)], x.shape


def _described(
    operation: Operation,
    operands: Sequence[tuple[Description, tuple[int, ...]] | np.ndarray],
) -> list[Description]:
    """What is known of the derivatives of the results of an affine operation."""
    moving = [isinstance(x, tuple) for x in operands]
    results = range(len(operation.results))
    columns: list[dict[int, np.ndarray]] = [{} for _ in results]
    values = [x[0] for x in operands if isinstance(x, tuple)]
    for key in dict.fromkeys(key for x in values for key in x.columns):
        count = max(len(x.columns[key]) for x in values if key in x.columns)
        given = [
            x[0].columns.get(key, np.zeros((count, *x[1])))
            if isinstance(x, tuple)
            else x
            for x in operands
        ]
        for own, made in zip(
            columns, apply_linear(operation, given, moving), strict=True
        ):
            own[key] = made
    loose = [np.zeros(())] * len(operation.results)
    if any(x.loose.any() for x in values):
        given = [
            np.broadcast_to(x[0].loose, x[1])[None] if isinstance(x, tuple) else x
            for x in operands
        ]
        loose = [x[0] for x in apply_linear(operation, given, moving, absolute=True)]
    return [Description(columns[k], loose[k]) for k in results]


def centers_of(operation: Operation, operands: Sequence[Operand]) -> list[np.ndarray]:
    """The results of an affine operation at the center, in float64."""
    sums = sum(isinstance(x, Around) for x in operands) > 1 or operation.name in (
        "add", "add_any", "sub", "select_n", "concatenate", "pad",
    )  # fmt: skip
    moving = [
        isinstance(x, Around) or (sums and x.dtype.kind == "f") for x in operands
    ]
    if operation.name == "select_n":
        moving = [False] + [True] * (len(operands) - 1)
    arrays = [x.center if isinstance(x, Around) else x for x in operands]
    given = [
        np.asarray(x, np.float64)[None] if moves else x
        for x, moves in zip(arrays, moving, strict=True)
    ]
    return [x[0] for x in apply_linear(operation, given, moving)]


def scalar_function(expression: Expression, x: Around) -> Around:
    """A function of every entry: the middle slope, and half of its range in error."""
    reach = np.where(np.isfinite(x.center), x.reach, 0.0)
    low, high = slopes_between(expression, x.center - reach, x.center + reach)
    middle, half = (low + high) / 2, (high - low) / 2
    value = x.scaled(middle).at(values_at(expression, x.center))
    most = np.maximum(np.abs(low), np.abs(high))
    if np.all(half <= _STRAIGHT * most):
        return value
    return with_errors(value, _diagonal(half, x), _diagonal(most, x))


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


def combined(terms: Sequence[Around]) -> Around:
    """The sum of values of one shape."""
    count = max(len(term.descriptions) for term in terms)
    found = []
    for k in range(count):
        columns: dict[int, np.ndarray] = {}
        loose = np.zeros(())
        for own, _ in (_description(term, k) for term in terms):
            loose = loose + own.loose
            for key, x in own.columns.items():
                columns[key] = columns[key] + x if key in columns else x
        found.append(Description(columns, np.asarray(loose)))
    center = np.asarray(sum(term.center for term in terms))
    return Around(terms[0].ball, center, tuple(found))


def _small(rows: np.ndarray, groups: np.ndarray | None = None) -> Limits:
    """An error of which the Frobenius norms are known, scaled vector by vector."""
    if not rows.shape:
        return Limits(np.ones(()), rows)
    found = np.sqrt(np.sum(np.square(rows), -1, keepdims=True))
    if groups is not None:
        found = np.minimum(found, groups)
    root = np.sqrt(found)
    safe = np.where(root > 0, root, 1.0)
    return Limits(root, rows / safe, float(np.linalg.norm(root)), root)


def _product_of_entries(x: Around, y: Around) -> Around:
    """The product rule; both slopes move."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    x, y = _stretched(x, shape), _stretched(y, shape)
    value = combined([x.scaled(y.center), y.scaled(x.center)])
    rows = x.reach * y.rows + x.rows * y.reach
    return with_errors(value.at(x.center * y.center), _small(rows))


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
    x, y = _all_moving(operation, operands)
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
    x, y = _all_moving(operation, operands)
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
    return with_errors(combined([from_x, from_y]).at(center), _small(rows, groups))


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


def _all_moving(operation: Operation, operands: Sequence[Operand]) -> list[Around]:
    values = [x for x in operands if isinstance(x, Around)]
    if len(values) < len(operands):
        raise Unreadable(f"{operation.name}: no local rule [{operation.line}]")
    return values


def _less_mean(x: Around, weights: np.ndarray, axes: tuple[int, ...]) -> Around:
    """A value less a weighted mean of it along some axes."""
    shifted = tuple(k + 1 for k in axes)
    finite = np.where(np.isfinite(x.center), x.center, 0.0)
    return x.map(
        lambda c: c - np.sum(weights * c, shifted, keepdims=True),
        lambda c: c + np.sum(weights * c, axes, keepdims=True),
        x.center - np.sum(weights * finite, axes, keepdims=True),
    )


class _Softmax(NamedTuple):
    """A softmax on a ball.

    Attributes:
        p: the probabilities at the center.
        most: what each is at most.
        moves: how far each moves at most.
        centred: the logits less their mean under p, on which alone p depends.
        mean: a bound of the derivative of `(p' − p)·centred`.
    """

    p: np.ndarray
    most: np.ndarray
    moves: np.ndarray
    centred: Around
    mean: np.ndarray


def _probabilities(x: Around, axes: tuple[int, ...]) -> _Softmax:
    top = np.max(x.center, axes, keepdims=True)
    positive = np.exp(x.center - top)
    p = positive / np.sum(positive, axes, keepdims=True)
    centred = _less_mean(x, p, axes)
    # Beyond e^50 nothing is known of p anyway.
    reach = np.minimum(centred.reach, 50.0)
    up, down = p * np.exp(reach), p * np.exp(-reach)
    others_down = np.sum(down, axes, keepdims=True) - down
    others_up = np.sum(up, axes, keepdims=True) - up
    tiny = np.finfo(np.float64).tiny  # Masked entries stay 0.
    most = up / np.maximum(up + np.maximum(others_down, 0.0), tiny) * ROUNDING
    least = down / np.maximum(down + np.maximum(others_up, 0.0), tiny) / ROUNDING
    moves = np.maximum(most - p, p - least)
    mean = np.minimum(
        np.sum(moves * centred.rows, axes, keepdims=True),
        np.sqrt(np.sum(np.square(moves), axes, keepdims=True)) * centred.norms(axes),
    )
    return _Softmax(p, most, moves, centred, mean)


def _softmax(operation: Operation, operands: Sequence[Operand]) -> Around:
    """The derivative takes z to `p (z − p·z)`.

    With z less its mean under p at the center, the error is
    `(p' − p)(z − (p' − p)·z) − p (p' − p)·z`, row by row; as a matrix the derivative
    moves by at most `_SKEWNESS ‖z' − z‖`. The whole derivative is no longer than 1/2,
    and than `p (z − p·z)` row by row.
    """
    (x,) = _all_moving(operation, operands)
    axes = operation.params["axes"]
    found = _probabilities(x, axes)
    p, rows, norms = found.p, found.centred.rows, found.centred.norms(axes)
    bend = np.minimum(_SKEWNESS * found.centred.reach_of(axes), 0.5) * norms
    error = found.moves * (rows + found.mean) + p * found.mean
    every = found.most * (rows + found.mean)
    last = axes == (len(x.shape) - 1,)
    made = with_errors(
        found.centred.scaled(p).at(p),
        _small(np.minimum(error, bend), bend if last else None),
        _small(np.minimum(every, 0.5 * norms), 0.5 * norms if last else None),
    )
    return dataclasses.replace(made, moves=found.moves)


def _log_softmax(operation: Operation, operands: Sequence[Operand]) -> Around:
    """The derivative takes z to `z − p·z`; the error is `−(p' − p)·z`."""
    (x,) = _all_moving(operation, operands)
    axes = operation.params["axes"]
    found = _probabilities(x, axes)
    top = np.max(x.center, axes, keepdims=True)
    total = np.log(np.sum(np.exp(x.center - top), axes, keepdims=True))
    value = found.centred.at(x.center - top - total)
    return with_errors(value, _small(np.broadcast_to(found.mean, x.shape)))


def _normalize(operation: Operation, operands: Sequence[Operand]) -> Around:
    """`h(y) = scale √d y / ρ` with `ρ² = ‖y‖² + d ε` and y = x, or x less its mean.

    Its derivative is `scale √d (1 − y yᵀ/ρ²) / ρ`. It moves by at most `_CURVATURE
    scale √d ‖y' − y‖ / ρ²` with the least ρ between, and by no more than `scale √d /
    ρ`, since it is a positive matrix no longer than that.
    """
    (x,) = _all_moving(operation, operands)
    params, axes = operation.params, operation.params["axes"]
    count = math.prod(x.shape[k] for k in axes)
    y = x
    if params["centred"]:
        y = _less_mean(x, np.full([1] * len(x.shape), 1 / count), axes)
    size = np.sqrt(np.sum(np.square(y.center), axes, keepdims=True))
    reach = y.reach_of(axes)
    shift = count * params["epsilon"]
    least = np.square(np.maximum(size - reach, 0.0)) + shift
    if params["offset"] or np.any(least < count * params["floor"] ** 2):
        raise Unreadable(f"normalize: its divisor has no local rule [{operation.line}]")
    if not np.all(least > 0):
        raise Unreadable(
            f"normalize: a vector of the ball may be 0, with ε = 0 [{operation.line}]"
        )
    length = np.sqrt(np.square(size) + shift)
    factor = params["scale"] * math.sqrt(count) / length
    value = _tangential(y, factor, y.center / length, axes).at(factor * y.center)
    scale = abs(params["scale"]) * math.sqrt(count)
    slope = scale / np.sqrt(least)
    bend = np.minimum(_CURVATURE * scale * reach / least, slope)
    return with_errors(value, _vectors(bend, y, axes), _vectors(slope, y, axes))


def _tangential(
    y: Around, factor: np.ndarray, unit: np.ndarray, axes: tuple[int, ...]
) -> Around:
    """`factor (1 − unit unitᵀ) y` along some axes."""
    shifted = tuple(k + 1 for k in axes)
    size, along = np.abs(factor), np.abs(unit)
    return y.map(
        lambda c: factor * (c - unit * np.sum(unit * c, shifted, keepdims=True)),
        lambda c: size * (c + along * np.sum(along * c, axes, keepdims=True)),
        y.center,
    )


def _vectors(norms: np.ndarray, y: Around, axes: tuple[int, ...]) -> Limits:
    """Unknown matrices of these norms, one for each vector, times a derivative."""
    root = np.sqrt(norms)
    inner = y.scaled(np.broadcast_to(root, y.shape))
    each = inner.norms(axes)
    groups = each if axes == (len(y.shape) - 1,) else None
    whole = float(each.max()) if each.size == 1 else inner.whole
    return Limits(root, np.broadcast_to(each, y.shape), whole, groups)


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
    (x,) = _all_moving(operation, operands)
    for axis in sorted(operation.params["axes"], reverse=True):
        before = (slice(None),) * axis
        x = _largest_of([_pieces(x, (*before, k)) for k in range(x.shape[axis])])
    return x


def _window_max(operation: Operation, operands: Sequence[Operand]) -> Around:
    """Of the places of a window, each as a strided part of the whole."""
    (x,) = _all_moving(operation, operands)
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
    (x,) = _all_moving(operation, operands)
    try:
        return scalar_function(operation.params["expression"], x)
    except Unreadable as error:
        raise Unreadable(f"{error} [{operation.line}]") from error


LOCAL_RULES: dict[str, Callable[[Operation, Sequence[Operand]], Around]] = {
    "div": _div,
    "dot_general": _dot_general,
    "entrywise": _entrywise,
    "log_softmax": _log_softmax,
    "max": _max,
    "min": _min,
    "mul": _mul,
    "normalize": _normalize,
    "reduce_max": _reduce_max,
    "reduce_window_max": _window_max,
    "softmax": _softmax,
}
"""By the name of an operation that is not linear in what moves."""
