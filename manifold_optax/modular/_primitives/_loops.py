"""Rules of `scan` and `cond`.

A change that enters a scan grows from step to step by the gains between its carried
values, a small matrix of numbers; so a loop of a thousand steps is read once.
"""

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence

import numpy as np

from manifold_optax.modular._gains import Gains
from manifold_optax.modular._graph import Graph, Operation, Value
from manifold_optax.modular._mixed_norm import (
    joined,
    MixedNorm,
    natural_norm,
    ratio,
)
from manifold_optax.modular._sizes import (
    Fact,
    Known,
    known_facts,
    Move,
    no_facts,
    Rule,
    RULES,
    Sizes,
)

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

    def step(self, operand: int, norm: MixedNorm) -> np.ndarray:
        """What one step makes of a change of an input of the body, by result."""
        value = self.body.inputs[operand]
        if not value.is_float:
            return np.zeros(len(self.to))
        pairs = zip(self.to, self.body.outputs, strict=True)
        return np.array([
            # An integer moves by jumps alone: its gain is 0, or an error.
            gains.gain(value, norm) if out.is_float or self.sizes.moves(value) else 0.0
            for gains, out in pairs
        ])  # fmt: skip

    def growth(self) -> np.ndarray:
        """`[results, carried]`: the same for all that is carried."""
        columns = [
            self.step(k, natural_norm(self.body.inputs[k].shape)) for k in self.carried
        ]
        return np.stack(columns, axis=1) if columns else np.zeros((len(self.to), 0))


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
        if all(map(operator.le, after, current)):
            break
        current = list(map(max, after, current))
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
        facts = _outside(outer, sizes, sliced=sliced)
        params, inputs, moves = sizes.flags(outer)
        known[inner] = Known(facts, params, inputs, moves, norms)
    return known


def _outside(value: Value, sizes: Sizes, *, sliced: bool):
    """The bounds of a value outside of the loop, or of the largest of its slices."""

    def bound(norm: MixedNorm) -> float:
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


def _facts(value: Value, size: float, sizes: Sizes):
    if not value.is_float:
        return no_facts
    if sizes.assumptions.nominal:
        return lambda norm: math.sqrt(norm.count("oi")) * norm.count("s")
    return known_facts(Fact(natural_norm(value.shape), size))


def _natural(sizes: Sizes, value: Value) -> float:
    return sizes.bound(value, natural_norm(value.shape)) if value.is_float else 0.0


def _scan_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    loop = loop_of(operation, sizes)
    out = loop.body.outputs[result]
    if result < operation.params["num_carry"]:
        start = operation.operands[loop.carried[result]]
        return max(loop.sizes.bound(out, norm), sizes.bound(start, norm))
    first = MixedNorm(norm.axes[:1])
    factor = math.sqrt(first.count("oi")) * first.count("s")
    return factor * loop.sizes.bound(out, MixedNorm(norm.axes[1:]))


def _scan_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Sequence[Sequence[Move]]:
    loop = loop_of(operation, sizes)
    if position in loop.carried:
        inner = natural_norm(operation.operands[position].shape)
        start = np.zeros(len(loop.carried))
        start[position - loop.carried.start] = ratio(inner, norm)
        largest = _largest_change(loop, start, np.zeros(len(loop.to)))
    else:
        sliced = position >= loop.carried.stop
        inner = MixedNorm(norm.axes[1:]) if sliced else norm
        added = loop.step(position, inner)
        largest = _largest_change(loop, np.zeros(len(loop.carried)), added)
    return [_moves_to(loop, largest)]


def _moves_to(loop: Loop, changes: np.ndarray) -> list[Move]:
    """One move for each result that changes."""
    moves = []
    for result, change in enumerate(changes):
        if change == 0:
            continue
        norm = natural_norm(loop.body.outputs[result].shape)
        if result >= len(loop.carried):
            norm = MixedNorm((joined([(loop.length, "b")]), *norm.axes))
        moves.append(Move(result, float(change), norm, f"{loop.length} steps"))
    return moves


def _largest_change(loop: Loop, start: np.ndarray, added: np.ndarray) -> np.ndarray:
    """The changes of all results: those carried at the end, the largest stacked ones.

    `start` is the change of what is carried in, `added` what each step adds.
    """
    growth = loop.growth()
    count = len(loop.carried)
    change, largest = start, np.zeros(len(loop.to) - count)
    for _ in range(loop.length):
        total = _apply(growth, change) + added
        change, stacked = total[:count], total[count:]
        largest = np.maximum(largest, stacked)
    return np.concatenate([change, largest])


def slice_changes(loop: Loop, added: np.ndarray) -> np.ndarray:
    """`[steps, results]`: the changes of the results where one step adds `added`."""
    growth = loop.growth()
    count = len(loop.carried)
    change, largest = added[:count], added[count:]
    rows = []
    for _ in range(loop.length):
        rows.append(np.concatenate([change, largest]))
        total = _apply(growth, change)
        change, largest = total[:count], np.maximum(largest, total[count:])
    # The step that is last before the end comes first here.
    rows = rows if loop.operation.params["reverse"] else rows[::-1]
    return np.reshape(rows, (loop.length, len(loop.to)))


