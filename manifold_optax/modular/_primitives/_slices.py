"""Stacks of layers that a loop runs through, one by one."""

import itertools
from collections.abc import Mapping, Sequence

from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import (
    MixedNorm,
)
from manifold_optax.modular._bounds._number import largest, Size
from manifold_optax.modular._bounds._sizes import RULES, times
from manifold_optax.modular._computation._graph import Operation, Value
from manifold_optax.modular._primitives._loop import grown, Loop, loop_of
from manifold_optax.modular._primitives._loops import moves_to


def slice_gains(gains: Gains, leaf: Value, norm: MixedNorm) -> tuple[Size, ...]:
    """The gain of each slice of a leaf that a loop runs through; else of the leaf.

    A change of one layer of a stack passes the layers after it alone. Where loops are
    nested, those of the inner one lie side by side.
    """
    way, scans = _scans_of(leaf, gains.uses)
    if not scans:
        return (gains.gain(leaf, norm),)
    factor: Size = 1.0
    for operation in way:
        ((move,), *_) = RULES[operation.name].moves(operation, 0, norm, gains.sizes)
        factor, norm = factor * move.factor, move.norm
    inside = _slices_inside(scans)
    found: list[list[Size]] = [[0.0] * inside for _ in range(leaf.shape[0])]
    for operation, position in scans:
        loop, inner = loop_of(operation, gains.sizes), MixedNorm(norm.axes[1:])
        added = [[size] for size in loop.step(position, inner)]
        if inside > 1:
            value = loop.body.inputs[position]
            added = [list(slice_gains(to, value, inner)) for to in loop.to]
        for index in range(inside):
            rows = slice_changes(loop, [times(row[index], factor) for row in added])
            beyond = [
                _gain_of_result(gains, loop, k) if any(row[k] for row in rows) else 0.0
                for k in range(len(loop.to))
            ]
            for place, gain in zip(found, grown(rows, beyond), strict=True):
                place[index] = place[index] + gain
    return tuple(itertools.chain(*found))


def _gain_of_result(gains: Gains, loop: Loop, result: int) -> Size:
    unit = [float(k == result) for k in range(len(loop.to))]
    (move,) = moves_to(loop, unit)
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


def slice_changes(loop: Loop, added: Sequence[Size]) -> list[list[Size]]:
    """By step, then by result: the changes where that step adds `added`."""
    growth = loop.growth()
    count = len(loop.carried)
    change, stacked = list(added[:count]), list(added[count:])
    rows = []
    for _ in range(loop.length):
        rows.append([*change, *stacked])
        after = grown(growth, change)
        change = after[:count]
        stacked = [largest(pair) for pair in zip(stacked, after[count:], strict=True)]
    # The step that is last before the end comes first here.
    return rows if loop.operation.params["reverse"] else rows[::-1]
