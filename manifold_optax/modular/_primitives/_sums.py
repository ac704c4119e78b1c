"""Rules of sums, maxima and sorting."""

import math
from collections.abc import Callable, Iterator, Sequence

from manifold_optax.modular._bounds._convolution_norm import ConvolutionAxis
from manifold_optax.modular._bounds._mixed_norm import (
    euclidean,
    joined,
    MixedNorm,
    ratio,
    remarked,
)
from manifold_optax.modular._bounds._number import Size, smallest
from manifold_optax.modular._bounds._sizes import Move, Rule, RULES, Sizes, times
from manifold_optax.modular._computation._graph import Operation

Moves = Sequence[Sequence[Move]]

_ADDED = {"b": 1.0, "o": 0.5, "i": 0.5, "s": 0.0}
"""The sum of n entries is at most n^k times their norm under a mark."""


def _with(
    norm: MixedNorm, axes: Sequence[int], shape: Sequence[int], mark: str
) -> MixedNorm:
    """The norm of an operand, from that of its reduction along axes."""
    outer = iter(norm.axes)
    return MixedNorm(
        tuple(
            joined([(size, mark)]) if k in axes else next(outer)
            for k, size in enumerate(shape)
        )
    )


def without(norm: MixedNorm, axes: Sequence[int]) -> MixedNorm:
    return MixedNorm(tuple(axis for k, axis in enumerate(norm.axes) if k not in axes))


def _sum_size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
    """By the largest entry, and by the Euclidean norm over what is added."""
    del result
    (x,), axes = operation.operands, operation.params["axes"]
    bounds = []
    for mark in "bo":
        inner = _with(norm, axes, x.shape, mark)
        count = math.prod(x.shape[k] for k in axes)
        bounds.append(count ** _ADDED[mark] * sizes.bound(x, inner))
    return smallest(bounds)


def _sum_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    del position, sizes
    axes = operation.params["axes"]
    factor = math.prod(n ** _ADDED[m] for k in axes for n, m in norm.axes[k])
    return [[Move(0, factor, without(norm, axes), "sum")]]


def _choice(outer: MixedNorm, count: float) -> float:
    """What it costs that each entry of an array is taken from another of `count`.

    `outer` measures the array, and no one of those it is taken from is larger than 1. A
    maximum is no larger; a norm is at most the norm of all those norms, and at most
    that of entries of size 1.
    """
    if not outer.has("os"):
        return 1.0
    return min(outer.of_ones, count if outer.has("s") else math.sqrt(count))


def _largest_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> Size:
    """The largest of several is one of them; several of them, no more than all."""
    del result
    (x,), axes = operation.operands, operation.params["axes"]
    mark = next((mark for mark in "so" if norm.has(mark)), "b")
    return sizes.bound(x, _with(norm, axes, x.shape, mark))


def _largest_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """The largest of several changes by no more than the largest of their changes."""
    del position, sizes
    axes = operation.params["axes"]
    outer = without(norm, axes)
    reduced = MixedNorm(tuple(norm.axes[k] for k in axes))
    count = float(reduced.count("bo" if outer.has("s") else "b"))
    return [[Move(0, _choice(outer, count), outer, "maximum")]]


def _over_axes(
    axes_of: Callable[[Operation], tuple[int, ...]],
    count_of: Callable[[Operation], float],
    reason: str,
    *,
    chosen: bool,
) -> Rule:
    """Each entry is a sum of entries along some axes, or one that is `chosen` there.

    The axes are positions: their largest is what is known.
    """

    def factor(operation: Operation, norm: MixedNorm) -> float:
        count = count_of(operation)
        return _choice(without(norm, axes_of(operation)), count) if chosen else count

    def size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
        x, axes = operation.operands[result], axes_of(operation)
        over = MixedNorm(tuple(norm.axes[k] for k in axes)).of_ones
        inner = _resized(norm, axes, x.shape)
        return over * factor(operation, norm) * sizes.bound(x, inner)

    def moves(
        operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
    ) -> Moves:
        del sizes
        outer = _resized(norm, axes_of(operation), operation.results[0].shape)
        return [[Move(position, factor(operation, norm), outer, reason)]]

    return Rule(size, moves)


def _resized(
    norm: MixedNorm, axes: Sequence[int], shape: Sequence[int], mark: str = "b"
) -> MixedNorm:
    """The norm with one mark for each of some axes, in another shape."""
    return MixedNorm(
        tuple(
            joined([(shape[k], mark)]) if k in axes else axis
            for k, axis in enumerate(norm.axes)
        )
    )


