"""Rules of operations that move entries and leave them as they are.

Each is a linear map that shows every entry of its operand at most once, or copies
whole entries. Hence one function tells, for a norm of the result, a norm of the operand
that bounds it, and one the way back; sizes ask the first and changes the second.
"""

import math
from collections.abc import Callable, Sequence

from manifold_optax.modular._graph import Operation
from manifold_optax.modular._mixed_norm import (
    coarse,
    Factors,
    joined,
    MixedNorm,
    ratio,
    remarked,
    reshaped,
    resized,
)
from manifold_optax.modular._sizes import Move, Rule, RULES, Sizes

Way = tuple[float, MixedNorm]
"""A norm, and the factor that its bound is to be taken times."""


def _relabelled(
    back: Callable[[Operation, MixedNorm], Way],
    forth: Callable[[Operation, MixedNorm], Way],
) -> Rule:
    """The rule of a linear operation of one operand and one result."""

    def size(operation: Operation, result: int, norm: MixedNorm, sizes: Sizes) -> float:
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

    return Rule(size, moves)


def _same(operation: Operation, norm: MixedNorm) -> Way:
    del operation
    return 1.0, norm


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


_REPEATED = {"b": 0.0, "o": 0.5, "i": 0.5, "s": 1.0}
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
            factor *= math.prod(n ** _REPEATED[mark] for n, mark in axis)
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
    factor *= math.prod(n ** _REPEATED[mark] for axis in repeats for n, mark in axis)
    return factor, MixedNorm(kept)


def _tile_forth(operation: Operation, norm: MixedNorm) -> Way:
    pairs = zip(operation.params["reps"], norm.axes, strict=True)
    return 1.0, MixedNorm(tuple(joined([(n, "b"), *axis]) for n, axis in pairs))


def piece(norm: MixedNorm, axis: int, size: int, *, aligned: bool) -> Way:
    """The norm of arrays that are longer or shorter along one axis.

    The factor is that of a coarser norm, which is taken where the blocks do not fit.
    """
    old = norm.axes[axis]
    new = resized(old, size, aligned=aligned)
    factor = 1.0
    if len(old) > 1 and len(new) == 1 and new[0][1] == "o":
        one = MixedNorm((old,))
        factor = ratio(MixedNorm((joined((n, "o") for n, _ in old),)), one)
    axes = (*norm.axes[:axis], new, *norm.axes[axis + 1 :])
    return factor, MixedNorm(axes)


def _cut(
    norm: MixedNorm, shape: Sequence[int], starts: Sequence[int | None], *, back: bool
) -> Way:
    """Through a slice: `starts` where each axis is cut, `None` where nobody knows."""
    factor = 1.0
    for axis, (size, start) in enumerate(zip(shape, starts, strict=True)):
        if norm.shape[axis] == size:
            continue
        old = norm.axes[axis]
        inner = math.prod(n for n, _ in old[1:])
        aligned = start is not None and start % inner == 0
        if back and aligned:
            aligned = size % inner == 0
        once, norm = piece(norm, axis, size, aligned=aligned)
        # The whole axis under the Euclidean norm bounds any norm of a piece of it.
        factor *= 1.0 if back else once
    return factor, norm


def _starts(operation: Operation) -> list[int | None]:
    strides = operation.params.get("strides") or (1,) * len(
        operation.params["start_indices"]
    )
    pairs = zip(operation.params["start_indices"], strides, strict=True)
    return [start if stride == 1 else None for start, stride in pairs]


def _slice_back(operation: Operation, norm: MixedNorm) -> Way:
    return _cut(norm, operation.operands[0].shape, _starts(operation), back=True)


def _slice_forth(operation: Operation, norm: MixedNorm) -> Way:
    return _cut(norm, operation.results[0].shape, _starts(operation), back=False)


def _anywhere_back(operation: Operation, norm: MixedNorm) -> Way:
    shape = operation.operands[0].shape
    return _cut(norm, shape, [None] * len(shape), back=True)


def _anywhere_forth(operation: Operation, norm: MixedNorm) -> Way:
    shape = operation.results[0].shape
    return _cut(norm, shape, [None] * len(shape), back=False)


def _shard_back(operation: Operation, norm: MixedNorm) -> Way:
    """A shard is a slice that starts at a multiple of its size."""
    shape = operation.operands[0].shape
    return _cut(norm, shape, [0] * len(shape), back=True)


def _shard_forth(operation: Operation, norm: MixedNorm) -> Way:
    shape = operation.results[0].shape
    return _cut(norm, shape, [0] * len(shape), back=False)


