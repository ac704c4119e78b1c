"""Rules of operations that move entries and leave them as they are.

Each is a linear map that shows every entry of its operand at most once, or copies
whole entries. Hence one function tells, for a norm of the result, a norm of the operand
that bounds it, and one the way back; sizes ask the first and changes the second.
"""

import math
from collections.abc import Callable, Sequence

from manifold_optax.modular._bounds._mixed_norm import (
    coarse,
    euclidean,
    Factors,
    joined,
    MixedNorm,
    ratio,
    remarked,
    reshaped,
    resized,
)
from manifold_optax.modular._bounds._number import Size
from manifold_optax.modular._bounds._sizes import Move, Rule, RULES, Sizes
from manifold_optax.modular._computation._graph import Operation
from manifold_optax.modular._primitives._truth import truth_size

Way = tuple[float, MixedNorm]
"""A norm, and the factor that its bound is to be taken times."""


def _relabelled(
    back: Callable[[Operation, MixedNorm], Way],
    forth: Callable[[Operation, MixedNorm], Way],
) -> Rule:
    """The rule of a linear operation of one operand and one result."""

    def size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> Size:
        del result
        factor, inner = back(operation, norm)
        return factor * sizes.bound(operation.operands[0], inner)

    def moves(
        operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
    ) -> Sequence[Sequence[Move]]:
        del sizes
        if position:
            return [[]]
        factor, outer = forth(operation, norm)
        return [[Move(0, factor, outer)]]

    return Rule(size, moves, operators=True)


def _same(operation: Operation, norm: MixedNorm) -> Way:
    del operation
    return 1.0, norm


def _cast_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> Size:
    """A cast keeps numbers; truth values become 0 and 1."""
    (x,) = operation.operands
    if x.dtype == bool:
        return truth_size(operation.results[result], norm, sizes.graph)
    return sizes.bound(x, norm)


def _fitted(norm: MixedNorm, shape: tuple[int, ...], *, wanted: bool) -> Way:
    """`norm` in another shape; where its factors are cut, the next larger one."""
    for larger in (norm, coarse(norm), remarked(norm, "bis", "o")):
        fitting = reshaped(larger, shape)
        if fitting is not None:
            return ratio(norm, larger) if wanted else ratio(larger, norm), fitting
    raise AssertionError(f"{norm} has another size than {shape}.")


def _reshape_back(operation: Operation, norm: MixedNorm) -> Way:
    return _fitted(norm, operation.operands[0].shape, wanted=True)


def _reshape_forth(operation: Operation, norm: MixedNorm) -> Way:
    return _fitted(norm, operation.results[0].shape, wanted=False)


def _transpose_back(operation: Operation, norm: MixedNorm) -> Way:
    axes: list[Factors] = [()] * len(norm.axes)
    for mine, axis in zip(operation.params["permutation"], norm.axes, strict=True):
        axes[mine] = axis
    return 1.0, MixedNorm(tuple(axes))


def _transpose_forth(operation: Operation, norm: MixedNorm) -> Way:
    order = operation.params["permutation"]
    return 1.0, MixedNorm(tuple(norm.axes[mine] for mine in order))


REPEATED = {"b": 0.0, "o": 0.5, "i": 0.5, "s": 1.0}
"""n equal entries under a mark are n^k times one of them."""


def _broadcast_back(operation: Operation, norm: MixedNorm) -> Way:
    shape = operation.operands[0].shape
    axes: list[Factors] = [()] * len(shape)
    factor = 1.0
    kept = {
        outer: inner
        for inner, outer in enumerate(operation.params["broadcast_dimensions"])
    }
    for outer, axis in enumerate(norm.axes):
        inner = kept.get(outer)
        if inner is not None and shape[inner] == norm.shape[outer]:
            axes[inner] = axis
        else:
            factor *= math.prod(n ** REPEATED[mark] for n, mark in axis)
    return factor, MixedNorm(tuple(axes))


def _broadcast_forth(operation: Operation, norm: MixedNorm) -> Way:
    shape = operation.results[0].shape
    axes = [joined([(size, "b")]) for size in shape]
    places = operation.params["broadcast_dimensions"]
    for inner, outer in enumerate(places):
        if operation.operands[0].shape[inner] == shape[outer]:
            axes[outer] = norm.axes[inner]
    return 1.0, MixedNorm(tuple(axes))


def _tile_back(operation: Operation, norm: MixedNorm) -> Way:
    """A repeat is one more axis, whose entries are equal."""
    shape = operation.operands[0].shape
    pairs = list(zip(operation.params["reps"], shape, strict=True))
    factor, apart = _fitted(norm, tuple(n for pair in pairs for n in pair), wanted=True)
    repeats, kept = apart.axes[::2], apart.axes[1::2]
    factor *= math.prod(n ** REPEATED[mark] for axis in repeats for n, mark in axis)
    return factor, MixedNorm(kept)


def _tile_forth(operation: Operation, norm: MixedNorm) -> Way:
    pairs = zip(operation.params["reps"], norm.axes, strict=True)
    return 1.0, MixedNorm(tuple(joined([(n, "b"), *axis]) for n, axis in pairs))


