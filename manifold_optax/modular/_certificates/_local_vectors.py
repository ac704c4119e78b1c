"""What softmax and norm layers do to values on a ball of inputs."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from manifold_optax.modular._bounds._sizes import Unreadable
from manifold_optax.modular._certificates._local_affine import Operand
from manifold_optax.modular._certificates._local_value import (
    Around,
    Limits,
    only_moving,
    ROUNDING,
    small_error,
    with_errors,
)
from manifold_optax.modular._computation._graph import Operation

_SKEWNESS = math.sqrt(2) / (3 * math.sqrt(3))
"""The largest third derivative of log Σ exp in directions of length 1. It is the third
central moment of the direction under p; of numbers whose mean is given the largest is
that of two of them, at most `range³ max p (1 − p)(1 − 2p) = range³ / (6 √3)`, and
numbers of length 1 have a range of at most √2."""

_CURVATURE = 2 / math.sqrt(3)
"""The largest second derivative of `y ↦ y / √(‖y‖² + c)`, times `‖y‖² + c`. It is the
gradient of a function, so that its second derivative is a symmetric form in three
directions, which is largest with all three equal: `3 q (1 − q²)` with q in [0, 1]."""


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
        least: what each is at least.
        most: what each is at most.
        moves: how far each moves at most.
        centred: the logits less their mean under p, on which alone p depends.
        mean: a bound of the derivative of `(p' − p)·centred`.
    """

    p: np.ndarray
    least: np.ndarray
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
    return _Softmax(p, least, most, moves, centred, mean)


def softmax(operation: Operation, operands: Sequence[Operand]) -> Around:
    """The derivative takes z to `p (z − p·z)`.

    With z less its mean under p at the center, the error is
    `(p' − p)(z − (p' − p)·z) − p (p' − p)·z`, row by row; as a matrix the derivative
    moves by at most `_SKEWNESS ‖z' − z‖`. The whole derivative is no longer than 1/2,
    and than `p (z − p·z)` row by row.
    """
    (x,) = only_moving(operation, operands)
    axes = operation.params["axes"]
    found = _probabilities(x, axes)
    p, rows, norms = found.p, found.centred.rows, found.centred.norms(axes)
    bend = np.minimum(_SKEWNESS * found.centred.reach_of(axes), 0.5) * norms
    error = found.moves * (rows + found.mean) + p * found.mean
    every = found.most * (rows + found.mean)
    last = axes == (len(x.shape) - 1,)
    made = with_errors(
        found.centred.scaled(p).at(p),
        small_error(np.minimum(error, bend), bend if last else None),
        small_error(np.minimum(every, 0.5 * norms), 0.5 * norms if last else None),
    )
    return dataclasses.replace(made, limits=(found.least, found.most))


def log_softmax(operation: Operation, operands: Sequence[Operand]) -> Around:
    """The derivative takes z to `z − p·z`; the error is `−(p' − p)·z`."""
    (x,) = only_moving(operation, operands)
    axes = operation.params["axes"]
    found = _probabilities(x, axes)
    top = np.max(x.center, axes, keepdims=True)
    total = np.log(np.sum(np.exp(x.center - top), axes, keepdims=True))
    value = found.centred.at(x.center - top - total)
    return with_errors(value, small_error(np.broadcast_to(found.mean, x.shape)))


def normalize(operation: Operation, operands: Sequence[Operand]) -> Around:
    """`h(y) = scale √d y / ρ` with `ρ² = ‖y‖² + d ε` and y = x, or x less its mean.

    Its derivative is `scale √d (1 − y yᵀ/ρ²) / ρ`. It moves by at most `_CURVATURE
    scale √d ‖y' − y‖ / ρ²` with the least ρ between, and by no more than `scale √d /
    ρ`, since it is a positive matrix no longer than that.
    """
    (x,) = only_moving(operation, operands)
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