def _apply(growth: np.ndarray, change: np.ndarray) -> np.ndarray:
    """A product of non-negative numbers in which 0 times infinity is 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        terms = growth * change[None, :]
    return np.sum(np.where(np.isnan(terms), 0.0, terms), axis=1)


def _branches(operation: Operation, sizes: Sizes) -> list[Loop]:
    """The branches of a `cond`, each as a loop of one step that carries nothing."""
    known_of = operation.operands[1:]
    read = []
    for body in operation.bodies:
        known = {
            inner: Known(_outside(outer, sizes, sliced=False), *sizes.flags(outer))
            for inner, outer in zip(body.inputs, known_of, strict=True)
        }
        inside = Sizes(body, known, sizes.assumptions)
        to = tuple(
            Gains(body, inside, {out: [Fact(natural_norm(out.shape), 1.0)]})
            for out in body.outputs
        )
        one = dataclasses.replace(
            operation, bodies=(body,), params={"num_consts": 0, "num_carry": 0}
        )
        read.append(Loop(one, inside, to))
    return read


def _cond_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    """The worse branch."""
    branches = sizes.loop(operation, lambda: _branches(operation, sizes))
    return max(b.sizes.bound(b.body.outputs[result], norm) for b in branches)


def _cond_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Sequence[Sequence[Move]]:
    """The worse branch, where the branch does not depend on what changes."""
    if position == 0 or sizes.moves(operation.operands[0]):
        return RULES["argmax"].moves(operation, position, norm, sizes)
    branches = sizes.loop(operation, lambda: _branches(operation, sizes))
    worst = np.max([b.step(position - 1, norm) for b in branches], axis=0)
    return [
        [
            Move(k, float(change), natural_norm(value.shape), "the worse branch")
            for k, (change, value) in enumerate(
                zip(worst, operation.results, strict=True)
            )
            if change
        ]
    ]


RULES["scan"] = Rule(_scan_size, _scan_moves, operators=True)
RULES["cond"] = Rule(_cond_size, _cond_moves, operators=True)


def slice_gains(gains: Gains, leaf: Value, norm: MixedNorm) -> tuple[float, ...]:
    """The gain of each slice of a leaf that a loop runs through; else of the leaf.

    A change of one layer of a stack passes the layers after it alone. Where loops are
    nested, those of the inner one lie side by side.
    """
    way, scans = _scans_of(leaf, gains.uses)
    if not scans:
        return (gains.gain(leaf, norm),)
    factor = 1.0
    for operation in way:
        ((move,), *_) = RULES[operation.name].moves(operation, 0, norm, gains.sizes)
        factor, norm = factor * move.factor, move.norm
    total = np.zeros((leaf.shape[0], _slices_inside(scans)))
    for operation, position in scans:
        loop, inner = loop_of(operation, gains.sizes), MixedNorm(norm.axes[1:])
        if total.shape[1] == 1:
            added = loop.step(position, inner)[:, None]
        else:
            value = loop.body.inputs[position]
            added = np.array([slice_gains(to, value, inner) for to in loop.to])
        for index in range(total.shape[1]):
            rows = slice_changes(loop, added[:, index] * factor)
            beyond = [
                _gain_of_result(gains, loop, k) if np.any(rows[:, k]) else 0.0
                for k in range(len(loop.to))
            ]
            total[:, index] += _apply(rows, np.array(beyond))
    return tuple(map(float, total.ravel()))


def _gain_of_result(gains: Gains, loop: Loop, result: int) -> float:
    (move,) = _moves_to(loop, np.eye(len(loop.to))[result])
    return gains.gain(loop.operation.results[result], move.norm)


def slices_of(
    leaf: Value, uses: Mapping[Value, Sequence[tuple[Operation, int]]]
) -> int:
    """How many slices a leaf has that a loop runs through; 1 for every other leaf.

    Slices of nested loops are counted one by one.
    """
    _, scans = _scans_of(leaf, uses)
    return leaf.shape[0] * _slices_inside(scans) if scans else 1


def _slices_inside(scans: Sequence[tuple[Operation, int]]) -> int:
    """Into how many slices the bodies of loops take each of their own; else 1."""
    found = set()
    for operation, position in scans:
        (body,) = operation.bodies
        found.add(slices_of(body.inputs[position], body.uses()))
    return found.pop() if len(found) == 1 else 1


def _scans_of(
    leaf: Value, uses: Mapping[Value, Sequence[tuple[Operation, int]]]
) -> tuple[list[Operation], list[tuple[Operation, int]]]:
    """The loops that run through a leaf, if nothing else uses it.

    Before them it may be cast or scaled: these steps come first.
    """
    way: list[Operation] = []
    found = uses.get(leaf, ())
    while len(found) == 1 and found[0][0].name in ("entrywise", "convert_element_type"):
        way.append(found[0][0])
        found = uses.get(way[-1].results[0], ())
    sliced = [
        (operation, position)
        for operation, position in found
        if operation.name == "scan"
        and position >= operation.params["num_consts"] + operation.params["num_carry"]
    ]
    return (way, sliced) if len(sliced) == len(found) else ([], [])