def cut(
    norm: MixedNorm, shape: Sequence[int], starts: Sequence[int | None], *, back: bool
) -> Way:
    """Through a slice, or the way into a longer array.

    Args:
        norm: of the one array.
        shape: of the other.
        starts: where each axis is cut; `None` where nobody knows, or where entries do
            not stay neighbours.
        back: whether the norm is that of the result.

    Returns:
        A norm of the other array. Its blocks stay where they are whole; else the whole
        axis counts under the Euclidean norm, and the factor is what that costs.
    """
    factor = 1.0
    for axis, (size, start) in enumerate(zip(shape, starts, strict=True)):
        old = norm.axes[axis]
        if norm.shape[axis] == size and start == 0:
            continue
        inner = math.prod(n for n, _ in old[1:])
        aligned = start is not None and start % inner == 0 == size % inner
        if len(old) > 1 and not aligned:
            wide = euclidean(norm, {axis})
            factor *= ratio(norm, wide) if back else ratio(wide, norm)
        new = resized(old, size, aligned=aligned)
        norm = MixedNorm((*norm.axes[:axis], new, *norm.axes[axis + 1 :]))
    return factor, norm


def _starts(operation: Operation) -> list[int | None]:
    starts = operation.params["start_indices"]
    strides = operation.params.get("strides") or (1,) * len(starts)
    pairs = zip(_anywhere(operation), starts, strides, strict=True)
    return [
        start if known is None and stride == 1 else known
        for known, start, stride in pairs
    ]


def _anywhere(operation: Operation) -> list[int | None]:
    """Nobody knows where, but that whole axes are whole."""
    shapes = zip(operation.operands[0].shape, operation.results[0].shape, strict=True)
    return [0 if before == after else None for before, after in shapes]


def _slice_back(operation: Operation, norm: MixedNorm) -> Way:
    return cut(norm, operation.operands[0].shape, _starts(operation), back=True)


def _slice_forth(operation: Operation, norm: MixedNorm) -> Way:
    return cut(norm, operation.results[0].shape, _starts(operation), back=False)


def _anywhere_back(operation: Operation, norm: MixedNorm) -> Way:
    return cut(norm, operation.operands[0].shape, _anywhere(operation), back=True)


def _anywhere_forth(operation: Operation, norm: MixedNorm) -> Way:
    return cut(norm, operation.results[0].shape, _anywhere(operation), back=False)


def _shard_back(operation: Operation, norm: MixedNorm) -> Way:
    """A shard is a slice that starts at a multiple of its size."""
    shape = operation.operands[0].shape
    return cut(norm, shape, [0] * len(shape), back=True)


def _shard_forth(operation: Operation, norm: MixedNorm) -> Way:
    shape = operation.results[0].shape
    return cut(norm, shape, [0] * len(shape), back=False)


def _gather_back(operation: Operation, norm: MixedNorm) -> Way:
    """The rows that are looked up: of each the norm, of all the largest."""
    numbers = operation.params["dimension_numbers"]
    shape, places = operation.operands[0].shape, numbers.offset_dims
    rows = MixedNorm(tuple(norm.axes[k] for k in places))
    sizes = [shape[k] for k in _kept_axes(operation)]
    factor, found = cut(rows, sizes, _known_whole(rows, sizes), back=True)
    axes = [joined([(size, "b")]) for size in shape]
    for axis, factors in zip(_kept_axes(operation), found.axes, strict=True):
        axes[axis] = factors
    looked_up = [axis for k, axis in enumerate(norm.axes) if k not in places]
    factor *= math.prod(n ** REPEATED[mark] for axis in looked_up for n, mark in axis)
    return factor, MixedNorm(tuple(axes))


def _gather_forth(operation: Operation, norm: MixedNorm) -> Way:
    numbers = operation.params["dimension_numbers"]
    shape, places = operation.results[0].shape, numbers.offset_dims
    rows = MixedNorm(tuple(norm.axes[k] for k in _kept_axes(operation)))
    sizes = [shape[k] for k in places]
    factor, found = cut(rows, sizes, _known_whole(rows, sizes), back=False)
    axes = [joined([(size, "b")]) for size in shape]
    for place, factors in zip(places, found.axes, strict=True):
        axes[place] = factors
    return factor, MixedNorm(tuple(axes))


def _known_whole(norm: MixedNorm, sizes: Sequence[int]) -> list[int | None]:
    pairs = zip(norm.shape, sizes, strict=True)
    return [0 if mine == other else None for mine, other in pairs]


def _kept_axes(operation: Operation) -> list[int]:
    """The axes of the operand that a gather leaves in its result."""
    numbers = operation.params["dimension_numbers"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    return [k for k in range(len(operation.operands[0].shape)) if k not in gone]


for _name in (
    "copy", "copy_p", "convert_element_type", "stop_gradient", "reduce_precision",
    "sharding_constraint", "layout_constraint", "name", "pvary", "pcast", "rev",
    "mesh_cast", "reshard", "device_put", "real",
):  # fmt: skip
    RULES[_name] = _relabelled(_same, _same)
RULES["convert_element_type"] = Rule(
    _cast_size, RULES["convert_element_type"].moves, operators=True
)
RULES["reshape"] = _relabelled(_reshape_back, _reshape_forth)
RULES["squeeze"] = RULES["expand_dims"] = RULES["reshape"]
RULES["transpose"] = _relabelled(_transpose_back, _transpose_forth)
RULES["broadcast_in_dim"] = _relabelled(_broadcast_back, _broadcast_forth)
# What holds for every shard holds as if all were the worst of them.
RULES["joined_shards"] = RULES["tile"] = _relabelled(_tile_back, _tile_forth)
RULES["shard"] = _relabelled(_shard_back, _shard_forth)
RULES["slice"] = _relabelled(_slice_back, _slice_forth)
RULES["dynamic_slice"] = _relabelled(_anywhere_back, _anywhere_forth)
RULES["gather"] = _relabelled(_gather_back, _gather_forth)
