"""Rules of matrix products and convolutions.

All are one inequality, for the product over contracted axes C of x and y, whose own
axes are X and Y: a Euclidean norm over C of one times the operator norm C → Y of the
other; or, where x is weights that are summed over C, the sum of their sizes times the
largest of what they weigh. A norm over C of both is Cauchy-Schwarz: the case of an
operator with one output. It holds with one factor for all of Y, so that the maximum
over Y is inside the Euclidean norm over X and batches (mark `"m"`): a change of the
queries of each head changes all logits of that head by no more.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from manifold_optax.modular._bounds._mixed_norm import (
    Factors,
    joined,
    MixedNorm,
    ratio,
    remarked,
)
from manifold_optax.modular._bounds._number import Size, smallest
from manifold_optax.modular._bounds._sizes import Move, Rule, RULES, Sizes, times
from manifold_optax.modular._computation._graph import Operation, Value
from manifold_optax.modular._primitives._entries import meeting

Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Side:
    """One operand of a product: its axes by what becomes of them."""

    value: Value
    batch: Axes
    contracted: Axes
    free: Axes
    result: Axes
    """Where the free axes stand in the result."""

    def norm(self, batch: Any, contracted: str, free: Any) -> MixedNorm:
        """A norm of the operand; `batch` and `free`: a mark, or factors by axis."""
        axes: list[Factors] = [()] * len(self.value.shape)
        for group, marks in (
            (self.batch, batch),
            (self.contracted, contracted),
            (self.free, free),
        ):
            for k, axis in enumerate(group):
                size = self.value.shape[axis]
                axes[axis] = (
                    joined([(size, marks)]) if isinstance(marks, str) else marks[k]
                )
        return MixedNorm(tuple(axes))

    def parts(self, norm: MixedNorm) -> tuple[list[Factors], set[str], list[Factors]]:
        """A norm of the operand in its parts: batch, marks over C, free."""
        marks = {m for axis in self.contracted for _, m in norm.axes[axis]}
        return (
            [norm.axes[axis] for axis in self.batch],
            marks,
            [norm.axes[axis] for axis in self.free],
        )


def _sides(operation: Operation) -> tuple[_Side, _Side]:
    """The two operands of a `dot_general`, whose result is batch, left, right."""
    (left, right), (batch_left, batch_right) = operation.params["dimension_numbers"]
    x, y = operation.operands
    x_free = _others(x, (*left, *batch_left))
    y_free = _others(y, (*right, *batch_right))
    first = len(batch_left)
    middle = first + len(x_free)
    return (
        _Side(x, tuple(batch_left), tuple(left), x_free, tuple(range(first, middle))),
        _Side(
            y, tuple(batch_right), tuple(right), y_free,
            tuple(range(middle, middle + len(y_free))),
        ),
    )  # fmt: skip


def _others(value: Value, axes: Sequence[int]) -> Axes:
    return tuple(k for k in range(len(value.shape)) if k not in axes)


def _dot_size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
    del result
    if norm.has("s"):
        other = remarked(norm, "s", "o")
        return ratio(norm, other) * sizes.bound(operation.results[0], other)
    x, y = _sides(operation)
    batch = [norm.axes[k] for k in range(len(x.batch))]
    if any(mark == "i" for axis in batch for _, mark in axis):
        return math.inf
    bounds = []
    for carrier, operator in ((x, y), (y, x)):
        # The weight is the operator: its norm is what is known of it.
        if sizes.is_weight(carrier.value) and not sizes.is_weight(operator.value):
            continue
        bounds.append(_carried(carrier, operator, batch, norm, sizes))
        if not sizes.is_weight(operator.value):
            bounds.append(_weighed(carrier, operator, batch, norm, sizes))
    return smallest(bounds)


def _carried(
    x: _Side, y: _Side, batch: list[Factors], norm: MixedNorm, sizes: Sizes
) -> Size:
    """‖xy‖ ≤ ‖x‖ over C · ‖y‖ as an operator from C."""
    x_free = [norm.axes[k] for k in x.result]
    y_free = [norm.axes[k] for k in y.result]
    if any(m == "i" for axis in y_free for _, m in axis):
        return math.inf
    enters = "i" if any(m == "i" for axis in x_free for _, m in axis) else None
    x_norm = x.norm(batch, "o", x_free)
    y_norm = y.norm("b", "i", y_free)
    size = sizes.bound if enters else sizes.entering
    return times(size(x.value, x_norm), sizes.entering(y.value, y_norm))


def _weighed(
    x: _Side, y: _Side, batch: list[Factors], norm: MixedNorm, sizes: Sizes
) -> Size:
    """‖Σ x y‖ ≤ Σ |x| · max ‖y‖, for each entry of the free axes of x."""
    x_free = [norm.axes[k] for k in x.result]
    y_free = [norm.axes[k] for k in y.result]
    count = math.prod(n for axis in (*batch, *x_free) for n, m in axis if m != "b")
    weights = sizes.bound(x.value, x.norm("b", "s", "b"))
    return math.sqrt(count) * times(
        weights, sizes.bound(y.value, y.norm("b", "b", y_free))
    )


def _dot_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Sequence[Sequence[Move]]:
    sides = _sides(operation)
    x, y = sides[position], sides[1 - position]
    ways = []
    given, norm = norm, remarked(norm, "m", "b")
    batch, _, free = x.parts(norm)
    for marks in _over_contracted(x, norm):
        inner = x.norm([_kept(axis, marks) for axis in batch], marks, free)
        factor = ratio(inner, given)
        for y_norm in _partners(y, marks, sizes):
            size = meeting(y.value, x.value, y_norm, sizes)
            if marks == "o" and y_norm == y.norm("b", "o", "b"):
                y_norm = _inside(x, inner, y, sizes)
            outer = _product_norm(operation, x, inner, y, y_norm)
            ways.append([Move(0, factor * size, outer, _reason(y, sizes))])
    return ways


def _inside(x: _Side, inner: MixedNorm, y: _Side, sizes: Sizes) -> MixedNorm:
    """The norm of y by which its free axes are marked after Cauchy-Schwarz over C."""
    others = {m for k in (*x.batch, *x.free) for _, m in inner.axes[k]}
    alone = others <= {"b", "o"} and "o" in others
    live = not (sizes.is_weight(y.value) or sizes.assumptions.nominal)
    return y.norm("b", "o", "m" if alone and live else "b")


def _kept(batch: Factors, marks: str) -> Factors:
    """How a batch axis goes on, by the marks over C: its members differ in y.

    A maximum over C goes with maxima; a sum over C is taken first. An operator from the
    batch to C passes y with one member of the batch at a time, and so does one from C
    to the batch.
    """
    gone = {"b": "ois", "s": "is", "i": "os", "o": "is"}[marks]
    return joined((n, "b" if mark in gone else mark) for n, mark in batch)


def _over_contracted(x: _Side, norm: MixedNorm) -> list[str]:
    """The marks over C to go on with: those of the norm, and the Euclidean norm."""
    _, marks, free = x.parts(norm)
    pure = not any(m == "i" for axis in free for _, m in axis)
    if marks == {"i"}:
        return ["i"]
    if marks == {"b"} or not marks:
        return ["b", "o"]
    if marks == {"s"} and pure:
        return ["s"]
    return ["o"]


def _partners(y: _Side, marks: str, sizes: Sizes) -> list[MixedNorm]:
    """For the marks of a change over C: the norms of y that may count.

    An operator may be measured as a whole, or block by block where its norm is known
    so: the queries of each head for themselves.
    """
    if marks == "s":
        return [y.norm("b", "b", "o")]
    if marks == "b":
        return [y.norm("b", "s", "b")]
    if marks == "i":
        return [y.norm("b", "o", "b")]
    ways = [y.norm("b", "i", "o")]
    for known in sizes.structure(y.value):
        ways.append(y.norm("b", "i", y.parts(remarked(known, "i", "o"))[2]))
    if y.free:
        ways.append(y.norm("b", "o", "b"))
    return list(dict.fromkeys(ways))


def _product_norm(
    operation: Operation, x: _Side, inner: MixedNorm, y: _Side, y_norm: MixedNorm
) -> MixedNorm:
    """The norm of the product: each side's own axes are measured as there."""
    axes: list[Factors] = [()] * len(operation.results[0].shape)
    for k, axis in enumerate(x.batch):
        axes[k] = inner.axes[axis]
    for side, norm in ((x, inner), (y, y_norm)):
        for axis, place in zip(side.free, side.result, strict=True):
            axes[place] = norm.axes[axis]
    return MixedNorm(tuple(axes))


def _reason(y: _Side, sizes: Sizes) -> str:
    return "norm of the weight" if sizes.is_weight(y.value) else "size of its partner"


RULES["dot_general"] = Rule(_dot_size, _dot_moves, operators=True)
