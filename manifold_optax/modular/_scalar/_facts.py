"""What the modular analysis asks of a scalar function."""

import dataclasses
import math
from functools import cached_property, lru_cache

import numpy as np

from manifold_optax.modular._scalar._cells import Cells, Evaluation
from manifold_optax.modular._scalar._expression import Expression
from manifold_optax.modular._scalar._rules import evaluate, value_at
from manifold_optax.modular._scalar._scaled import FloatArray
from manifold_optax.modular._scalar._search import (
    first_cells,
    LARGEST,
    Measure,
    supremum,
    UNBOUNDED,
)


@dataclasses.dataclass(frozen=True)
class ScalarFacts:
    """Bounds of a scalar function on an interval, each found when it is asked for.

    They hold in real arithmetic up to 1e-12, for arguments of the interval that are
    finite in float32. A finite bound is within 2e-4 (relative) of the best one unless
    the search ran out of cells, or the function has a sine or cosine, of which only the
    range [-1, 1] is used beyond 1e6. A jump that float32 does not resolve is taken for
    rounding of the function's constants.

    Args:
        expression: the function f.
        domain: the least and largest argument.
    """

    expression: Expression
    domain: tuple[float, float]

    @cached_property
    def lipschitz(self) -> float:
        """The supremum of |f(x) - f(y)| / |x - y|; ∞ for a function that jumps."""
        if self.domain[0] == self.domain[1]:
            return 0.0
        return max(self._supremum(_steepness, slopes=True), 0.0)

    @cached_property
    def slope_lo(self) -> float:
        """The infimum of the derivative; -∞ for a function that jumps."""
        return -self._supremum(_fall, slopes=True)

    @cached_property
    def slope_hi(self) -> float:
        """The supremum of the derivative; ∞ for a function that jumps."""
        return self._supremum(_rise, slopes=True)

    @cached_property
    def lo(self) -> float:
        """The infimum of f."""
        return -self._supremum(_depth)

    @cached_property
    def hi(self) -> float:
        """The supremum of f."""
        return self._supremum(_height)

    @cached_property
    def growth(self) -> float:
        """The supremum of |f(x)| / |x|; ∞ unless f(0) = 0, if 0 is in the domain."""
        if self.domain == (0.0, 0.0):
            return 0.0 if self.at_zero == 0.0 else math.inf
        cells = first_cells(self.expression, *self.domain)
        if self.domain[0] <= 0.0 <= self.domain[1]:
            lo, hi = evaluate(self.expression, _zero(cells)).value
            if not (lo <= 0.0).all() or not (hi >= 0.0).all():
                return math.inf
            measure = _quotient_near_0(cells, self._first_slopes(cells))
        else:
            measure = _quotient
        return max(_clear(supremum(self.expression, cells, measure)), 0.0)

    @cached_property
    def at_zero(self) -> float:
        """f(0); NaN where the function is undefined."""
        return float(value_at(self.expression, 0.0))

    @cached_property
    def continuous(self) -> bool:
        """Whether f is known to be defined and without jumps on the whole domain."""
        return self._supremum(_jump, slopes=True) < math.inf

    @property
    def nonneg(self) -> bool:
        """Whether f ≥ 0 is known."""
        return self.lo >= 0.0

    def _first_slopes(self, cells: Cells) -> FloatArray:
        """Sup |f'| on each of the cells; where branches meet in 0, by a search."""
        result = evaluate(self.expression, cells)
        steep = _steepness(result, cells)[1]
        for i in np.flatnonzero(result.broken & ((cells.lo == 0) | (cells.hi == 0))):
            cell = Cells(cells.lo[[i]], cells.hi[[i]], cells.signs[:, [i]])
            steep[i] = supremum(self.expression, cell, _steepness, slopes=True)
        return steep

    def _supremum(self, measure: Measure, *, slopes: bool = False) -> float:
        cells = first_cells(self.expression, *self.domain)
        return _clear(supremum(self.expression, cells, measure, slopes=slopes))


