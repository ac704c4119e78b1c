"""Numbers of an analysis that are filled in later: norms of weights that may be traced.

An analysis computes with sizes: norms, their products and sums. Where weights are
assumed to lie in unit balls, sizes are floats. Where weights are live, the norm of each
is a `Number`: what the float would be under that assumption (its `reference`), and a
formula. Alternatives are chosen by the reference. Each of them is a bound, so the
choice decides how tight the result is, and never whether it holds.

Numbers are not ordered. `smallest` takes one of several alternatives, `largest` keeps
all of several cases; a rule that compares by `<`, `min` or `max` gets a `TypeError`
rather than a bound that holds for the reference alone. `least` keeps all alternatives,
where each of them may turn out to be the best.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NoReturn, TypeAlias, TypeVar

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, eq=False)
class Number:
    """A size that is filled in later, in `[0, inf]`.

    Attributes:
        reference: its value where all weights are as assumed.
        kind: `"symbol"`, `"mul"`, `"add"`, `"max"`, `"min"`, `"hypot"` or `"steps"`.
        operands: Numbers and floats that it is made of.
        data: the name of a symbol, the table of steps.
    """

    reference: float
    kind: str
    operands: "tuple[Size, ...]" = ()
    data: Hashable = None

    def __mul__(self, other: "Size") -> "Size":
        if not isinstance(other, Number):
            if other == 1.0:
                return self
            if other == 0.0:
                return 0.0
            if self.kind == "mul" and not isinstance(self.operands[1], Number):
                other = other * self.operands[1]
                return Number(_times(self.reference_of(0), other), "mul",
                              (self.operands[0], other))  # fmt: skip
        return Number(_times(self.reference, reference(other)), "mul", (self, other))

    __rmul__ = __mul__

    def __add__(self, other: "Size") -> "Size":
        if not isinstance(other, Number) and other == 0.0:
            return self
        return Number(self.reference + reference(other), "add", (self, other))

    __radd__ = __add__

    def __truediv__(self, other: float) -> "Size":
        return self * (1.0 / other)

    def __eq__(self, other: object) -> bool:
        # Infinite under the assumption: another way may be better.
        return self is other or (other == math.inf and self.reference == math.inf)

    __hash__ = object.__hash__

    def reference_of(self, position: int) -> float:
        """The reference of one operand."""
        return reference(self.operands[position])

    def _not_ordered(self, other: object) -> NoReturn:
        del other
        raise TypeError(
            "Sizes of live weights are not ordered. Use `smallest` to choose among "
            "bounds of one thing, and `largest` for the largest of several things."
        )

    __lt__ = __le__ = __gt__ = __ge__ = _not_ordered


Size: TypeAlias = float | Number
"""A bound in `[0, inf]`: known, or filled in later."""


def symbol(name: Hashable, assumed: float) -> Number:
    """A number that is known by its name alone, and what it is assumed to be."""
    return Number(assumed, "symbol", data=name)


def reference(size: Size) -> float:
    """A size as a float; of a number, under the assumption."""
    return size.reference if isinstance(size, Number) else size


def smallest(sizes: Iterable[_T], key: Callable[[_T], Size] | None = None) -> _T:
    """The one of several bounds of the same thing that is least, by the reference."""
    of = (lambda x: reference(key(x))) if key else reference
    return min(sizes, key=of)  # type: ignore[arg-type, return-value]


def least(sizes: Iterable[Size]) -> Size:
    """The least of several bounds of the same thing, whichever that turns out to be."""
    given = list(sizes)
    known = min((x for x in given if not isinstance(x, Number)), default=math.inf)
    live = list(dict.fromkeys(x for x in given if isinstance(x, Number)))
    if not live or known == 0.0:
        return known
    operands = tuple(live) if known == math.inf else (*live, known)
    if len(operands) == 1:
        return operands[0]
    return Number(min(map(reference, operands)), "min", operands)


def largest(sizes: Iterable[Size]) -> Size:
    """The largest of several sizes, whichever that turns out to be."""
    given = list(sizes)
    known = max((x for x in given if not isinstance(x, Number)), default=0.0)
    live = list(dict.fromkeys(x for x in given if isinstance(x, Number)))
    if not live or known == math.inf:
        return known
    if len(live) == 1 and known == 0.0:
        return live[0]
    operands = (*live, known) if known else tuple(live)
    return Number(max(map(reference, operands)), "max", operands)


def hypot(sizes: Iterable[Size]) -> Size:
    """The square root of the sum of squares."""
    given = [x for x in sizes if isinstance(x, Number) or x]
    if not any(isinstance(x, Number) for x in given):
        return math.hypot(*map(reference, given))
    if len(given) == 1:
        return given[0]
    return Number(math.hypot(*map(reference, given)), "hypot", tuple(given))


def total(sizes: Iterable[Size]) -> Size:
    """The sum."""
    result: Size = 0.0
    for size in sizes:
        result = result + size
    return result


def steps(size: Size, limits: Sequence[float], value: Callable[[float], float]) -> Size:
    """A function of a size that grows with it, bounded by its values at some limits.

    Args:
        size: its argument.
        limits: ascending; beyond the last the function counts as infinite.
        value: limit → the function's largest value up to there.
    """
    table = tuple((limit, value(limit)) for limit in limits)
    place = bisect.bisect_left(limits, reference(size))
    found = table[place][1] if place < len(table) else math.inf
    if not isinstance(size, Number):
        return found
    return Number(found, "steps", (size,), table)


def _times(a: float, b: float) -> float:
    return a * b if a and b else 0.0
