"""Rules of sums, maxima and windows, and of the patterns made of them."""

import math
from collections.abc import Callable, Sequence

from manifold_optax.modular._graph import Operation
from manifold_optax.modular._mixed_norm import joined, MixedNorm, ratio, remarked
from manifold_optax.modular._sizes import all_max, Move, Rule, RULES, Sizes

Moves = Sequence[Sequence[Move]]

_ADDED = {"b": 1.0, "o": 0.5, "i": 0.5, "s": 0.0}
"""The sum of n entries is at most n^k times their norm under a mark."""


def _with(norm: MixedNorm, axes: Sequence[int], shape: Sequence[int], mark: str):
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


def _largest_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    """The largest of several is one of them; several of them, no more than all."""
    del result
    (x,), axes = operation.operands, operation.params["axes"]
    return sizes.bound(x, _with(norm, axes, x.shape, "o" if norm.has("oi") else "b"))


def _largest_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """The largest of several changes by no more than the largest of their changes."""
    del position, sizes
    axes = operation.params["axes"]
    outer = _without(norm, axes)
    reduced = MixedNorm(tuple(norm.axes[k] for k in axes))
    factor = 1.0
    if outer.has("oi") and reduced.has("b"):
        factor = math.sqrt(min(outer.count("oi"), reduced.count("b")))
    return [[Move(0, factor, outer, "maximum")]]


def _windows(
    factor_of: Callable[[Operation], float],
) -> Rule:
    """Sums or maxima over windows: of positions, whose largest is what is known."""

    def axes_of(operation: Operation) -> tuple[int, ...]:
        window = operation.params["window_dimensions"]
        return tuple(k for k, size in enumerate(window) if size > 1)

    def size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> float:
        del result
        x, axes = operation.operands[0], axes_of(operation)
        return (
            _over(norm, axes) * factor_of(operation)
            * sizes.bound(x, _resized_b(norm, axes, x.shape))
        )  # fmt: skip

    def moves(
        operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
    ) -> Moves:
        del position, sizes
        shape = operation.results[0].shape
        outer = _resized_b(norm, axes_of(operation), shape)
        return [[Move(0, factor_of(operation), outer, "window")]]

    return Rule(size, moves)


def _resized_b(norm: MixedNorm, axes: Sequence[int], shape: Sequence[int]):
    """The norm with the maximum over some axes, in another shape."""
    return MixedNorm(
        tuple(
            joined([(shape[k], "b")]) if k in axes else axis
            for k, axis in enumerate(norm.axes)
        )
    )


def _over(norm: MixedNorm, axes: Sequence[int]) -> float:
    """The norm over some axes of entries that are 1 there."""
    one = MixedNorm(tuple(norm.axes[k] for k in axes))
    return math.sqrt(one.count("oi")) * one.count("s")


def _window_count(operation: Operation) -> float:
    return float(math.prod(operation.params["window_dimensions"]))


def _along(factor: Callable[[int], float]) -> Rule:
    """Along one axis, such as a cumulative sum; by the largest entry there."""

    def axis_of(operation: Operation) -> int:
        params = operation.params
        return params["axis"] if "axis" in params else params["dimension"]

    def size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> float:
        x, axis = operation.operands[result], axis_of(operation)
        inner = _resized_b(norm, [axis], x.shape)
        bound = factor(x.shape[axis]) * sizes.bound(x, inner)
        return _over(norm, [axis]) * bound

    def moves(
        operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
    ) -> Moves:
        del sizes
        shape, axis = operation.operands[position].shape, axis_of(operation)
        outer = _resized_b(norm, [axis], shape)
        return [[Move(position, factor(shape[axis]), outer, "along an axis")]]

    return Rule(size, moves)


def _sort_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """Sorting moves no entry further than the change; keys alone may be sorted."""
    if len(operation.operands) > 1:
        return RULES["argmax"].moves(operation, position, norm, sizes)
    return [[Move(0, 1.0, norm, "sorting")]]


def _softmax_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    """The sum over the axes is 1, hence no norm over them is larger."""
    del result, sizes
    rest = _without(norm, operation.params["axes"])
    return math.sqrt(rest.count("oi")) * rest.count("s")


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
        total = ratio(inner, norm) * factor
        ways.append([Move(0, total, outer, "softmax")])
    return ways


_SOFTMAX = (
    ("b", "s", 1.0), ("b", "o", math.sqrt(0.5)), ("b", "b", 0.5),
    ("o", "s", math.sqrt(0.5)), ("o", "o", 0.5),
)  # fmt: skip
"""(norm of the change, norm of the result, constant) of a softmax."""


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
    return math.sqrt(norm.count("oi")) * norm.count("s") * largest


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
    spread = math.sqrt(rest.count("oi")) * rest.count("s")
    if sizes.assumptions.nominal:
        return scale * spread * math.sqrt(over.count("oi")) * over.count("s")
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
    inner = _marked(norm, axes, "o")
    why = f"norm layer, RMS at least {floor:g}" if floor else "norm layer, 1/√ε"
    return [[Move(0, slope * ratio(inner, norm), inner, why)]]


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
RULES["reduce_window_sum"] = _windows(_window_count)
RULES["reduce_window_max"] = RULES["reduce_window_min"] = _windows(
    lambda operation: math.sqrt(_window_count(operation))
)
RULES["cumsum"] = _along(float)
RULES["cummax"] = RULES["cummin"] = _along(math.sqrt)
RULES["sort"] = Rule(_along(lambda _: 1.0).size, _sort_moves)
RULES["softmax"] = Rule(_softmax_size, _softmax_moves)
RULES["log_softmax"] = Rule(_log_softmax_size, _log_softmax_moves)
RULES["normalize"] = Rule(_normalize_size, _normalize_moves)
RULES["linear"] = Rule(_linear_size, _linear_moves)
