"""What operations that are not linear do to values on a ball of inputs.

Each rule has one form. At the center the derivative is a known matrix `T`, which is
applied to the columns; `(T' − T) J'`, with the slopes `T'` and the Jacobian `J'` of
another point of the ball, is a new error.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from manifold_optax.modular._bounds._sizes import Unreadable
from manifold_optax.modular._certificates._local_linear import apply_linear, dot
from manifold_optax.modular._certificates._local_slopes import (
    slopes_between,
    values_at,
)
from manifold_optax.modular._certificates._local_value import Around, with_errors
from manifold_optax.modular._computation._graph import Operation
from manifold_optax.modular._scalar import apply, Expression, IDENTITY

Operand: TypeAlias = Around | np.ndarray

_RELU = apply("max", [IDENTITY, 0.0], {})
_RECIPROCAL = apply("div", [1.0, IDENTITY], {})

_CURVATURE = 2 / math.sqrt(3)
"""The largest second derivative of `y ↦ y / √(‖y‖² + c)`, times `‖y‖² + c`. It is the
gradient of a function, so that its second derivative is a symmetric form in three
directions, which is largest with all three equal: `3 q (1 − q²)` with q in [0, 1]."""


def linear(operation: Operation, operands: Sequence[Operand]) -> list[Around]:
    """An operation that is affine in what moves: exact."""
    moving = [isinstance(x, Around) for x in operands]
    values = [x for x in operands if isinstance(x, Around)]
    results = []
    columns: dict[int, list[np.ndarray]] = {}
    for key in dict.fromkeys(key for x in values for key in x.columns):
        count = max(len(x.columns[key]) for x in values if key in x.columns)
        given = [
            x.columns.get(key, np.zeros((count, *x.shape)))
            if isinstance(x, Around)
            else x
            for x in operands
        ]
        columns[key] = apply_linear(operation, given, moving)
    loose = _loose(operation, operands, moving)
    centers = centers_of(operation, operands)
    for k, center in enumerate(centers):
        own = {key: found[k] for key, found in columns.items()}
        results.append(Around(values[0].ball, center, own, loose[k]))
    return results


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


def _loose(
    operation: Operation, operands: Sequence[Operand], moving: Sequence[bool]
) -> list[np.ndarray]:
    """Bounds of rows, through absolute values of the coefficients."""
    given = [
        np.broadcast_to(x.loose, x.shape)[None] if isinstance(x, Around) else x
        for x in operands
    ]
    if not any(np.any(x.loose) for x in operands if isinstance(x, Around)):
        return [np.zeros(())] * len(operation.results)
    return [x[0] for x in apply_linear(operation, given, moving, absolute=True)]


def scalar_function(expression: Expression, x: Around) -> Around:
    """A function of every entry: the middle slope, and half of its range in error."""
    reach = np.where(np.isfinite(x.center), x.deviation, 0.0)
    low, high = slopes_between(expression, x.center - reach, x.center + reach)
    middle, half = (low + high) / 2, (high - low) / 2
    value = _recentred(x.scaled(middle), values_at(expression, x.center))
    if not half.any():
        return value
    root = np.sqrt(half)
    inner = x.scaled(root)
    last = [len(x.shape) - 1] if x.shape else []
    return with_errors(value, root, inner.rows, inner.whole, inner.norms(last))


def _recentred(x: Around, center: np.ndarray) -> Around:
    return Around(x.ball, center, x.columns, x.loose)


def combined(terms: Sequence[Around]) -> Around:
    """The sum of values of one shape."""
    columns: dict[int, np.ndarray] = {}
    for term in terms:
        for key, x in term.columns.items():
            columns[key] = columns[key] + x if key in columns else x
    center, loose = (sum(t.center for t in terms), sum(t.loose for t in terms))
    return Around(terms[0].ball, np.asarray(center), columns, np.asarray(loose))


def _small_errors(
    value: Around, rows: np.ndarray, groups: np.ndarray | None = None
) -> Around:
    """A new error of which the Frobenius norms are known, scaled vector by vector."""
    if not value.shape:
        return with_errors(value, np.ones(()), rows)
    found = np.sqrt(np.sum(np.square(rows), -1, keepdims=True))
    if groups is not None:
        found = np.minimum(found, groups)
    root = np.sqrt(found)
    safe = np.where(root > 0, root, 1.0)
    return with_errors(value, root, rows / safe, float(np.linalg.norm(root)), root)


def _product_of_entries(x: Around, y: Around) -> Around:
    """The product rule; both slopes move."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    x, y = _stretched(x, shape), _stretched(y, shape)
    value = combined([x.scaled(y.center), y.scaled(x.center)])
    value = _recentred(value, x.center * y.center)
    return _small_errors(value, 2 * x.ball.radius * x.rows * y.rows)