def _split_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    (x,) = operation.operands
    _, inner = _cut(norm, x.shape, _split_starts(operation, result), back=True)
    return sizes.bound(x, inner)


def _split_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Sequence[Sequence[Move]]:
    del position, sizes
    moves = []
    for result, value in enumerate(operation.results):
        starts = _split_starts(operation, result)
        moves.append(Move(result, *_cut(norm, value.shape, starts, back=False)))
    return [moves]


def _split_starts(operation: Operation, result: int) -> list[int | None]:
    starts: list[int | None] = [0] * len(operation.operands[0].shape)
    starts[operation.params["axis"]] = sum(operation.params["sizes"][:result])
    return starts


def _concatenate_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    """Parts under a maximum: the largest; under a norm: the norm of their norms."""
    del result
    axis = operation.params["dimension"]
    mark = norm.axes[axis][0][1] if norm.axes[axis] else "b"
    bounds, start = [], 0
    for operand in operation.operands:
        shape = operand.shape
        _, inner = _cut(
            norm, shape, [start if k == axis else 0 for k in range(len(shape))],
            back=True,
        )  # fmt: skip
        bounds.append(sizes.bound(operand, inner))
        start += shape[axis]
    if mark == "b":
        return max(bounds)
    return sum(bounds) if mark == "s" else math.hypot(*bounds)


def _concatenate_moves(
    operation: Operation, position: int, norm: MixedNorm, sizes: Sizes
) -> Sequence[Sequence[Move]]:
    """Zeros beside a change add nothing to any norm."""
    del sizes
    axis = operation.params["dimension"]
    starts = [operand.shape[axis] for operand in operation.operands[:position]]
    shape = operation.results[0].shape
    where = [sum(starts) if k == axis else 0 for k in range(len(shape))]
    return [[Move(0, *_cut(norm, shape, where, back=False))]]


def _pad_back(operation: Operation, norm: MixedNorm) -> Way:
    return _cut(norm, operation.operands[0].shape, _pads(operation), back=True)


def _pad_forth(operation: Operation, norm: MixedNorm) -> Way:
    return _cut(norm, operation.results[0].shape, _pads(operation), back=False)


def _pads(operation: Operation) -> list[int | None]:
    pads = operation.params["padding_config"]
    return [None if inner or low < 0 else low for low, _, inner in pads]


def _pad_size(
    operation: Operation, result: int, norm: MixedNorm, sizes: Sizes
) -> float:
    """What is padded, and what it is padded with."""
    del result
    x, fill = operation.operands
    _, inner = _pad_back(operation, norm)
    around = sizes.bound(fill, MixedNorm(()))
    count = math.sqrt(norm.count("oi")) * norm.count("s")
    return sizes.bound(x, inner) + (around * count if around else 0.0)


def _gather_back(operation: Operation, norm: MixedNorm) -> Way:
    """The rows that are looked up: of each the norm, of all the largest."""
    numbers = operation.params["dimension_numbers"]
    shape = operation.operands[0].shape
    kept = _kept_axes(operation)
    axes = [joined([(size, "b")]) for size in shape]
    for inner, outer in zip(kept, numbers.offset_dims, strict=True):
        one = MixedNorm((norm.axes[outer],))
        _, found = _cut(one, (shape[inner],), [None], back=True)
        axes[inner] = found.axes[0]
    looked_up = [k for k in range(len(norm.axes)) if k not in numbers.offset_dims]
    factor = math.prod(n ** _REPEATED[m] for k in looked_up for n, m in norm.axes[k])
    return factor, MixedNorm(tuple(axes))


def _gather_forth(operation: Operation, norm: MixedNorm) -> Way:
    numbers = operation.params["dimension_numbers"]
    shape = operation.results[0].shape
    axes = [joined([(size, "b")]) for size in shape]
    factor = 1.0
    for inner, outer in zip(_kept_axes(operation), numbers.offset_dims, strict=True):
        one = MixedNorm((norm.axes[inner],))
        once, found = _cut(one, (shape[outer],), [None], back=False)
        axes[outer] = found.axes[0]
        factor *= once
    return factor, MixedNorm(tuple(axes))


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
RULES["pad"] = Rule(_pad_size, _relabelled(_pad_back, _pad_forth).moves)
RULES["split"] = Rule(_split_size, _split_moves)
RULES["concatenate"] = Rule(_concatenate_size, _concatenate_moves)
