"""Slopes of a scalar function on many intervals at once."""

from typing import NamedTuple

import numpy as np

from manifold_optax.modular._bounds._sizes import Unreadable
from manifold_optax.modular._scalar import analyse, Expression
from manifold_optax.modular._scalar._cells import ANY, Cells
from manifold_optax.modular._scalar._rules import evaluate, switches

_PIECES = 4
"""Into so many pieces each interval is cut, left and right of 0. Interval arithmetic
makes the range of a slope too wide by about twice the width of a piece."""


def values_at(expression: Expression, points: np.ndarray) -> np.ndarray:
    """The function at many points."""
    flat = np.asarray(points, np.float64).reshape(-1)
    low, high = evaluate(expression, _cells(expression, flat, flat)).value
    return (0.5 * low + 0.5 * high).reshape(points.shape)


class Ranges(NamedTuple):
    """The least and the largest slopes and values of a function on intervals."""

    slopes: tuple[np.ndarray, np.ndarray]
    values: tuple[np.ndarray, np.ndarray]


def ranges(expression: Expression, low: np.ndarray, high: np.ndarray) -> Ranges:
    """The slopes and values of a function on each interval.

    Args:
        expression: the function.
        low: left ends.
        high: right ends, of the same shape.

    Raises:
        Unreadable: if the function jumps, or has no bounded slope, on one of them.
    """
    parts = np.linspace(0.0, 1.0, _PIECES + 1)
    ends = []
    for a, b in ((low, np.minimum(high, 0.0)), (np.maximum(low, 0.0), high)):
        grid = a + parts.reshape(-1, *([1] * low.ndim)) * (b - a)
        grid[0], grid[-1] = a, b
        ends.append((grid[:-1], grid[1:]))
    starts, stops = (np.stack(x) for x in zip(*ends, strict=True))
    empty = starts > stops
    starts, stops = np.where(empty, low, starts), np.where(empty, low, stops)
    cells = _cells(expression, starts.reshape(-1), stops.reshape(-1))
    found = evaluate(expression, cells)
    if found.broken.any():
        facts = analyse(expression, *_outward(low, high))
        if not facts.continuous:
            raise Unreadable("a scalar function jumps in the ball")
    shape = (2 * _PIECES, *low.shape)
    empty = empty.reshape(shape)

    def hull(pair: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        least = np.where(empty, np.inf, pair[0].reshape(shape)).min(0)
        return least, np.where(empty, -np.inf, pair[1].reshape(shape)).max(0)

    slopes = hull(found.slope)
    if not np.isfinite(slopes).all():
        raise Unreadable("a scalar function has no bounded slope in the ball")
    return Ranges(slopes, hull(found.value))


def _outward(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """The range of all intervals, up to powers of 2, so that it is analysed once."""
    most = max(float(np.max(np.abs(low))), float(np.max(np.abs(high))), 1e-6)
    limit = 2.0 ** np.ceil(np.log2(most))
    return (-limit if np.min(low) < 0 else 0.0), (limit if np.max(high) > 0 else 0.0)


def _cells(expression: Expression, low: np.ndarray, high: np.ndarray) -> Cells:
    signs = np.full((len(switches(expression)), low.size), ANY, np.int8)
    return Cells(low, high, signs)
