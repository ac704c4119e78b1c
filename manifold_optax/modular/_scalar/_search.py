"""Suprema over an interval by bisection of cells.

Every cell has an upper bound of the quantity by interval arithmetic, and its middle
gives a lower bound of the supremum. Cells whose upper bound is above the best lower
bound by more than a tolerance are cut in two, so the result is an upper bound that is
within the tolerance of the supremum unless the number of cells runs out.
"""

import itertools
import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from manifold_optax.modular._scalar._cells import (
    ANY,
    BoolArray,
    Cells,
    Evaluation,
    NEGATIVE,
    POSITIVE,
    ZERO,
)
from manifold_optax.modular._scalar._expression import Expression, Ref
from manifold_optax.modular._scalar._rules import evaluate, switches
from manifold_optax.modular._scalar._scaled import FloatArray

Measure: TypeAlias = Callable[[Evaluation, Cells], tuple[FloatArray, FloatArray]]
"""Lower and upper bounds of a quantity on each cell."""

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)
"""The normal numbers of float32: the analysis reaches from one to the other."""

UNBOUNDED = 1e30
"""A bound this large stands for ∞: the function is unbounded on the reals, and
arguments end at 3.4e38."""

RELATIVE = 1e-4
"""Relative tolerance of a supremum, half of the 2e-4 that is promised."""

_ABSOLUTE = 1e-9
"""Absolute tolerance, for suprema near 0."""

_TINY = 2.0**-22
"""Relative width, two units of float32, of a cell in which branches must meet."""

_FINEST = 2.0**-46
"""Relative width below which a cell is not cut: interval arithmetic has rounding of
2^-50 there."""

_MOST_CELLS = 50_000
"""Cells of one search, at most 0.2 s. The activations of `jax.nn` take below 5,000."""

_AT_ONCE = 64
"""Cells without a finite bound that are cut in one round."""

_MOST_PIECES = 81
"""The most combinations of signs that are told apart in a cell: of four switches."""

_COST = 200
"""Cells that take as long as one cell that is told apart."""

_WIDE = (-126, -60, -30, -20, -16, -13, -10, -8, 7, 8, 10, 13, 16, 20, 30, 60)
_DISTANCES = np.sort(
    np.concatenate([2.0 ** np.array(_WIDE), 2.0 ** np.arange(-7.0, 7.0, 0.5)])
)
"""Ends of the first cells: finest where activations bend."""


def first_cells(expression: Expression, lo: float, hi: float) -> Cells:
    """Cells that cover [lo, hi] and end at 0 and at thresholds of the argument."""
    ends = np.concatenate([-_DISTANCES, [0.0, -LARGEST, LARGEST], _DISTANCES])
    for step in expression.steps:
        if step.primitive == "add" and step.operands[0] == Ref(0):
            shift = step.operands[1]
            if not isinstance(shift, Ref) and 0 < abs(shift) <= LARGEST:
                # A cell this small beside a threshold shows whether branches meet.
                ends = np.append(ends, -shift * np.array([1 - _TINY, 1.0, 1 + _TINY]))
    ends = np.unique(np.clip(np.append(ends, [lo, hi]), lo, hi))
    if len(ends) == 1:
        ends = np.append(ends, ends)
    signs = np.full((len(switches(expression)), len(ends) - 1), ANY, np.int8)
    return Cells(ends[:-1], ends[1:], signs)


class _Search:
    """The state of one search: what is settled, and the cells still to be cut.

    Cells without a finite bound are kept apart and taken in small numbers, the
    narrowest first: one of them that cannot be resolved ends the search.
    """

    def __init__(self, expression: Expression, measure: Measure, slopes: bool) -> None:
        self._expression = expression
        self._measure = measure
        self._slopes = slopes
        self._attained = -np.inf
        self._settled = -np.inf
        self._count = 0
        self._unbounded = _none(expression)

    def run(self, cells: Cells) -> float:
        """The upper bound over the cells."""
        while cells.lo.size or self._unbounded.lo.size:
            ready, waiting = _split(self._unbounded, _AT_ONCE)
            self._unbounded = waiting
            cells = self._round(_join(cells, ready))
            if self._settled == np.inf:
                break
        return self._settled

    def _round(self, cells: Cells) -> Cells:
        """Settles the cells with a low enough bound and cuts the others."""
        size = cells.lo.size
        self._count += size
        result, lower, upper = self._bounds(cells)
        self._attained = max(self._attained, float(lower.max(initial=-np.inf)))
        if self._attained >= UNBOUNDED:
            self._settled = np.inf
        high = upper > self._target()
        if self._count > _MOST_CELLS:
            high[:] = False
        forked = high & _is_forked(result.signs[:, :size]).any(0) & self._slopes
        flat = _spread(result.value)[:size] <= 0
        forked &= flat | _finer(cells, _TINY)
        affordable = max(_MOST_CELLS - self._count, 0) // _COST
        forked &= np.cumsum(forked) <= affordable
        coarse = high & ~forked & ~_finer(cells, _FINEST)
        left = ~(forked | coarse)
        self._settled = max(
            self._settled, float(upper.max(where=left, initial=-np.inf))
        )
        cut = _halves(_take(cells, coarse))
        unbounded = np.tile(upper[coarse] == np.inf, 2)
        self._unbounded = _join(_take(cut, unbounded), self._unbounded)
        pieces = [
            self._pieces(_take(cells, [i]), result.signs[:, i], bool(result.broken[i]))
            for i in map(int, np.flatnonzero(forked))
        ]
        return _join(_take(cut, ~unbounded), *pieces)

    def _target(self) -> float:
        """The bound that is low enough."""
        if self._attained == -np.inf:
            return -np.inf
        return self._attained + RELATIVE * abs(self._attained) + _ABSOLUTE

    def _bounds(self, cells: Cells) -> tuple[Evaluation, FloatArray, FloatArray]:
        """The evaluation of the cells and of their middles, and bounds.

        The lower bounds are those in the middles, the upper ones those of the cells.
        """
        size = cells.lo.size
        both = _join(cells, _middles(cells))
        result = evaluate(self._expression, both)
        lower, upper = self._measure(result, both)
        empty = (result.signs == 0).any(0)
        lower, upper = (np.where(empty, -np.inf, bound) for bound in (lower, upper))
        return result, lower[size:], upper[:size]

    def _pieces(self, cell: Cells, signs: np.ndarray, broken: bool) -> Cells:
        """The cell once for each combination of signs of its switches.

        Where the function is broken, its pieces must meet; if they do not, it jumps and
        the search ends. A gap that float32 does not resolve is taken for rounding of
        the constants in the function.
        """
        self._count += _COST
        options = [[b for b in (NEGATIVE, ZERO, POSITIVE) if b & s] for s in signs]
        if math.prod(map(len, options)) > _MOST_PIECES:
            self._settled = np.inf
            return _none(self._expression)
        combinations = np.array(list(itertools.product(*options)), np.int8).T
        count = combinations.shape[1]
        pieces = Cells(cell.lo.repeat(count), cell.hi.repeat(count), combinations)
        result = evaluate(self._expression, pieces)
        there = ~(result.signs == 0).any(0)
        if broken and not _meet(result, there):
            self._settled = np.inf
        # An isolated point is no matter for the slope.
        point = ((pieces.signs == ZERO) & result.moving).any(0)
        return _take(pieces, there & ~point)


