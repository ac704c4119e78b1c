"""Polynomials in a value x, its mean m and its mean square q over some axes.

A variance is q - m², however it is spelled: as the mean of (x - m)², as the difference
of two means, or cut off at 0.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

from manifold_optax.modular._computation._constants import constant_number
from manifold_optax.modular._computation._graph import Operation, Value
from manifold_optax.modular._patterns._layout import (
    bare,
    constant_layout,
    identity,
    Layout,
    merged,
    moved,
    places,
    regrouped,
    STRUCTURE,
)
from manifold_optax.modular._patterns._same import same

Monomial = tuple[int, int, int]
"""The powers of x, m and q."""

ONE, X, MEAN, SQUARE = (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)
MEAN_2 = (0, 2, 0)

_MEANS = {(2, 0, 0): SQUARE, (1, 1, 0): MEAN_2, X: MEAN}
"""What the monomials with x become when they are averaged; no more are needed."""

SLACK = 1e-5
"""Coefficients that agree up to this are taken for equal. 1/n in float32 is off by up
to 6e-8, and a variance has few such factors. In bfloat16 it is off by 2e-3: such a
mean is not recognised."""

_DEEPEST = 40
"""How many operations may lie between x and its variance; there are about ten."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """A polynomial, and the places of its entries.

    Attributes:
        layout: how its axes come from those of x.
        axes: the axes of x that were averaged; `None` as long as none were.
        terms: the coefficients that are not 0.
    """

    layout: Layout
    axes: frozenset[int] | None
    terms: dict[Monomial, float]

    def __getitem__(self, monomial: Monomial) -> float:
        return self.terms.get(monomial, 0.0)

    @property
    def has_x(self) -> bool:
        """Whether it differs from entry to entry, and is no mean yet."""
        return any(powers[0] for powers in self.terms)

    @property
    def number(self) -> float | None:
        """The number that it is, if it is one."""
        return None if set(self.terms) - {ONE} else self[ONE]

    @property
    def is_variance(self) -> bool:
        """Whether it is a q - b m² + c with a ≥ b ≥ 0 and c ≥ 0: never negative."""
        if set(self.terms) - {ONE, SQUARE, MEAN_2} or self[ONE] < 0:
            return False
        return self[SQUARE] * (1 + SLACK) >= -self[MEAN_2] >= 0 and self[SQUARE] > 0


class Reader:
    """Reads values as polynomials in one value, its root."""

    def __init__(self, root: Value) -> None:
        self.root = root
        self._known: dict[Value, Moments | None] = {}

    def read(self, value: Value, depth: int = 0) -> Moments | None:
        """The polynomial that a value is; `None` if it is none."""
        value = bare(value)
        if value not in self._known:
            self._known[value] = self._read(value, depth)
        return self._known[value]

    def _read(self, value: Value, depth: int) -> Moments | None:
        if same(value, self.root):
            return Moments(identity(value.shape), None, {X: 1.0})
        if self._is_regrouped(value):
            layout = regrouped(identity(self.root.shape), value.shape)
            return None if layout is None else Moments(layout, None, {X: 1.0})
        if (number := constant_number(value)) is not None:
            terms = {ONE: number} if number else {}
            finite = math.isfinite(number)
            return (
                Moments(constant_layout(value.shape), None, terms) if finite else None
            )
        operation = value.operation
        if operation is None or depth > _DEEPEST:
            return None
        if operation.name == "select_n":
            return self._select(operation, depth)
        rule = _RULES.get(operation.name)
        if rule is None:
            return None
        operands = []
        for operand in operation.operands:
            operands.append(self.read(operand, depth + 1))
            if operands[-1] is None:
                return None
        return rule(operation, *operands)

    def _is_regrouped(self, value: Value) -> bool:
        """Whether the root is a reshape of the value: the groups of a GroupNorm."""
        made = self.root.operation
        return (
            made is not None
            and made.name == "reshape"
            and bare(made.operands[0]) is value
        )

    def _select(self, operation: Operation, depth: int) -> Moments | None:
        """`jnp.var` guards against a size of 0 by a condition that is known."""
        which = operation.operands[0]
        number = constant_number(which) if which.shape == () else None
        if number is None:
            return None
        return self.read(operation.operands[1 + int(number)], depth + 1)


def structural(operation: Operation, x: Moments) -> Moments | None:
    """A polynomial after a broadcast, a reshape or a transpose."""
    layout = moved(x.layout, operation)
    return None if layout is None else dataclasses.replace(x, layout=layout)


def added(x: Moments, y: Moments, sign: float = 1.0) -> Moments | None:
    """`x + sign y`."""
    axes, layout = _axes(x, y), merged(x.layout, y.layout)
    if layout is None or axes is _CLASH:
        return None
    terms = dict(x.terms)
    for powers, coefficient in y.terms.items():
        terms[powers] = terms.get(powers, 0.0) + sign * coefficient
    return Moments(layout, axes, {key: c for key, c in terms.items() if c})


def multiplied(x: Moments, y: Moments) -> Moments | None:
    """`x y`, up to the second degree."""
    axes, layout = _axes(x, y), merged(x.layout, y.layout)
    if layout is None or axes is _CLASH:
        return None
    terms: dict[Monomial, float] = {}
    for (a, c), (b, d) in itertools.product(x.terms.items(), y.terms.items()):
        powers = (a[0] + b[0], a[1] + b[1], a[2] + b[2])
        if powers[0] + powers[1] + 2 * powers[2] > 2:
            return None
        terms[powers] = terms.get(powers, 0.0) + c * d
    return Moments(layout, axes, terms)


_CLASH = frozenset({-1})
"""The axes of a sum of means over different axes."""


def _axes(x: Moments, y: Moments) -> frozenset[int] | None:
    if x.axes is None or y.axes is None:
        return y.axes if x.axes is None else x.axes
    return x.axes if x.axes == y.axes else _CLASH


def _sum(operation: Operation, x: Moments) -> Moments | None:
    return _summed(
        x, operation.operands[0].shape, tuple(map(int, operation.params["axes"]))
    )


def _product(operation: Operation, x: Moments, y: Moments) -> Moments | None:
    """Sums of products, as `einsum("td,td->t", x, x)`: all other axes must be kept."""
    (left, right), (first, second) = operation.params["dimension_numbers"]
    shape = operation.operands[0].shape
    if left != right or first != second or len(left) + len(first) < len(shape):
        return None
    if operation.operands[1].shape != shape or list(first) != sorted(first):
        return None
    whole = multiplied(x, y)
    return None if whole is None else _summed(whole, shape, tuple(map(int, left)))


def _summed(
    x: Moments, shape: tuple[int, ...], reduced: tuple[int, ...]
) -> Moments | None:
    """Sums over axes: n times the mean."""
    axes = frozenset[int]().union(*(places(x.layout[axis]) for axis in reduced))
    count = math.prod(shape[axis] for axis in reduced)
    if x.has_x and (not axes or x.axes not in (None, axes)):
        return None
    if axes and not x.has_x:  # A mean of means is one over all of their axes.
        if x.axes is None or x.axes & axes or x.terms.keys() - {ONE, MEAN, SQUARE}:
            return None
        axes |= x.axes
    terms: dict[Monomial, float] = {}
    for powers, coefficient in x.terms.items():
        mean = _MEANS.get(powers, powers)
        terms[mean] = terms.get(mean, 0.0) + count * coefficient
    layout = tuple(a for i, a in enumerate(x.layout) if i not in reduced)
    return Moments(layout, axes or x.axes, terms)


def _divided(_: Operation, x: Moments, y: Moments) -> Moments | None:
    number = y.number
    inverse = dataclasses.replace(y, terms={ONE: 1 / number}) if number else None
    return None if inverse is None else multiplied(x, inverse)


def _maximum(_: Operation, x: Moments, y: Moments) -> Moments | None:
    """A variance cut off at 0 is itself."""
    for one, other in ((x, y), (y, x)):
        number = one.number
        if number is not None and number <= 0 and other.is_variance:
            return other
    return None


def _power(operation: Operation, x: Moments, *more: Moments) -> Moments | None:
    power = more[0].number if more else operation.params["y"]
    return multiplied(x, x) if power == 2 else None


def _negative(_: Operation, x: Moments) -> Moments:
    return dataclasses.replace(x, terms={key: -c for key, c in x.terms.items()})


_RULES: dict[str, Callable[..., Moments | None]] = {
    **dict.fromkeys(STRUCTURE, structural),
    "add": lambda _, x, y: added(x, y),
    "add_any": lambda _, x, y: added(x, y),
    "div": _divided,
    "dot_general": _product,
    "integer_pow": _power,
    "max": _maximum,
    "mul": lambda _, x, y: multiplied(x, y),
    "neg": _negative,
    "pow": _power,
    "reduce_sum": _sum,
    "square": lambda _, x: multiplied(x, x),
    "sub": lambda _, x, y: added(x, y, -1.0),
}
