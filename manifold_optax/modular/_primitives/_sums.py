"""Rules of sums, maxima and windows, and of the patterns made of them."""

import math
from collections.abc import Callable, Sequence

from manifold_optax.modular._graph import Operation
from manifold_optax.modular._mixed_norm import (
    euclidean,
    joined,
    MixedNorm,
    ratio,
    remarked,
)
from manifold_optax.modular._sizes import all_max, Move, Rule, RULES, Sizes

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


def _without(norm: MixedNorm, axes: Sequence[int]) -> MixedNorm:
    return MixedNorm(tuple(axis for k, axis in enumerate(norm.axes) if k not in axes))


def _sum_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    """By the largest entry, and by the Euclidean norm over what is added."""
    del result
    (x,), axes = operation.operands, operation.params["axes"]
    bounds = []
    for mark in "bo":
        inner = _with(norm, axes, x.shape, mark)
        count = math.prod(x.shape[k] for k in axes)
        bounds.append(count ** _ADDED[mark] * sizes.bound(x, inner))
    return min(bounds)


def _sum_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    del position, sizes
    axes = operation.params["axes"]
    factor = math.prod(n ** _ADDED[m] for k in axes for n, m in norm.axes[k])
    return [[Move(0, factor, _without(norm, axes), "sum")]]


def _choice(outer: MixedNorm, count: float) -> float:
    """What it costs that each entry of an array is taken from another of `count`.

    `outer` measures the array, and no one of those it is taken from is larger than 1. A
    maximum is no larger; a norm is at most the norm of all those norms, and at most
    that of entries of size 1.
    """
    if not outer.has("os"):
        return 1.0
    return min(_entries(outer), count if outer.has("s") else math.sqrt(count))


def _entries(norm: MixedNorm) -> float:
    """The norm of entries that are 1."""
    return math.sqrt(norm.count("oi")) * norm.count("s")


def _largest_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
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
    outer = _without(norm, axes)
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
        return _choice(_without(norm, axes_of(operation)), count) if chosen else count

    def size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> float:
        x, axes = operation.operands[result], axes_of(operation)
        over = _entries(MixedNorm(tuple(norm.axes[k] for k in axes)))
        inner = _resized_b(norm, axes, x.shape)
        return over * factor(operation, norm) * sizes.bound(x, inner)

    def moves(
        operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
    ) -> Moves:
        del sizes
        outer = _resized_b(norm, axes_of(operation), operation.results[0].shape)
        return [[Move(position, factor(operation, norm), outer, reason)]]

    return Rule(size, moves)


def _resized_b(norm: MixedNorm, axes: Sequence[int], shape: Sequence[int]) -> MixedNorm:
    """The norm with the maximum over some axes, in another shape."""
    return MixedNorm(
        tuple(
            joined([(shape[k], "b")]) if k in axes else axis
            for k, axis in enumerate(norm.axes)
        )
    )


def _windowed(operation: Operation) -> tuple[int, ...]:
    """The axes along which windows move."""
    x, y, params = operation.operands[0], operation.results[0], operation.params
    window, padding = params["window_dimensions"], params["padding"]
    return tuple(
        k
        for k, size in enumerate(window)
        if size > 1 or x.shape[k] != y.shape[k] or tuple(padding[k]) != (0, 0)
    )


def _window_count(operation: Operation) -> float:
    return float(math.prod(operation.params["window_dimensions"]))


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
    if _without(outer, [axis]).has("s"):
        outer = remarked(outer, "s", "o")
    if len(outer.axes[axis]) > 1:
        outer = euclidean(outer, {axis})
    factor = ratio(outer, norm)
    if any(mark == "b" for _, mark in outer.axes[axis]):
        factor *= _choice(_without(outer, [axis]), _axis_count(operation))
    return [[Move(0, factor, outer, "sorting")]]


def _softmax_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    """The sum over the axes is 1, hence no norm over them is larger."""
    del result, sizes
    return _entries(_without(norm, operation.params["axes"]))


def _softmax_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """The derivative diag(p) − p pᵀ takes v to p (v − p·v).

    Its sum of sizes is at most twice the deviation of v under p, hence at most 1 for
    entries of size 1, and 1/√2 for a vector of length 1; the matrix itself has norm at
    most 1/2 (p = 1/2, 1/2 attains all three).
    """
    del position, sizes
    axes = operation.params["axes"]
    times, norm = _each_by_itself(norm, axes)
    marks = {m for k in axes for _, m in norm.axes[k]}
    rest = _without(norm, axes)
    ways = []
    for given, wanted, factor in _SOFTMAX:
        if given == "b" and ((marks and "b" not in marks) or rest.has("ois")):
            continue
        if wanted == "s" and rest.has("ois"):
            continue
        inner = _marked(norm, axes, given)
        outer = _marked(norm, axes, wanted)
        total = times * ratio(inner, norm) * factor
        ways.append([Move(0, total, outer, "softmax")])
    return ways


_SOFTMAX = (
    ("b", "s", 1.0), ("b", "o", math.sqrt(0.5)), ("b", "b", 0.5),
    ("o", "s", math.sqrt(0.5)), ("o", "o", 0.5),
)  # fmt: skip
"""(norm of the change, norm of the result, constant) of a softmax."""