def _meet(pieces: Evaluation, there: BoolArray) -> bool:
    """Whether the pieces are without jumps, and their values overlap or nearly so."""
    low, high = pieces.value[0][there], pieces.value[1][there]
    if not np.isfinite([low, high]).all() or pieces.broken[there].any():
        return False
    # From the lowest upper bound to the highest lower bound: ≤ 0 if all overlap.
    ends = high.min(initial=np.inf), low.max(initial=-np.inf)
    gap = _spread((np.array([ends[0]]), np.array([ends[1]])))
    return bool((gap <= 0).all())


def _spread(value: tuple[FloatArray, FloatArray]) -> FloatArray:
    """How far an interval is wider than float32 resolves; ≤ 0 if it is not."""
    lo, hi = value
    with np.errstate(invalid="ignore"):
        return hi - lo - _TINY * np.maximum(np.abs(lo), np.abs(hi)) - SMALLEST


def supremum(
    expression: Expression, cells: Cells, measure: Measure, *, slopes: bool = False
) -> float:
    """Bounds the supremum of a quantity over the cells from above.

    Args:
        expression: the function.
        cells: cells that cover its domain.
        measure: the quantity.
        slopes: whether it is one of the derivative. Then single points where branches
            meet are left out, and the supremum is ∞ for a function that jumps.

    Returns:
        A bound at most 1e-4 (relative) above the supremum, or more if the search ends
        at its largest number of cells.
    """
    return _Search(expression, measure, slopes).run(cells)


def _none(expression: Expression) -> Cells:
    nothing = np.empty(0)
    return Cells(nothing, nothing, np.empty((len(switches(expression)), 0), np.int8))


def _take(cells: Cells, which: np.ndarray | list[int]) -> Cells:
    return Cells(cells.lo[which], cells.hi[which], cells.signs[:, which])


def _split(cells: Cells, count: int) -> tuple[Cells, Cells]:
    """The first `count` cells and the others."""
    index = np.arange(cells.lo.size)
    return _take(cells, index < count), _take(cells, index >= count)


def _join(*parts: Cells) -> Cells:
    return Cells(
        np.concatenate([part.lo for part in parts]),
        np.concatenate([part.hi for part in parts]),
        np.concatenate([part.signs for part in parts], axis=1),
    )


def _is_forked(signs: np.ndarray) -> BoolArray:
    """Where more than one sign is possible."""
    return (signs & (signs - 1)) != 0


def _finer(cells: Cells, width: float) -> BoolArray:
    """Where a cell is at most `width` wide, relative to its distance from 0."""
    far = np.maximum(np.abs(cells.lo), np.abs(cells.hi))
    return (cells.hi - cells.lo <= width * far * (1 + _TINY)) | (far <= SMALLEST)


def _middle(cells: Cells) -> FloatArray:
    """A point of each cell: the geometric mean of its ends if they are far apart."""
    near = np.minimum(np.abs(cells.lo), np.abs(cells.hi))
    far = np.maximum(np.abs(cells.lo), np.abs(cells.hi))
    sign = np.where(cells.lo + cells.hi < 0, -1.0, 1.0)
    geometric = np.sqrt(np.maximum(near, far / 16.0)) * np.sqrt(far)
    geometric = np.where(near > 0, np.sqrt(near) * np.sqrt(far), geometric)
    middle = np.where(far > 4.0 * near, geometric, 0.5 * near + 0.5 * far)
    return sign * middle


def _middles(cells: Cells) -> Cells:
    middle = _middle(cells)
    return Cells(middle, middle, cells.signs)


def _halves(cells: Cells) -> Cells:
    middle = _middle(cells)
    return _join(
        Cells(cells.lo, middle, cells.signs), Cells(middle, cells.hi, cells.signs)
    )
