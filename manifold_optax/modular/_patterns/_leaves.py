"""Sums and products as lists of what is added or multiplied, seen through layouts."""

import dataclasses
from collections.abc import Callable

from manifold_optax.modular._computation._constants import constant_number, is_constant
from manifold_optax.modular._computation._graph import made_by, Operation, Value
from manifold_optax.modular._patterns._layout import bare, Layout, moved, STRUCTURE

MOST_LEAVES = 24
"""A longer sum or product is no pattern; the search for one stays cheap."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A factor of a product, or a term of a sum.

    Attributes:
        value: what it is, without casts.
        weight: its power (1 or -1), or its sign.
        path: how it is brought into the shape of the whole; the first acts first.
    """

    value: Value
    weight: int
    path: tuple[Operation, ...] = ()

    def layout(self, layout: Layout | None) -> Layout | None:
        """`layout`, a layout of the value, in the shape of the whole."""
        for operation in self.path:
            layout = None if layout is None else moved(layout, operation)
        return layout

    def placed(self) -> Value:
        """The value in the shape of the whole, by new operations; numbers stay so."""
        value = self.value
        for operation in self.path if value.shape else ():
            (value,) = made_by(
                operation.name,
                (value,),
                operation.params,
                [(operation.results[0].shape, value.dtype)],
                primitive=operation.primitive,
                sources=operation.sources,
            )
        return value


def factors(
    whole: Value, stop: Callable[[Leaf], bool] = lambda _: False
) -> tuple[float, list[Leaf]]:
    """A product as a number and its factors; `stop` says which are not taken apart."""
    number, kept = 1.0, []
    for leaf in _leaves(whole, stop, _factors_of):
        constant = None if stop(leaf) else constant_number(leaf.value)
        if constant is None or constant == 0:
            kept.append(leaf)
        else:
            number *= constant**leaf.weight
    return number, kept


def terms(whole: Value) -> list[Leaf]:
    """What is added up to a value, with its signs."""
    leaves = _leaves(whole, lambda _: False, _terms_of)
    return [leaf for leaf in leaves if constant_number(leaf.value) != 0]


def _leaves(
    whole: Value,
    stop: Callable[[Leaf], bool],
    parts: Callable[[Operation], list[tuple[Value, int]]],
) -> list[Leaf]:
    """The parts of the parts, from left to right."""
    stack, found = [Leaf(bare(whole), 1)], []
    while stack and len(stack) + len(found) <= MOST_LEAVES:
        leaf = stack.pop()
        operation = leaf.value.operation
        below: list[Leaf] = []
        if operation is not None and not stop(leaf):
            if operation.name in STRUCTURE:
                path = (operation, *leaf.path)
                below = [Leaf(bare(operation.operands[0]), leaf.weight, path)]
            elif not is_constant(leaf.value):
                below = [
                    Leaf(
                        bare(part),
                        leaf.weight * weight,
                        leaf.path if part.shape else (),
                    )
                    for part, weight in parts(operation)
                ]
        if below:
            stack.extend(reversed(below))
        else:
            found.append(leaf)
    return found + stack


def _factors_of(operation: Operation) -> list[tuple[Value, int]]:
    """The factors of one operation and their powers."""
    if operation.name in ("mul", "div"):
        a, b = operation.operands
        return [(a, 1), (b, 1 if operation.name == "mul" else -1)]
    if operation.name == "integer_pow" and operation.params["y"] == -1:
        return [(operation.operands[0], -1)]
    return []


def _terms_of(operation: Operation) -> list[tuple[Value, int]]:
    """The terms of one operation and their signs."""
    if operation.name in ("add", "add_any", "sub"):
        a, b = operation.operands
        return [(a, 1), (b, -1 if operation.name == "sub" else 1)]
    if operation.name == "neg":
        return [(operation.operands[0], -1)]
    return []
