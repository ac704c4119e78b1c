"""Interval arithmetic relative to powers of the argument.

A quantity q on a cell of arguments x of one sign is enclosed by |x|^power · [lo, hi].
With power 0 this is an ordinary interval. Powers, products, quotients and roots of x
stay exact on a cell of any width, and a sum stays tight where one term dominates, so
that a handful of cells reaches to the largest float32.

Bounds are rounded outwards by a few units in the last place after each operation, which
is more than the error of the functions of NumPy and the C library. Infinite ends and
branches that are not taken make NumPy warn; callers switch that off.
"""

import dataclasses
import functools
from typing import NamedTuple, TypeAlias

import numpy as np

FloatArray: TypeAlias = np.ndarray

_OUTWARD = 1e-15
"""4.5 units in the last place of float64: NumPy's functions are within 4."""

_LARGEST = np.finfo(np.float64).max
_DOMINANT = np.log(4.0)
"""A term is factored out of a sum if it is four times the other one. For terms alike
the smaller power is kept, with which x - c is exact at x = c."""

LEAST = 1e-200
"""The smallest upper bound of a decaying function. Without it exp(-x)·exp(x) would be
0·∞ for large x; multiplied by the fifth power of the largest float32 it is still 0."""


class Scaled(NamedTuple):
    """|x|^power · [lo, hi] on each cell."""

    power: FloatArray
    lo: FloatArray
    hi: FloatArray


def number(value: float) -> Scaled:
    """The constant `value` on all cells."""
    value = float(value)
    if value != value:
        return natural(-np.inf, np.inf)
    return natural(value, value)


def natural(lo: FloatArray | float, hi: FloatArray | float) -> Scaled:
    """The ordinary interval [lo, hi]."""
    return Scaled(np.zeros(1), np.atleast_1d(lo), np.atleast_1d(hi))


def outward(lo: FloatArray, hi: FloatArray) -> tuple[FloatArray, FloatArray]:
    """[lo, hi] with a margin for rounding; values that overflowed are still finite."""
    lo = np.minimum(lo - _OUTWARD * np.abs(lo), _LARGEST)
    hi = np.maximum(hi + _OUTWARD * np.abs(hi), -_LARGEST)
    # inf - inf: nothing is known.
    return np.where(np.isnan(lo), -np.inf, lo), np.where(np.isnan(hi), np.inf, hi)


