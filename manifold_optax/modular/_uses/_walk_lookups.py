"""How parameters are used in look-ups: tables of rows, and stacks of layers."""

import math
from collections.abc import Sequence

from manifold_optax.modular._computation._graph import Operation
from manifold_optax.modular._uses._provenance import moved
from manifold_optax.modular._uses._walk import (
    changed,
    Facts,
    Found,
    joined,
    Strand,
    Walk,
)
from manifold_optax.modular._uses._walk_axes import same_rank


def gather(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Rows of a table: an embedding, unless they turn out to be matrices."""
    for one in facts[1:]:
        walk.end(one, operation)
    numbers, sizes = operation.params["dimension_numbers"], _sizes(operation)
    shape, rank = operation.operands[0].shape, len(operation.results[0].shape)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [dim for dim in range(len(shape)) if dim not in gone]
    sources: list[int | None] = [None] * rank
    for dim, source in zip(sorted(numbers.offset_dims), kept, strict=True):
        sources[dim] = source
    looked_up = [dim for dim in numbers.start_index_map if sizes[dim] < shape[dim]]
    several = math.prod(operation.operands[1].shape[:-1]) > 1
    is_table = facts[1].live or several
    return [_taken(walk, operation, facts, looked_up, sources, is_table)]


def dynamic_slice(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Rows of a table, or one of the layers in a stack of them."""
    for one in facts[1:]:
        walk.end(one, operation)
    shape, sizes = operation.operands[0].shape, _sizes(operation)
    looked_up = [dim for dim, size in enumerate(shape) if sizes[dim] < size]
    is_table = any(one.live for one in facts[1:])
    sources = [None if dim in looked_up else dim for dim in range(len(shape))]
    return [_taken(walk, operation, facts, looked_up, sources, is_table)]


def dynamic_update_slice(
    walk: Walk, operation: Operation, facts: list[Facts]
) -> list[Facts]:
    """What is written, beside what was there."""
    written = same_rank(walk, operation, [facts[1]])
    old = same_rank(walk, operation, [facts[0]])
    live = any(one.live for one in facts)
    return [Facts(live, joined(written[0].strands, old[0].strands))]


def _taken(
    walk: Walk,
    operation: Operation,
    facts: list[Facts],
    looked_up: Sequence[int],
    sources: Sequence[int | None],
    is_table: bool,
) -> Facts:
    """What is left of a table after some of its rows were taken."""
    shape = operation.results[0].shape
    live = facts[0].live or is_table

    def of_weight(strand: Strand) -> Strand | None:
        if not looked_up or not is_table:
            return strand
        if not facts[0].live:
            found = Found("embedding", weak=strand.weak)
            walk.use(strand.leaf, found, operation)
        rows = sum(
            size > 1
            for dim, size in enumerate(operation.operands[0].shape)
            if dim not in looked_up
        )
        return strand._replace(mark=("embedding", operation)) if rows > 1 else None

    result = changed(facts[0], lambda p: moved(p, sources, shape), of_weight)
    return Facts(live or any(one.live for one in facts[1:]), result.strands)


def _sizes(operation: Operation) -> tuple[int, ...]:
    return tuple(operation.params["slice_sizes"])