@lru_cache(maxsize=4096)
def analyse(
    expression: Expression, lo: float = -math.inf, hi: float = math.inf
) -> ScalarFacts:
    """Analyses a scalar function on an interval.

    Args:
        expression: the function, built with `apply`.
        lo: the least argument.
        hi: the largest argument.

    Returns:
        Its facts; each is computed on first use and kept.

    Raises:
        ValueError: unless lo ≤ hi.

    Example:
        >>> from manifold_optax.modular._scalar import apply, IDENTITY
        >>> sigmoid = apply("logistic", [IDENTITY], {})
        >>> round(analyse(sigmoid).lipschitz, 4)
        0.25
    """
    if not lo <= hi:
        raise ValueError(f"a domain needs lo <= hi, got lo={lo} and hi={hi}")
    ends = (min(max(float(end), -LARGEST), LARGEST) for end in (lo, hi))
    return ScalarFacts(expression, (next(ends), next(ends)))


def _clear(bound: float) -> float:
    """The bound, with ∞ for one beyond float32."""
    return math.copysign(math.inf, bound) if abs(bound) >= UNBOUNDED else bound


def _zero(cells: Cells) -> Cells:
    return Cells(np.zeros(1), np.zeros(1), cells.signs[:, :1])


def _largest(pair: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Bounds of the absolute value."""
    lo, hi = pair
    return np.maximum(np.maximum(lo, -hi), 0.0), np.maximum(np.abs(lo), np.abs(hi))


def _unless_broken(
    result: Evaluation, pair: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """The bounds where the derivative is known."""
    return (
        np.where(result.broken, -np.inf, pair[0]),
        np.where(result.broken, np.inf, pair[1]),
    )


def _steepness(result: Evaluation, _: Cells) -> tuple[FloatArray, FloatArray]:
    return _unless_broken(result, _largest(result.slope))


def _jump(result: Evaluation, _: Cells) -> tuple[FloatArray, FloatArray]:
    """0 where f is continuous, ∞ where it may jump."""
    return np.zeros(result.broken.shape), np.where(result.broken, np.inf, 0.0)


def _rise(result: Evaluation, _: Cells) -> tuple[FloatArray, FloatArray]:
    return _unless_broken(result, result.slope)


def _fall(result: Evaluation, _: Cells) -> tuple[FloatArray, FloatArray]:
    return _unless_broken(result, (-result.slope[1], -result.slope[0]))


def _height(result: Evaluation, _: Cells) -> tuple[FloatArray, FloatArray]:
    return result.value


def _depth(result: Evaluation, _: Cells) -> tuple[FloatArray, FloatArray]:
    return -result.value[1], -result.value[0]


def _quotient(result: Evaluation, _: Cells) -> tuple[FloatArray, FloatArray]:
    return _largest(result.quotient)


def _quotient_near_0(cells: Cells, steep: FloatArray) -> Measure:
    """|f(x)| / |x| for f(0) = 0, which is at most sup |f'| between 0 and x.

    Args:
        cells: cells that cover the domain.
        steep: sup |f'| on each.
    """
    right = cells.lo >= 0
    outer = cells.hi[right], -cells.lo[~right][::-1]
    mean = [np.maximum.accumulate(s) for s in (steep[right], steep[~right][::-1])]

    def measure(result: Evaluation, at: Cells) -> tuple[FloatArray, FloatArray]:
        lower, upper = _largest(result.quotient)
        for side, ends, largest in zip((1.0, -1.0), outer, mean, strict=True):
            here = np.flatnonzero(side * (at.lo + at.hi) > 0)
            far = np.maximum(np.abs(at.lo[here]), np.abs(at.hi[here]))
            upper[here] = np.minimum(upper[here], largest[np.searchsorted(ends, far)])
        return lower, upper

    return measure