def product(
    a: tuple[FloatArray, FloatArray], b: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """The product of two intervals; 0·∞ is 0, because all values are finite."""
    corners = [x * y for x in a for y in b]
    lo, hi = (
        functools.reduce(np.minimum, corners),
        functools.reduce(np.maximum, corners),
    )
    if np.isnan(lo).any():
        corners = [np.where(np.isnan(corner), 0.0, corner) for corner in corners]
        lo = functools.reduce(np.minimum, corners)
        hi = functools.reduce(np.maximum, corners)
    if not (lo.all() and hi.all()):
        # A product that underflowed is not 0.
        up = ((a[1] > 0) & (b[1] > 0)) | ((a[0] < 0) & (b[0] < 0))
        down = ((a[1] > 0) & (b[0] < 0)) | ((a[0] < 0) & (b[1] > 0))
        hi = np.where((hi == 0) & up, LEAST, hi)
        lo = np.where((lo == 0) & down, -LEAST, lo)
    return lo, hi


@dataclasses.dataclass(frozen=True)
class Scale:
    """Arithmetic on cells near ≤ |x| ≤ far.

    Args:
        near: the smallest |x| of each cell.
        far: the largest.
        sign: the sign of x.
    """

    near: FloatArray
    far: FloatArray
    sign: FloatArray

    @functools.cached_property
    def _middle(self) -> FloatArray:
        """The logarithm of an |x| in the middle of the cell."""
        return 0.5 * np.log(np.maximum(self.near, LEAST * self.far) * self.far)

    def argument(self) -> Scaled:
        """The argument x itself."""
        return Scaled(np.ones(1), self.sign, self.sign)

    def powers(self, exponent: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The range of |x|^exponent."""
        ends = self.near**exponent, self.far**exponent
        lo, hi = np.minimum(*ends), np.maximum(*ends)
        exact = (exponent == 0) | (exponent == 1)
        padded = outward(lo, np.maximum(hi, LEAST * (hi == 0) * (self.far > 0)))
        return np.where(exact, lo, padded[0]), np.where(exact, hi, padded[1])

    def interval(
        self, a: Scaled, power: FloatArray | float = 0.0
    ) -> tuple[FloatArray, FloatArray]:
        """The interval of a / |x|^power."""
        exponent = a.power - power
        if not exponent.any():
            return a.lo, a.hi
        return product((a.lo, a.hi), self.powers(exponent))

    def common(self, a: Scaled, b: Scaled) -> FloatArray:
        """The power by which a sum of a and b is best scaled."""
        if np.array_equal(a.power, b.power):
            return a.power
        size_a, size_b = (
            np.log(np.maximum(np.abs(s.lo), np.abs(s.hi))) + s.power * self._middle
            for s in (a, b)
        )
        lead = size_a - size_b
        smaller = np.where(np.abs(a.power) <= np.abs(b.power), a.power, b.power)
        power = np.where(lead > _DOMINANT, a.power, smaller)
        power = np.where(lead < -_DOMINANT, b.power, power)
        # Where x may be 0 no larger power can be factored out.
        return np.where(self.near > 0, power, np.minimum(a.power, b.power))

    def add(self, a: Scaled, b: Scaled) -> Scaled:
        """A + b."""
        power = self.common(a, b)
        (a_lo, a_hi), (b_lo, b_hi) = self.interval(a, power), self.interval(b, power)
        return Scaled(power, *outward(a_lo + b_lo, a_hi + b_hi))

    def hull(self, a: Scaled, b: Scaled) -> Scaled:
        """The smallest enclosure of a and of b."""
        power = self.common(a, b)
        (a_lo, a_hi), (b_lo, b_hi) = self.interval(a, power), self.interval(b, power)
        return Scaled(power, np.minimum(a_lo, b_lo), np.maximum(a_hi, b_hi))

    def mul(self, a: Scaled, b: Scaled) -> Scaled:
        """A · b."""
        bounds = product((a.lo, a.hi), (b.lo, b.hi))
        return Scaled(a.power + b.power, *outward(*bounds))

    def reciprocal(self, a: Scaled) -> tuple[Scaled, FloatArray]:
        """1 / a, and where a may be 0."""
        pole = (a.lo <= 0) & (a.hi >= 0)
        lo = np.where(pole, -np.inf, 1.0 / a.hi)
        hi = np.where(pole, np.inf, 1.0 / a.lo)
        # An end that is 0 leaves the other side.
        lo = np.where(pole & (a.lo >= 0) & (a.hi > 0), 1.0 / a.hi, lo)
        hi = np.where(pole & (a.hi <= 0) & (a.lo < 0), 1.0 / a.lo, hi)
        pole = pole | ((self.near == 0) & (a.power > 0))
        return Scaled(-a.power, *outward(lo, hi)), pole

    def integer_power(self, a: Scaled, exponent: int) -> Scaled:
        """a^exponent for an integer > 0."""
        ends = a.lo**exponent, a.hi**exponent
        lo, hi = np.minimum(*ends), np.maximum(*ends)
        if exponent % 2 == 0:
            lo = np.where((a.lo <= 0) & (a.hi >= 0), 0.0, lo)
        return Scaled(a.power * exponent, *outward(lo, hi))

    def real_power(self, a: Scaled, exponent: float) -> Scaled:
        """a^exponent for a ≥ 0; a negative part of a is left out."""
        ends = [np.maximum(end, 0.0) ** exponent for end in (a.lo, a.hi)]
        bounds = outward(np.minimum(*ends), np.maximum(*ends))
        return Scaled(a.power * exponent, *bounds)
