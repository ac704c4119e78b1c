"""Rules of `scan` and `cond`."""

import dataclasses
from collections.abc import Sequence

from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import (
    joined,
    MixedNorm,
    natural_norm,
    ratio,
)
from manifold_optax.modular._bounds._number import largest, Size
from manifold_optax.modular._bounds._sizes import (
    Fact,
    Known,
    Move,
    Rule,
    RULES,
    Sizes,
)
from manifold_optax.modular._computation._graph import Operation
from manifold_optax.modular._primitives._loop import (
    largest_change,
    Loop,
    loop_of,
    outside,
)


def _scan_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> Size:
    loop = loop_of(operation, sizes)
    out = loop.body.outputs[result]
    if result < operation.params["num_carry"]:
        start = operation.operands[loop.carried[result]]
        return largest((loop.sizes.bound(out, norm), sizes.bound(start, norm)))
    factor = MixedNorm(norm.axes[:1]).of_ones
    return factor * loop.sizes.bound(out, MixedNorm(norm.axes[1:]))


def _scan_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Sequence[Sequence[Move]]:
    loop = loop_of(operation, sizes)
    if position in loop.carried:
        inner = natural_norm(operation.operands[position].shape)
        start = [0.0] * len(loop.carried)
        start[position - loop.carried.start] = ratio(inner, norm)
        changes = largest_change(loop, start, [0.0] * len(loop.to))
    else:
        sliced = position >= loop.carried.stop
        inner = MixedNorm(norm.axes[1:]) if sliced else norm
        added = loop.step(position, inner)
        changes = largest_change(loop, [0.0] * len(loop.carried), added)
    return [moves_to(loop, changes)]


def moves_to(loop: Loop, changes: Sequence[Size]) -> list[Move]:
    """One move for each result that changes."""
    moves = []
    for result, change in enumerate(changes):
        if not change:
            continue
        norm = natural_norm(loop.body.outputs[result].shape)
        if result >= len(loop.carried):
            norm = MixedNorm((joined([(loop.length, "b")]), *norm.axes))
        moves.append(Move(result, change, norm, f"{loop.length} steps"))
    return moves


def _branches(operation: Operation, sizes: Sizes) -> list[Loop]:
    """The branches of a `cond`, each as a loop of one step that carries nothing."""
    known_of = operation.operands[1:]
    read = []
    for body in operation.bodies:
        known = {
            inner: Known(outside(outer, sizes, sliced=False), *sizes.flags(outer))
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
) -> Size:
    """The worse branch."""
    branches = sizes.loop(operation, lambda: _branches(operation, sizes))
    return largest(b.sizes.bound(b.body.outputs[result], norm) for b in branches)


def _cond_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Sequence[Sequence[Move]]:
    """The worse branch, where the branch does not depend on what changes."""
    if position == 0 or sizes.is_moving(operation.operands[0]):
        return RULES["argmax"].moves(operation, position, norm, sizes)
    branches = sizes.loop(operation, lambda: _branches(operation, sizes))
    changes = (b.step(position - 1, norm) for b in branches)
    worst = map(largest, zip(*changes, strict=True))
    return [
        [
            Move(k, change, natural_norm(value.shape), "the worse branch")
            for k, (change, value) in enumerate(
                zip(worst, operation.results, strict=True)
            )
            if change
        ]
    ]


RULES["scan"] = Rule(_scan_size, _scan_moves, operators=True)
RULES["cond"] = Rule(_cond_size, _cond_moves, operators=True)