def _windows(operation: Operation) -> dict[int, ConvolutionAxis]:
    """The axes along which windows move, and how."""
    x, y, params = operation.operands[0], operation.results[0], operation.params
    rows = zip(
        params["window_dimensions"], params["window_strides"],
        params["base_dilation"], params["window_dilation"], x.shape,
        (tuple(pad) for pad in params["padding"]), strict=True,
    )  # fmt: skip
    return {
        k: ConvolutionAxis(*row)
        for k, row in enumerate(rows)
        if row[0] > 1 or x.shape[k] != y.shape[k] or row[-1] != (0, 0)
    }


_Factor = Callable[[dict[int, ConvolutionAxis], set[int], MixedNorm], float]
"""What windows do at most: by their axes, those under a Euclidean norm, the others."""


def _window_sum(
    windows: dict[int, ConvolutionAxis], euclidean: set[int], others: MixedNorm
) -> float:
    """A sum has at most as many terms; over all of an axis, the norm of its symbol."""
    del others
    return math.prod(
        (axis.of_ones if k in euclidean else axis.size for k, axis in windows.items()),
        start=1.0,
    )


def _window_choice(
    windows: dict[int, ConvolutionAxis], euclidean: set[int], others: MixedNorm
) -> float:
    """Each entry is one of its window.

    Over all of an axis an entry is counted once for each window that it lies in.
    """
    count = math.prod(
        axis.overlap if k in euclidean else axis.size for k, axis in windows.items()
    )
    if not euclidean:
        return _choice(others, float(count))
    return math.inf if others.has("s") else math.sqrt(count)


def _over_windows(factor: _Factor) -> Rule:
    """Windows move over positions: the largest, or the Euclidean norm over an axis.

    By the largest entry each axis costs the size of its window; where the norm is the
    Euclidean one, also the norm of the map is known from that norm to itself.
    """

    def euclidean(windows: dict[int, ConvolutionAxis], norm: MixedNorm) -> set[int]:
        return {k for k in windows if any(mark == "o" for _, mark in norm.axes[k])}

    def ways(
        operation: Operation, norm: MixedNorm
    ) -> Iterator[tuple[float, MixedNorm, MixedNorm]]:
        """Factors between norms of the operand and of the result."""
        windows = _windows(operation)
        found = euclidean(windows, norm)
        others = without(norm, tuple(windows))
        for chosen in (set[int](), found) if found else (set[int](),):
            inner, outer = norm, norm
            for k in windows:
                mark = "o" if k in chosen else "b"
                inner = _resized(inner, [k], operation.operands[0].shape, mark)
                outer = _resized(outer, [k], operation.results[0].shape, mark)
            yield factor(windows, chosen, others), inner, outer

    def size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
        x = operation.operands[result]
        return smallest(
            ratio(norm, outer) * times(much, sizes.bound(x, inner))
            for much, inner, outer in ways(operation, norm)
        )

    def moves(
        operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
    ) -> Moves:
        del sizes
        return [
            [Move(position, ratio(inner, norm) * much, outer, "window")]
            for much, inner, outer in ways(operation, norm)
        ]

    return Rule(size, moves)


def _axis(operation: Operation) -> tuple[int, ...]:
    params = operation.params
    return (params["axis"] if "axis" in params else params["dimension"],)


def _axis_count(operation: Operation) -> float:
    (axis,) = _axis(operation)
    return float(operation.operands[0].shape[axis])


def _sort_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """Sorting moves no entry further than the change; keys alone may be sorted.

    Each line along the axis is put in an order of its own. So a norm over all of the
    axis stays, and a maximum over it meets entries of other places.
    """
    if len(operation.operands) > 1:
        return RULES["argmax"].moves(operation, position, norm, sizes)
    (axis,) = _axis(operation)
    outer = norm
    if without(outer, [axis]).has("s"):
        outer = remarked(outer, "s", "o")
    if len(outer.axes[axis]) > 1:
        outer = euclidean(outer, {axis})
    factor = ratio(outer, norm)
    if any(mark == "b" for _, mark in outer.axes[axis]):
        factor *= _choice(without(outer, [axis]), _axis_count(operation))
    return [[Move(0, factor, outer, "sorting")]]


RULES["reduce_sum"] = Rule(_sum_size, _sum_moves, operators=True)
RULES["reduce_max"] = RULES["reduce_min"] = Rule(_largest_size, _largest_moves)
RULES["reduce_window_sum"] = _over_windows(_window_sum)
RULES["reduce_window_max"] = _over_windows(_window_choice)
RULES["reduce_window_min"] = RULES["reduce_window_max"]
RULES["cumsum"] = _over_axes(_axis, _axis_count, "sum along an axis", chosen=False)
RULES["cummax"] = RULES["cummin"] = _over_axes(
    _axis, _axis_count, "maximum along an axis", chosen=True
)
RULES["sort"] = Rule(RULES["cummax"].size, _sort_moves)
