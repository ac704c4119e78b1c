"""The parts of a norm layer below its fraction bar: roots of mean squares."""

import dataclasses
import math
import weakref
from collections.abc import Iterator

from manifold_optax.modular._computation._constants import constant_number
from manifold_optax.modular._computation._graph import Operation, Value
from manifold_optax.modular._patterns._layout import bare, STRUCTURE
from manifold_optax.modular._patterns._leaves import factors, Leaf


@dataclasses.dataclass(frozen=True)
class Divisor:
    """One over `factor max(sqrt(square) + offset, floor)` in a product."""

    square: Value
    path: tuple[Operation, ...]
    factor: float = 1.0
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
        factor, inner = factors(one)
        if number is None or number < 0 or factor <= 0 or len(inner) != 1:
            continue
        made = inner[0].value.operation
        if made is None or inner[0].weight == -1 or _half_power(made) != 1:
            continue
        square, path = made.operands[0], (*inner[0].path, *leaf.path)
        number /= factor
        if operation.name == "add":
            return Divisor(square, path, factor, offset=number)
        return Divisor(square, path, factor, floor=number)
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
        if operation.name in ("reduce_sum", "dot_general"):
            base = _summed_square(operation)
            if base is None:
                queue.extend(operation.operands)  # A mean of means.
                continue
            made = base.operation
            if made is not None and made.name == "sub":
                yield _untransposed(made.operands[0])
            yield _untransposed(base)
            yield base
            if made is not None and made.name in ("mul", "div"):  # The square of 3 x.
                yield from (bare(x) for x in made.operands if x.shape == base.shape)
        elif operation.name in _AROUND_A_SUM:
            queue.extend(operation.operands)


def _untransposed(value: Value) -> Value:
    """What `vmap` moved the axes of."""
    value = bare(value)
    while value.operation is not None and value.operation.name == "transpose":
        value = bare(value.operation.operands[0])
    return value


def _summed_square(operation: Operation) -> Value | None:
    """What is squared and summed."""
    first = bare(operation.operands[0])
    if operation.name == "dot_general":
        return first if first is bare(operation.operands[1]) else None
    return _squared(first.operation)


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
