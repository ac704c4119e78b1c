"""How parameters are followed through operations that move, cut and join axes."""

from collections.abc import Sequence
from typing import Any

from manifold_optax.modular._computation._graph import Operation
from manifold_optax.modular._uses._provenance import (
    blank,
    moved,
    Pattern,
    placed,
    reshaped,
    sliced,
)
from manifold_optax.modular._uses._walk import changed, Facts, joined, Walk


def transpose(operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Moves axes."""
    return _moved(operation, facts, operation.params["permutation"])


def squeeze(operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Removes axes of size 1."""
    return _moved(operation, facts, _without(operation, operation.params["dimensions"]))


def broadcast(operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Adds axes."""
    sources: list[int | None] = [None] * len(operation.results[0].shape)
    for source, dim in enumerate(operation.params["broadcast_dimensions"]):
        sources[dim] = source
    return _moved(operation, facts, sources)


def tile(operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Repeats along axes."""
    repeats = operation.params["reps"]

    def change(pattern: Pattern) -> Pattern:
        dims = [(*blank(n), *dim) for n, dim in zip(repeats, pattern, strict=False)]
        return (*dims, pattern[-1])

    return [changed(facts[0], change)]


def reduction(operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Removes axes; what is left of parameters is weak."""
    sources = _without(operation, operation.params["axes"])
    shape = operation.results[0].shape
    weak = lambda strand: strand._replace(weak=True)
    return [changed(facts[0], lambda p: moved(p, sources, shape), weak)]


def same_rank(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Keeps the axes whose size stays; of the first operand alone."""
    for one in facts[1:]:
        walk.end(one, operation, "bias")
    shape = operation.results[0].shape
    live = any(one.live or one.strands for one in facts[1:])
    if live:
        walk.end(facts[0], operation, "bias")
    first = Facts(live or facts[0].live, facts[0].strands)
    end = lambda strand: None if live else strand
    result = changed(first, lambda p: moved(p, range(len(shape)), shape), end)
    return [result] * len(operation.results)


def reshape(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Cuts and merges axes."""
    shape = operation.results[0].shape
    lost = [p for p in facts[0].strands if reshaped(p, shape) is None]
    if lost:
        unfollowed = {pattern: facts[0].strands[pattern] for pattern in lost}
        walk.end(Facts(facts[0].live, unfollowed), operation)
    return [changed(facts[0], lambda p: reshaped(p, shape))]


def joined_shards(operation: Operation, facts: list[Facts]) -> list[Facts]:
    """What all devices of a mesh have; axes that are put together are not followed."""
    return _moved(operation, facts, range(len(operation.results[0].shape)))


def cut(operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Keeps a window of each axis."""
    params = operation.params
    starts, limits = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * len(starts)
    shape = operation.results[0].shape
    windows = [
        (dim, start, size, step)
        for dim, (start, limit, size, step) in enumerate(
            zip(starts, limits, shape, steps, strict=True)
        )
        if limit - start != operation.operands[0].shape[dim] or step != 1
    ]
    return [changed(facts[0], lambda p: _windowed(p, windows))]


def split(operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Several slices of one axis."""
    axis, start, results = operation.params["axis"], 0, []
    for size in map(int, operation.params["sizes"]):
        window = (axis, start, size, 1)
        results.append(changed(facts[0], lambda p, w=window: _windowed(p, [w])))
        start += size
    return results


def unstack(operation: Operation, facts: list[Facts]) -> list[Facts]:
    """All entries of one axis, each without it."""
    axis, shape = operation.params["axis"], operation.results[0].shape
    sources = [dim for dim in range(len(shape) + 1) if dim != axis]

    def entry(pattern: Pattern, index: int) -> Pattern | None:
        taken = sliced(pattern, axis, index, 1)
        return None if taken is None else moved(taken, sources, shape)

    return [
        changed(facts[0], lambda p, i=index: entry(p, i))
        for index in range(len(operation.results))
    ]


def concatenate(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Places each operand along an axis."""
    dim = operation.params["dimension"]
    sizes = [value.shape[dim] for value in operation.operands]
    return _side_by_side(walk, operation, facts, dim, sizes)


def stack(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Places each operand along a new axis."""
    axis = operation.params["axis"]
    widened = [
        changed(one, lambda p: (*p[:axis], (), *p[axis:])) if one.strands else one
        for one in facts
    ]
    return _side_by_side(walk, operation, widened, axis, [1] * len(facts))


def _side_by_side(
    walk: Walk,
    operation: Operation,
    facts: list[Facts],
    dim: int,
    sizes: list[int],
) -> list[Facts]:
    """Arrays beside each other; parameters beside activations are added to them."""
    before, every = 0, []
    live = any(one.live for one in facts)
    for one, size in zip(facts, sizes, strict=True):
        if live:
            walk.end(one, operation, "bias")
        after = sum(sizes) - before - size
        end = lambda strand: None if live else strand
        change = lambda p, b=before, a=after: placed(p, dim, b, a)
        every.append(changed(one, change, end).strands)
        before += size
    return [Facts(live, joined(*every))]


def pad(operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Places an array among zeros."""
    config = operation.params["padding_config"]

    def change(pattern: Pattern) -> Pattern | None:
        new: Pattern | None = pattern
        for dim, edges in enumerate(config):
            low, high, interior = map(int, edges)
            size = operation.results[0].shape[dim]
            if new is None or (low, high, interior) == (0, 0, 0):
                continue
            if interior or low < 0 or high < 0:
                new = (*new[:dim], blank(size), *new[dim + 1 :])
            else:
                new = placed(new, dim, low, high)
        return new

    return [changed(facts[0], change)]


def _moved(
    operation: Operation, facts: list[Facts], sources: Sequence[int | None]
) -> list[Facts]:
    shape = operation.results[0].shape
    return [changed(facts[0], lambda p: moved(p, sources, shape))]


def _without(operation: Operation, dims: Any) -> list[int]:
    gone = {int(dim) for dim in dims}
    rank = len(operation.operands[0].shape)
    return [dim for dim in range(rank) if dim not in gone]


def _windowed(
    pattern: Pattern, windows: Sequence[tuple[int, int, int, int]]
) -> Pattern | None:
    new: Pattern | None = pattern
    for window in windows:
        if new is not None:
            new = sliced(new, *window)
    return new
