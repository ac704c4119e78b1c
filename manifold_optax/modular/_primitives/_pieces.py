"""Rules of arrays that are put together of several, or taken apart."""

import itertools
import math
from collections.abc import Sequence

from manifold_optax.modular._bounds._mixed_norm import (
    euclidean,
    joined,
    MixedNorm,
    ratio,
)
from manifold_optax.modular._bounds._number import hypot, largest, Size, total
from manifold_optax.modular._bounds._sizes import Move, Rule, RULES, Sizes
from manifold_optax.modular._computation._graph import Operation
from manifold_optax.modular._primitives._shapes import cut, REPEATED

Moves = Sequence[Sequence[Move]]


def _together(mark: str, bounds: Sequence[Size]) -> Size:
    """Parts under a maximum: the largest; under a norm: the norm of their norms."""
    if mark == "b":
        return largest(bounds)
    return total(bounds) if mark == "s" else hypot(bounds)


def _concatenate_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> Size:
    """Part by part, where blocks stay whole; else by the Euclidean norm of the axis."""
    del result
    axis = operation.params["dimension"]
    ends = list(itertools.accumulate(x.shape[axis] for x in operation.operands))
    inner = math.prod(n for n, _ in norm.axes[axis][1:])
    factor = 1.0
    if any(end % inner for end in ends):
        wide = euclidean(norm, {axis})
        factor, norm = ratio(norm, wide), wide
    mark = norm.axes[axis][0][1] if norm.axes[axis] else "b"
    bounds = []
    for end, x in zip(ends, operation.operands, strict=True):
        starts = _along(operation, axis, end - x.shape[axis])
        once, part = cut(norm, x.shape, starts, back=True)
        bounds.append(once * sizes.bound(x, part))
    return factor * _together(mark, bounds)


def _along(operation: Operation, axis: int, start: int) -> list[int | None]:
    rank = len(operation.operands[0].shape)
    return [start if k == axis else 0 for k in range(rank)]


def _concatenate_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """Zeros beside a change add nothing to any norm."""
    del sizes
    axis = operation.params["dimension"]
    start = sum(operand.shape[axis] for operand in operation.operands[:position])
    starts = _along(operation, axis, start)
    return [[Move(0, *cut(norm, operation.results[0].shape, starts, back=False))]]


def _split_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> Size:
    (x,) = operation.operands
    factor, inner = cut(norm, x.shape, _split_starts(operation, result), back=True)
    return factor * sizes.bound(x, inner)


def _split_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    del position, sizes
    moves = []
    for result, value in enumerate(operation.results):
        starts = _split_starts(operation, result)
        moves.append(Move(result, *cut(norm, value.shape, starts, back=False)))
    return [moves]


def _split_starts(operation: Operation, result: int) -> list[int | None]:
    start = int(sum(operation.params["sizes"][:result]))
    return _along(operation, operation.params["axis"], start)


def _with_axis(norm: MixedNorm, axis: int, size: int) -> MixedNorm:
    """The largest over a new axis."""
    new = joined([(size, "b")])
    return MixedNorm((*norm.axes[:axis], new, *norm.axes[axis:]))


def _without_axis(norm: MixedNorm, axis: int) -> MixedNorm:
    return MixedNorm((*norm.axes[:axis], *norm.axes[axis + 1 :]))


def _stack_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> Size:
    del result
    axis = operation.params["axis"]
    factor = 1.0
    if len(norm.axes[axis]) > 1:
        wide = euclidean(norm, {axis})
        factor, norm = ratio(norm, wide), wide
    mark = norm.axes[axis][0][1] if norm.axes[axis] else "b"
    one = _without_axis(norm, axis)
    return factor * _together(mark, [sizes.bound(x, one) for x in operation.operands])


def _stack_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """Zeros beside a change add nothing to any norm."""
    del position, sizes
    count = len(operation.operands)
    return [[Move(0, 1.0, _with_axis(norm, operation.params["axis"], count))]]


def _unstack_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> Size:
    del result
    axis, count = operation.params["axis"], len(operation.results)
    return sizes.bound(operation.operands[0], _with_axis(norm, axis, count))


def _unstack_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """No slice is larger than the whole."""
    del position, sizes
    one = _without_axis(norm, operation.params["axis"])
    return [[Move(result, 1.0, one) for result in range(len(operation.results))]]


def _pads(operation: Operation) -> list[int | None]:
    pads = operation.params["padding_config"]
    return [None if inner or low < 0 else int(low) for low, _, inner in pads]


def _pad_size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
    """What is padded, and what it is padded with."""
    del result
    x, fill = operation.operands
    factor, inner = cut(norm, x.shape, _pads(operation), back=True)
    around = sizes.bound(fill, MixedNorm(()))
    count = math.prod(n ** REPEATED[mark] for n, mark in norm.factors)
    return factor * sizes.bound(x, inner) + (around * count if around else 0.0)


def _pad_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """Zeros around a change; a change of the border changes every entry there."""
    del sizes
    shape = operation.results[0].shape
    if position:
        return [[Move(0, 1.0, MixedNorm(tuple(joined([(n, "b")]) for n in shape)))]]
    return [[Move(0, *cut(norm, shape, _pads(operation), back=False))]]


RULES["concatenate"] = Rule(_concatenate_size, _concatenate_moves, operators=True)
RULES["split"] = Rule(_split_size, _split_moves, operators=True)
RULES["stack"] = Rule(_stack_size, _stack_moves, operators=True)
RULES["unstack"] = Rule(_unstack_size, _unstack_moves, operators=True)
RULES["pad"] = Rule(_pad_size, _pad_moves, operators=True)
