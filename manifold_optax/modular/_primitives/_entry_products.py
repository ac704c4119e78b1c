"""Rules of products and quotients, entry by entry."""

from collections.abc import Sequence

from manifold_optax.modular._bounds._mixed_norm import (
    joined,
    MixedNorm,
    ratio,
    remarked,
)
from manifold_optax.modular._bounds._number import Size, smallest
from manifold_optax.modular._bounds._sizes import (
    all_max,
    Move,
    Rule,
    RULES,
    Sizes,
    times,
    unfollowed,
)
from manifold_optax.modular._computation._graph import Operation, Value
from manifold_optax.modular._primitives._entries import (
    entry_by_entry,
    meeting,
    spread,
    within,
)

Moves = Sequence[Sequence[Move]]


def _mul_size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
    """The largest entry of one times the norm of the other, either way.

    For an operator norm the one must scale whole rows, or whole columns.
    """
    del result
    scales = [k for k in (0, 1) if _scales(operation, k, norm, sizes)]
    if not scales:
        norm, scales = remarked(norm, "i", "o"), [0, 1]
    pairs = ((operation.operands[k], operation.operands[1 - k]) for k in scales)
    return smallest(
        times(_largest(x, y, sizes), _size_in(y, x, norm, sizes)) for x, y in pairs
    )


def _scales(operation: Operation, position: int, norm: MixedNorm, sizes: Sizes) -> bool:
    """Whether a factor bounds a product by its largest entry, in this norm."""
    if not norm.has("i"):
        return True
    equal = _repeated(operation, position, sizes)
    sides = [
        {k for k, axis in enumerate(norm.axes) if any(m == mark for _, m in axis)}
        for mark in "io"
    ]
    return any(side <= equal for side in sides)


def _largest(value: Value, other: Value, sizes: Sizes) -> Size:
    return _size_in(value, other, all_max(value.shape), sizes)


def _size_in(value: Value, other: Value, norm: MixedNorm, sizes: Sizes) -> Size:
    """The size of one factor; of two activations each is assumed, in nominal."""
    if sizes.is_weight(other) or sizes.is_weight(value) or not sizes.is_moving(other):
        return within(value, norm, sizes.bound)
    return within(value, norm, lambda x, inner: meeting(x, other, inner, sizes))


def _mul_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """The change times the largest entry of the other factor.

    A factor that is one number for a whole row turns the other factor as a whole: its
    norm over that row is then what counts.
    """
    x, y = operation.operands[position], operation.operands[1 - position]
    factor: Size = 1.0
    if not _scales(operation, 1 - position, norm, sizes):
        larger = remarked(norm, "i", "o")
        factor, norm = ratio(larger, norm), larger
    outer = spread(operation, position, norm)
    largest = times(factor, _size_in(y, x, all_max(y.shape), sizes))
    ways = [[Move(0, largest, outer, "factor")]]
    rows = _repeated(operation, position, sizes)
    if rows and y.shape == outer.shape:
        wide = MixedNorm(
            tuple(
                joined([(n, "o") for n, _ in axis]) if k in rows else axis
                for k, axis in enumerate(outer.axes)
            )
        )
        other = MixedNorm(
            tuple(
                joined([(n, "o" if k in rows else "b") for n, _ in axis])
                for k, axis in enumerate(outer.axes)
            )
        )
        size = times(factor, _size_in(y, x, other, sizes))
        ways.append([Move(0, size, wide, "row factor")])
    return ways


def _repeated(operation: Operation, position: int, sizes: Sizes) -> frozenset[int]:
    """The axes of the result along which an operand has equal entries."""
    x = operation.operands[position]
    rank = len(operation.results[0].shape)
    if x.shape == () and rank:
        return frozenset(range(rank))
    maker = sizes.graph.maker(x)
    if maker is None or maker.name != "broadcast_in_dim":
        return frozenset()
    (inner,) = maker.operands
    kept = {
        outer
        for k, outer in enumerate(maker.params["broadcast_dimensions"])
        if inner.shape[k] == x.shape[outer]
    }
    return frozenset(k for k in range(rank) if k not in kept and x.shape[k] > 1)


def _div_size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
    del result
    x, y = operation.operands
    if y.shape == norm.shape:
        norm = remarked(norm, "i", "o")
    return times(_reciprocal(operation, sizes), within(x, norm, sizes.bound))


def _div_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """d(x/y) = dx/y − x dy/y²."""
    x, y = operation.operands
    least = _reciprocal(operation, sizes)
    outer, factor = spread(operation, position, norm), 1.0
    if y.shape == outer.shape:
        factor, outer = entry_by_entry(outer)
    if position:
        least = times(least * least, sizes.entering(x, all_max(x.shape)))
    return [[Move(0, times(factor, least), outer, "divisor")]]


def _reciprocal(operation: Operation, sizes: Sizes) -> Size:
    """The largest |1/y| of the divisor."""
    y = operation.operands[1]
    least = sizes.least(y)
    if least > 0:
        return 1 / least
    if sizes.assumptions.nominal:
        return 1.0
    raise unfollowed(operation, "nothing bounds the divisor away from 0")


RULES["mul"] = Rule(_mul_size, _mul_moves, operators=True)
RULES["div"] = Rule(_div_size, _div_moves)