def _stretched(x: Around, shape: tuple[int, ...]) -> Around:
    """A lone number as an array."""
    if x.shape == shape:
        return x
    ones = [1] * len(shape)
    columns = {
        key: np.broadcast_to(c.reshape(-1, *ones), (len(c), *shape))
        for key, c in x.columns.items()
    }
    loose = np.broadcast_to(x.loose, shape)
    return Around(x.ball, np.broadcast_to(x.center, shape), columns, loose)


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
    columns: dict[int, np.ndarray] = {}
    for value, other, first in ((x, y.center, True), (y, x.center, False)):
        for key, c in value.columns.items():
            pair = (c, other) if first else (other, c)
            found = dot(*pair, numbers, 0 if first else 1)
            columns[key] = columns[key] + found if key in columns else found
    center = dot(x.center, y.center, numbers)
    loose = dot(np.broadcast_to(x.loose, x.shape), np.abs(y.center), numbers) + dot(
        np.abs(x.center), np.broadcast_to(y.loose, y.shape), numbers
    )
    twice = 2 * x.ball.radius
    rows = np.minimum(
        dot(x.rows, y.rows, numbers), dot(x.norms(over_x), y.norms(over_y), numbers)
    )
    free = [k for k in range(len(y.shape)) if k not in (*over_y, *batch_y)]
    groups = None
    if len(free) == 1:
        groups = twice * dot(x.rows, y.norms(free), numbers)
    return _small_errors(Around(x.ball, center, columns, loose), twice * rows, groups)


def _all_moving(operation: Operation, operands: Sequence[Operand]) -> list[Around]:
    values = [x for x in operands if isinstance(x, Around)]
    if len(values) < len(operands):
        raise Unreadable(f"{operation.name}: no local rule [{operation.line}]")
    return values


def _less_mean(
    x: Around, weights: np.ndarray, axes: tuple[int, ...]
) -> Around:
    """A value less a weighted mean of it along some axes."""

    def less(columns: np.ndarray) -> np.ndarray:
        shifted = tuple(k + 1 for k in axes)
        return columns - np.sum(weights * columns, shifted, keepdims=True)

    columns = {key: less(c) for key, c in x.columns.items()}
    loose = x.loose
    if np.any(loose):
        loose = loose + np.sum(np.abs(weights) * loose, axes, keepdims=True)
    finite = np.where(np.isfinite(x.center), x.center, 0.0)
    center = x.center - np.sum(weights * finite, axes, keepdims=True)
    return Around(x.ball, center, columns, loose)


def _probabilities(
    x: Around, axes: tuple[int, ...]
) -> tuple[np.ndarray, Around, np.ndarray, np.ndarray]:
    """The softmax p at the center, x less its mean under p, and how they move.

    The third is how far each entry of p moves at most, and the fourth bounds the
    derivative of `(p' − p)·x`: both from the reach of the entries of x less its mean,
    on which alone p depends.
    """
    top = np.max(x.center, axes, keepdims=True)
    positive = np.exp(x.center - top)
    p = positive / np.sum(positive, axes, keepdims=True)
    centred = _less_mean(x, p, axes)
    # Beyond e^50 nothing is known of p anyway.
    reach = np.minimum(centred.deviation, 50.0)
    up, down = p * np.exp(reach), p * np.exp(-reach)
    others_down = np.sum(down, axes, keepdims=True) - down
    others_up = np.sum(up, axes, keepdims=True) - up
    safe = np.where(p > 0, 1.0, np.inf)  # Masked entries stay 0.
    most = up / np.maximum(up + others_down, np.finfo(np.float64).tiny) / safe
    least = down / np.maximum(down + others_up, np.finfo(np.float64).tiny) / safe
    moves = np.maximum(np.maximum(most - p, p - least), 0.0)
    mean = np.sum(moves * centred.rows, axes, keepdims=True)
    return p, centred, moves, mean


