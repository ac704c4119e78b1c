"""A loop as it is read: once, whatever its length.

A change that enters a scan grows from step to step by the gains between its carried
values, a small matrix of numbers.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence

from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import (
    joined,
    MixedNorm,
    natural_norm,
)
from manifold_optax.modular._bounds._number import largest, Size, total
from manifold_optax.modular._bounds._sizes import (
    Fact,
    Known,
    known_facts,
    no_facts,
    Sizes,
    times,
)
from manifold_optax.modular._computation._graph import Graph, Operation, Value

_ROUNDS = 512
"""So often is a body read for the sizes of what it carries; then they count as
unbounded."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """A scan as it was read: its body, and how changes grow in one step."""

    operation: Operation
    sizes: Sizes
    to: tuple[Gains, ...]
    """For each result of the body: the gains towards it, in its natural norm."""

    @property
    def body(self) -> Graph:
        return self.operation.bodies[0]

    @property
    def carried(self) -> range:
        """Which operands are carried."""
        first = self.operation.params["num_consts"]
        return range(first, first + self.operation.params["num_carry"])

    @property
    def length(self) -> int:
        return self.operation.params["length"]

    def step(self, operand: int, norm: MixedNorm) -> list[Size]:
        """What one step makes of a change of an input of the body, by result."""
        value = self.body.inputs[operand]
        if not value.is_float:
            return [0.0] * len(self.to)
        pairs = zip(self.to, self.body.outputs, strict=True)
        moving = self.sizes.is_moving(value)
        return [
            # An integer moves by jumps alone: its gain is 0, or an error.
            gains.gain(value, norm) if out.is_float or moving else 0.0
            for gains, out in pairs
        ]

    def growth(self) -> list[tuple[Size, ...]]:
        """By result, then by what is carried: the same for all that is carried."""
        columns = [
            self.step(k, natural_norm(self.body.inputs[k].shape)) for k in self.carried
        ]
        return list(zip(*columns, strict=True)) if columns else [()] * len(self.to)


def loop_of(operation: Operation, sizes: Sizes) -> Loop:
    """A scan, read once for one analysis."""
    return sizes.loop(operation, lambda: _read(operation, sizes))


def _read(operation: Operation, sizes: Sizes) -> Loop:
    (body,) = operation.bodies
    inside = _sizes_inside(operation, sizes)
    to = tuple(
        Gains(body, inside, {out: [Fact(natural_norm(out.shape), 1.0)]})
        for out in body.outputs
    )
    return Loop(operation, inside, to)


def _sizes_inside(operation: Operation, sizes: Sizes) -> Sizes:
    """The sizes of a body: those of what it carries grow until they stay, or for ever.

    Raising all of them to their largest over the steps keeps every bound true.
    """
    (body,) = operation.bodies
    count = operation.params["num_carry"]
    known = _known(operation, sizes)
    carried = body.inputs[operation.params["num_consts"] :][:count]
    outer = operation.operands[operation.params["num_consts"] :][:count]
    outputs = body.outputs[:count]
    current = [_natural(sizes, value) for value in outer]

    def inside() -> Sizes:
        for value, size in zip(carried, current, strict=True):
            known[value] = known[value]._replace(facts=_facts(value, size, sizes))
        return Sizes(body, known, sizes.assumptions)

    while _widen(known, inside(), carried, outputs):
        pass
    if sizes.assumptions.nominal:
        return inside()
    for step in range(1, operation.params["length"]):
        if step == _ROUNDS:
            current = [math.inf] * count
            break
        after = [_natural(inside(), out) for out in outputs]
        raised = [largest(pair) for pair in zip(after, current, strict=True)]
        if all(map(operator.eq, raised, current)):
            break
        current = raised
    return inside()


def _known(operation: Operation, sizes: Sizes) -> dict[Value, Known]:
    """What the body knows of its inputs: what is known outside, of each slice."""
    (body,) = operation.bodies
    first = operation.params["num_consts"] + operation.params["num_carry"]
    known = {}
    for position, (inner, outer) in enumerate(
        zip(body.inputs, operation.operands, strict=True)
    ):
        sliced = position >= first
        norms = sizes.structure(outer)
        if sliced:
            norms = tuple(MixedNorm(norm.axes[1:]) for norm in norms)
        facts = outside(outer, sizes, sliced=sliced)
        params, inputs, moves = sizes.flags(outer)
        known[inner] = Known(facts, params, inputs, moves, norms)
    return known


def outside(value: Value, sizes: Sizes, *, sliced: bool):
    """The bounds of a value outside of the loop, or of the largest of its slices."""

    def bound(norm: MixedNorm) -> Size:
        if sliced:
            norm = MixedNorm((joined([(value.shape[0], "b")]), *norm.axes))
        return sizes.bound(value, norm)

    return bound


def _widen(
    known: dict[Value, Known],
    inside: Sizes,
    carried: Sequence[Value],
    outputs: Sequence[Value],
) -> bool:
    """Notes what the carried values come to depend on; whether that is news."""
    news = False
    for value, out in zip(carried, outputs, strict=True):
        old = known[value]
        params, inputs, moves = inside.flags(out)
        new = old._replace(
            params=old.params or params,
            inputs=old.inputs or inputs,
            moves=old.moves or moves,
        )
        news |= new != old
        known[value] = new
    return news


def _facts(value: Value, size: Size, sizes: Sizes):
    if not value.is_float:
        return no_facts
    if sizes.assumptions.nominal:
        return lambda norm: norm.of_ones
    return known_facts(Fact(natural_norm(value.shape), size))


def _natural(sizes: Sizes, value: Value) -> Size:
    return sizes.bound(value, natural_norm(value.shape)) if value.is_float else 0.0


def largest_change(
    loop: Loop, start: Sequence[Size], added: Sequence[Size]
) -> list[Size]:
    """The changes of all results: those carried at the end, the largest stacked ones.

    `start` is the change of what is carried in, `added` what each step adds.
    """
    growth = loop.growth()
    count = len(loop.carried)
    change, stacked = list(start), [0.0] * (len(loop.to) - count)
    for _ in range(loop.length):
        after = [x + y for x, y in zip(grown(growth, change), added, strict=True)]
        change = after[:count]
        stacked = [largest(pair) for pair in zip(stacked, after[count:], strict=True)]
    return [*change, *stacked]


def grown(growth: Sequence[Sequence[Size]], change: Sequence[Size]) -> list[Size]:
    """A product of a matrix and a vector of sizes."""
    return [total(map(times, row, change)) for row in growth]
