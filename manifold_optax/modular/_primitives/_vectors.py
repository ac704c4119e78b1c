"""Rules of patterns that map each vector along some axes: softmax, norm layers."""

import math
from collections.abc import Sequence

from manifold_optax.modular._bounds._mixed_norm import (
    euclidean,
    joined,
    MixedNorm,
    outermost,
    ratio,
    remarked,
)
from manifold_optax.modular._bounds._number import Size
from manifold_optax.modular._bounds._sizes import all_max, Move, Rule, RULES, Sizes
from manifold_optax.modular._computation._graph import Operation
from manifold_optax.modular._primitives._sums import without

Moves = Sequence[Sequence[Move]]


def _softmax_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> Size:
    """The sum over the axes is 1, hence no norm over them is larger."""
    del result, sizes
    return without(norm, operation.params["axes"]).of_ones


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
    rest = without(norm, axes)
    ways = _softmax_inside(norm, axes, times) if marks <= {"m", "o"} else []
    norm = outermost(norm)
    marks = {m for k in axes for _, m in norm.axes[k]}
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


def _softmax_inside(
    norm: MixedNorm, axes: Sequence[int], times: float
) -> list[list[Move]]:
    """Each vector by itself, then the norm over the others: of the heads together."""
    outer = outermost(norm)
    if not without(outer, axes).has("o") or without(outer, axes).has("is"):
        return []
    ways = []
    for given, wanted, factor in _SOFTMAX_INSIDE:
        inner = _marked(outer, axes, given)
        total = times * ratio(inner, norm) * factor
        ways.append([Move(0, total, _marked(outer, axes, wanted), "softmax")])
    return ways


_SOFTMAX = (
    ("b", "s", 1.0), ("b", "o", math.sqrt(0.5)), ("b", "b", 0.5),
    ("o", "s", math.sqrt(0.5)), ("o", "o", 0.5),
)  # fmt: skip
"""(norm of the change, norm of the result, constant) of a softmax."""

_SOFTMAX_INSIDE = (
    ("m", "s", 1.0), ("m", "o", math.sqrt(0.5)), ("m", "m", 0.5),
    ("o", "s", math.sqrt(0.5)),
)  # fmt: skip
"""The same before the Euclidean norm over other axes is taken."""


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
) -> Size:
    """|log p| is at most the range of what enters, and the logarithm of its number."""
    del result
    (x,), axes = operation.operands, operation.params["axes"]
    count = math.prod(x.shape[k] for k in axes)
    largest = 2 * sizes.bound(x, all_max(x.shape)) + math.log(count)
    return norm.of_ones * largest


def _log_softmax_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """The derivative is v - p·v, an entry less a mean: twice the largest at most.

    Of a vector of length 1 it is ‖e - p‖ ≤ √2 at most.
    """
    del position, sizes
    axes = operation.params["axes"]
    rest = without(norm, axes)
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
) -> Size:
    """After it the RMS over the axes is at most the scale."""
    del result
    axes, scale = operation.params["axes"], operation.params["scale"]
    shape = operation.results[0].shape
    rest, over = without(norm, axes), MixedNorm(tuple(norm.axes[k] for k in axes))
    spread = rest.of_ones
    if sizes.assumptions.nominal:
        return scale * spread * over.of_ones
    count = math.prod(shape[k] for k in axes)
    ones = MixedNorm(tuple(joined([(shape[k], "o")]) for k in axes))
    return scale * spread * ratio(over, ones) * math.sqrt(count)


def _normalize_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """The slope is the scale over the RMS of what enters, at least the floor.

    The derivative is a projection divided by √(mean of squares + ε) or what stands in
    its place; along x, where the divisor grows with x, it is no longer. In the
    accounting of the theory what enters has RMS 1, and the slope holds in every norm.
    """
    del position
    axes, scale = operation.params["axes"], operation.params["scale"]
    if sizes.assumptions.nominal:
        return [[Move(0, scale, norm, "norm layer, RMS 1 assumed")]]
    floor = sizes.assumptions.floor
    least = math.sqrt(floor**2 + operation.params["epsilon"])
    least = max(least + operation.params["offset"], operation.params["floor"])
    slope = scale / least if least else math.inf
    times, apart = _each_by_itself(norm, axes)
    inner = _marked(apart, axes, "o")
    factor = slope * times * ratio(inner, apart)
    why = f"norm layer, RMS at least {floor:g}" if floor else "norm layer, 1/√ε"
    return [[Move(0, factor, inner, why)]]


def _linear_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> Size:
    del result
    (x,), axes = operation.operands, operation.params["axes"]
    outer = _marked(remarked(norm, "is", "o"), axes, "o")
    size = sizes.bound(x, _of_shape(outer, axes, x.shape))
    return operation.params["norm"] * ratio(norm, outer) * size


def _linear_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Moves:
    """A known linear map, by its operator norm."""
    del position, sizes
    axes = operation.params["axes"]
    inner = _marked(remarked(norm, "is", "o"), axes, "o")
    factor = operation.params["norm"] * ratio(inner, norm)
    outer = _of_shape(inner, axes, operation.results[0].shape)
    return [[Move(0, factor, outer, "linear map")]]


def _of_shape(norm: MixedNorm, axes: Sequence[int], shape: Sequence[int]) -> MixedNorm:
    """The Euclidean norm of longer or shorter vectors along some axes."""
    return MixedNorm(
        tuple(
            joined([(shape[k], "o")]) if k in axes else axis
            for k, axis in enumerate(norm.axes)
        )
    )


RULES["softmax"] = Rule(_softmax_size, _softmax_moves)
RULES["log_softmax"] = Rule(_log_softmax_size, _log_softmax_moves)
RULES["normalize"] = Rule(_normalize_size, _normalize_moves)
RULES["linear"] = Rule(_linear_size, _linear_moves)