def _each_by_itself(norm: MixedNorm, axes: Sequence[int]) -> tuple[float, MixedNorm]:
    """A norm for functions of each vector along some axes, and its ratio to another.

    No sum joins the vectors, which are mapped differently.
    """
    rest = [k for k in range(len(norm.axes)) if k not in axes]
    joint = {k for k in rest if any(mark == "s" for _, mark in norm.axes[k])}
    outer = euclidean(norm, joint)
    return ratio(outer, norm), outer


def _marked(norm: MixedNorm, axes: Sequence[int], mark: str) -> MixedNorm:
    return MixedNorm(
        tuple(
            joined([(math.prod(n for n, _ in axis), mark)]) if k in axes else axis
            for k, axis in enumerate(norm.axes)
        )
    )


def _log_softmax_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    """|log p| is at most the range of what enters, and the logarithm of its number."""
    del result
    (x,), axes = operation.operands, operation.params["axes"]
    count = math.prod(x.shape[k] for k in axes)
    largest = 2 * sizes.bound(x, all_max(x.shape)) + math.log(count)
    return _entries(norm) * largest


def _log_softmax_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """The derivative is v - p·v, an entry less a mean: twice the largest at most.

    Of a vector of length 1 it is ‖e - p‖ ≤ √2 at most.
    """
    del position, sizes
    axes = operation.params["axes"]
    rest = _without(norm, axes)
    ways = []
    for mark, factor in (("b", 2.0), ("o", math.sqrt(2.0))):
        if mark == "o" or not rest.has("ois"):
            inner = _marked(norm, axes, mark)
            outer = _marked(remarked(norm, "ois", "b"), axes, "b")
            total = factor * ratio(inner, norm)
            ways.append([Move(0, total, outer, "log softmax")])
    return ways


def _normalize_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    """After it the RMS over the axes is at most the scale."""
    del result
    axes, scale = operation.params["axes"], operation.params["scale"]
    shape = operation.results[0].shape
    rest, over = _without(norm, axes), MixedNorm(tuple(norm.axes[k] for k in axes))
    spread = _entries(rest)
    if sizes.assumptions.nominal:
        return scale * spread * _entries(over)
    count = math.prod(shape[k] for k in axes)
    ones = MixedNorm(tuple(joined([(shape[k], "o")]) for k in axes))
    return scale * spread * ratio(over, ones) * math.sqrt(count)


def _normalize_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """The slope is the scale over the RMS of what enters, at least the floor.

    The derivative is a projection divided by √(mean of squares + ε). In the accounting
    of the theory what enters has RMS 1, and the slope holds in every norm.
    """
    del position
    axes, scale = operation.params["axes"], operation.params["scale"]
    if sizes.assumptions.nominal:
        return [[Move(0, scale, norm, "norm layer, RMS 1 assumed")]]
    epsilon, floor = operation.params["epsilon"], sizes.assumptions.floor
    slope = scale / math.sqrt(floor**2 + epsilon) if floor or epsilon else math.inf
    times, apart = _each_by_itself(norm, axes)
    inner = _marked(apart, axes, "o")
    factor = slope * times * ratio(inner, apart)
    why = f"norm layer, RMS at least {floor:g}" if floor else "norm layer, 1/√ε"
    return [[Move(0, factor, inner, why)]]


def _linear_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    del result
    (x,), inner = operation.operands, _linear_norm(operation, norm)
    return operation.params["norm"] * ratio(norm, inner) * sizes.bound(x, inner)


def _linear_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """A known linear map, by its operator norm."""
    del position, sizes
    inner = _linear_norm(operation, norm)
    factor = operation.params["norm"] * ratio(inner, norm)
    return [[Move(0, factor, inner, "linear map")]]


def _linear_norm(operation: Operation, norm: MixedNorm) -> MixedNorm:
    return _marked(remarked(norm, "is", "o"), operation.params["axes"], "o")


RULES["reduce_sum"] = Rule(_sum_size, _sum_moves, operators=True)
RULES["reduce_max"] = RULES["reduce_min"] = Rule(_largest_size, _largest_moves)
RULES["reduce_window_sum"] = _over_axes(
    _windowed, _window_count, "window", chosen=False
)
RULES["reduce_window_max"] = RULES["reduce_window_min"] = _over_axes(
    _windowed, _window_count, "window", chosen=True
)
RULES["cumsum"] = _over_axes(_axis, _axis_count, "sum along an axis", chosen=False)
RULES["cummax"] = RULES["cummin"] = _over_axes(
    _axis, _axis_count, "maximum along an axis", chosen=True
)
RULES["sort"] = Rule(RULES["cummax"].size, _sort_moves)
RULES["softmax"] = Rule(_softmax_size, _softmax_moves)
RULES["log_softmax"] = Rule(_log_softmax_size, _log_softmax_moves)
RULES["normalize"] = Rule(_normalize_size, _normalize_moves)
RULES["linear"] = Rule(_linear_size, _linear_moves)