def _softmax(operation: Operation, operands: Sequence[Operand]) -> Around:
    """The derivative takes z to `p (z − p·z)`.

    With z less its mean under p at the center, the error is
    `(p' − p)(z − (p' − p)·z) − p (p' − p)·z`.
    """
    (x,) = _all_moving(operation, operands)
    p, centred, moves, mean = _probabilities(x, operation.params["axes"])
    value = _recentred(centred.scaled(p), p)
    return _small_errors(value, moves * (centred.rows + mean) + p * mean)


def _log_softmax(operation: Operation, operands: Sequence[Operand]) -> Around:
    """The derivative takes z to `z − p·z`; the error is `−(p' − p)·z`."""
    (x,) = _all_moving(operation, operands)
    axes = operation.params["axes"]
    _, centred, _, mean = _probabilities(x, axes)
    top = np.max(x.center, axes, keepdims=True)
    total = np.log(np.sum(np.exp(x.center - top), axes, keepdims=True))
    value = _recentred(centred, x.center - top - total)
    return _small_errors(value, np.broadcast_to(mean, x.shape))


def _normalize(operation: Operation, operands: Sequence[Operand]) -> Around:
    """`h(y) = scale √d y / ρ` with `ρ² = ‖y‖² + d ε` and y = x, or x less its mean.

    Its derivative is `scale √d (1 − y yᵀ/ρ²) / ρ`. It moves by at most `_CURVATURE
    scale √d ‖y' − y‖ / ρ²` with the least ρ between, and by no more than `scale √d /
    ρ`, since it is a positive matrix no longer than that.
    """
    (x,) = _all_moving(operation, operands)
    params = operation.params
    axes, scale = params["axes"], abs(params["scale"])
    count = math.prod(x.shape[k] for k in axes)
    y = x
    if params["centred"]:
        y = _less_mean(x, np.full([1] * len(x.shape), 1 / count), axes)
    size = np.sqrt(np.sum(np.square(y.center), axes, keepdims=True))
    reach = x.ball.radius * y.norms(axes)
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
    unit = y.center / length
    shifted = tuple(k + 1 for k in axes)
    along = {
        key: factor * (c - unit * np.sum(unit * c, shifted, keepdims=True))
        for key, c in y.columns.items()
    }
    loose = np.abs(factor) * y.loose
    if np.any(y.loose):
        loose = loose + np.abs(factor * unit) * np.sum(
            np.abs(unit) * y.loose, axes, keepdims=True
        )
    value = Around(x.ball, factor * y.center, along, loose)
    bend = scale * math.sqrt(count) * np.minimum(
        _CURVATURE * reach / least, 1 / np.sqrt(least)
    )
    root = np.sqrt(bend)
    inner = y.scaled(np.broadcast_to(root, y.shape))
    each = inner.norms(axes)
    groups = each if axes == (len(x.shape) - 1,) else None
    return with_errors(value, root, np.broadcast_to(each, x.shape), inner.whole, groups)


def larger(x: Operand, y: Operand) -> Around:
    """The larger of two: `y + relu(x − y)`."""
    if not isinstance(x, Around):
        x, y = y, x
    assert isinstance(x, Around)
    if not isinstance(y, Around):
        zero = np.zeros(())
        y = Around(x.ball, np.broadcast_to(np.asarray(y, np.float64), x.shape), {}, zero)
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
    columns = {key: c[(slice(None), *index)] for key, c in x.columns.items()}
    loose = np.broadcast_to(x.loose, x.shape)[index]
    return Around(x.ball, x.center[index], columns, loose)


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
