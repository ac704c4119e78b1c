"""The parts of a norm layer below its fraction bar: roots of mean squares."""

import dataclasses
import math
import weakref
from collections.abc import Iterator

from manifold_optax.modular._constants import constant_number
from manifold_optax.modular._graph import Operation, Value
from manifold_optax.modular._patterns._layout import bare, STRUCTURE
from manifold_optax.modular._patterns._leaves import Leaf


@dataclasses.dataclass(frozen=True)
class Divisor:
    """`max(sqrt(max(square, least)) + offset, floor)` as a factor of a product."""

    square: Value
    path: tuple[Operation, ...]
    offset: float = 0.0
    floor: float = 0.0


def as_divisor(leaf: Leaf) -> Divisor | None:
    """A factor as one over a root, with what is added to it or bounds it below."""
    operation = leaf.value.operation
    if operation is None:
        return None
    half = _half_power(operation)
    if half is not None and half == -leaf.weight:
        return Divisor(operation.operands[0], leaf.path)
    if leaf.weight == 1 or operation.name not in ("add", "max"):
        return None
    for one, other in (operation.operands, operation.operands[::-1]):
        number = constant_number(other)
        inner, path = bare(one), leaf.path
        while inner.operation is not None and inner.operation.name in STRUCTURE:
            path = (inner.operation, *path)
            inner = bare(inner.operation.operands[0])
        if number is None or number < 0 or inner.operation is None:
            continue
        if _half_power(inner.operation) == 1:
            square = inner.operation.operands[0]
            if operation.name == "add":
                return Divisor(square, path, offset=number)
            return Divisor(square, path, floor=number)
    return None


def _half_power(operation: Operation) -> int | None:
    """1 for a square root, -1 for one over it."""
    if operation.name in ("sqrt", "rsqrt"):
        return 1 if operation.name == "sqrt" else -1
    if operation.name == "pow":
        return {0.5: 1, -0.5: -1}.get(constant_number(operation.operands[1]) or 0.0)
    return None


def least(square: Value) -> tuple[float, Value]:
    """The root of a positive number that bounds a square below, and the square."""
    operation = bare(square).operation
    if operation is not None and operation.name == "max":
        for one, other in (operation.operands, operation.operands[::-1]):
            number = constant_number(other)
            if number is not None and number > 0:
                return math.sqrt(number), one
    return 0.0, square


_ROOTS: weakref.WeakKeyDictionary[Value, tuple[Value, ...]] = (
    weakref.WeakKeyDictionary()
)


def roots(square: Value) -> tuple[Value, ...]:
    """Values that a variance may be of: what is squared and summed, and centred."""
    square = bare(square)
    if square not in _ROOTS:
        _ROOTS[square] = tuple(dict.fromkeys(_find_roots(square)))
    return _ROOTS[square]


_AROUND_A_SUM = STRUCTURE | {"add", "sub", "mul", "div", "max", "select_n"}
"""What may lie between a sum of squares and the root of it."""


def _find_roots(square: Value, most: int = 24) -> Iterator[Value]:
    queue = [square]
    for _ in range(most):
        if not queue:
            return
        operation = bare(queue.pop(0)).operation
        if operation is None:
            continue
        if operation.name == "reduce_sum":
            base = _squared(bare(operation.operands[0]).operation)
            if base is None:
                continue
            made = base.operation
            if made is not None and made.name == "sub":
                yield bare(made.operands[0])
            yield base
            if made is not None and made.name in ("mul", "div"):  # The square of 3 x.
                yield from (bare(x) for x in made.operands if x.shape == base.shape)
        elif operation.name in _AROUND_A_SUM:
            queue.extend(operation.operands)


def _squared(operation: Operation | None) -> Value | None:
    """What an operation squares."""
    if operation is None:
        return None
    first = bare(operation.operands[0]) if operation.operands else None
    if operation.name == "square":
        return first
    if operation.name == "integer_pow" and operation.params["y"] == 2:
        return first
    if operation.name == "mul" and first is bare(operation.operands[1]):
        return first
    if operation.name == "pow" and constant_number(operation.operands[1]) == 2:
        return first
    return None
