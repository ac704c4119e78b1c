"""How parameters are followed through operations on axes and through loops."""

from collections.abc import Sequence
from typing import Any

from manifold_optax.modular._graph import Graph, Operation
from manifold_optax.modular._provenance import (
    axes_in,
    blank,
    moved,
    Pattern,
    placed,
    reshaped,
    sliced,
)
from manifold_optax.modular._walk import (
    changed,
    Facts,
    Found,
    joined,
    Strand,
    UNKNOWN,
    Walk,
)

_ROUNDS = 8
"""Most passes over the body of a loop; each adds what its results bring round, and two
or three are enough for layers in a loop."""


def transpose(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Moves axes."""
    return _moved(operation, facts, operation.params["permutation"])


def squeeze(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Removes axes of size 1."""
    return _moved(operation, facts, _without(operation, operation.params["dimensions"]))


def broadcast(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Adds axes."""
    sources: list[int | None] = [None] * len(operation.results[0].shape)
    for source, dim in enumerate(operation.params["broadcast_dimensions"]):
        sources[dim] = source
    return _moved(operation, facts, sources)


def tile(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Repeats along axes."""
    repeats = operation.params["reps"]

    def change(pattern: Pattern) -> Pattern:
        dims = [(*blank(n), *dim) for n, dim in zip(repeats, pattern, strict=False)]
        return (*dims, pattern[-1])

    return [changed(facts[0], change)]


def reduction(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
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


def cut(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """`slice`."""
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


def split(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Several slices of one axis."""
    axis, start, results = operation.params["axis"], 0, []
    for size in map(int, operation.params["sizes"]):
        window = (axis, start, size, 1)
        results.append(changed(facts[0], lambda p, w=window: _windowed(p, [w])))
        start += size
    return results


def unstack(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
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


def pad(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Places an array among zeros."""
    config = operation.params["padding_config"]

    def change(pattern: Pattern) -> Pattern | None:
        new: Pattern | None = pattern
        for dim, (low, high, interior) in enumerate(config):
            size = operation.results[0].shape[dim]
            if new is None or (low, high, interior) == (0, 0, 0):
                continue
            if interior or low < 0 or high < 0:
                new = (*new[:dim], blank(size), *new[dim + 1 :])
            else:
                new = placed(new, dim, low, high)
        return new

    return [changed(facts[0], change)]


def scan(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """The body, for slices of what is scanned over."""
    consts, carried = operation.params["num_consts"], operation.params["num_carry"]
    (body,) = operation.bodies
    rows = []
    for one, value in zip(
        facts[consts + carried :], body.inputs[consts + carried :], strict=True
    ):
        _note_rows(walk, one)
        sources = range(1, len(value.shape) + 1)
        parts = not one.live
        change = lambda p, s=sources, v=value, k=parts: moved(p, s, v.shape, parts=k)
        rows.append(changed(one, change))
    first = facts[consts : consts + carried]
    state, results = _loop(walk, operation, body, facts[:consts], first, rows)
    stacked = []
    for one, value in zip(results, operation.results[carried:], strict=True):
        sources = [None, *range(len(value.shape) - 1)]
        change = lambda p, s=sources, v=value: moved(p, s, v.shape)
        stacked.append(changed(one, change))
    return [*state, *stacked]


def loop(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """`while`: condition and body."""
    tests = operation.params["cond_nconsts"]
    consts = tests + operation.params["body_nconsts"]
    condition, body = operation.bodies
    state, _ = _loop(walk, operation, body, facts[tests:consts], facts[consts:], [])
    for one in walk.run(condition, [*facts[:tests], *state]):
        walk.end(one, operation)
    return state


def branches(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """`cond`: what comes out of any branch."""
    walk.end(facts[0], operation)
    every = [walk.run(body, facts[1:]) for body in operation.bodies]
    results = []
    for ways in zip(*every, strict=True):
        live = any(one.live for one in (*ways, facts[0]))
        results.append(Facts(live, joined(*(one.strands for one in ways))))
    return results


def shard_map(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """The body for the part of one device; what is cut is not followed out of it."""
    (body,) = operation.bodies
    inside = []
    for one, outer, inner in zip(facts, operation.operands, body.inputs, strict=True):
        parts = {
            dim: large // small
            for dim, (large, small) in enumerate(
                zip(outer.shape, inner.shape, strict=True)
            )
            if large != small
        }
        for pattern, strands in one.strands.items():
            for dim in parts:
                for axis in axes_in(pattern, [dim]):
                    for strand in strands:
                        walk.shards[strand.leaf, axis] = parts[dim]
        inside.append(changed(one, lambda p, n=parts: _shard(p, n)))
    results = []
    for one, value in zip(walk.run(body, inside), operation.results, strict=True):
        shape = value.shape
        change = lambda p, s=shape: moved(p, range(len(s)), s)
        results.append(changed(one, change))
    return results


def _shard(pattern: Pattern, parts: dict[int, int]) -> Pattern:
    """The pattern of a part of an array; only whole axes of a leaf keep theirs."""
    dims = list(pattern)
    for dim, count in parts.items():
        first, *more = dims[dim]
        size = first.total // count
        if more or first.padded or first.size % count or first.start:
            dims[dim] = blank(size)
        else:
            dims[dim] = (first._replace(size=size),) if size > 1 else ()
    return tuple(dims)


def _loop(
    walk: Walk,
    operation: Operation,
    body: Graph,
    consts: list[Facts],
    first: list[Facts],
    rows: list[Facts],
) -> tuple[list[Facts], list[Facts]]:
    """What a loop carries in the end, and the other results of its body."""
    state = []
    for index, facts in enumerate(first):
        own = body.inputs[len(consts) + index]
        if body.outputs[index] is own:
            state.append(facts)
        elif _is_counter(body, index, len(consts)):
            state.append(Facts(facts.live))
        else:
            walk.end(facts, operation, "bias")
            state.append(Facts(True, _results(facts)))
    outputs: list[Facts] = []
    for _ in range(_ROUNDS):
        outputs = walk.run(body, [*consts, *state, *rows])
        new = [
            Facts(old.live, joined(old.strands, _results(out)) if old.live else {})
            if body.outputs[index] is not body.inputs[len(consts) + index]
            else old
            for index, (old, out) in enumerate(zip(state, outputs, strict=False))
        ]
        if new == state:
            break
        state = new
    return state, outputs[len(first) :]


def _is_counter(body: Graph, index: int, consts: int) -> bool:
    """Whether a carried integer depends on nothing else."""
    output = body.outputs[index]
    if output.is_float:
        return False
    needed = {output}
    for operation in Graph(body.inputs, (output,)).operations():
        needed.update(operation.operands)
    return needed.isdisjoint(
        value for number, value in enumerate(body.inputs) if number != consts + index
    )


def _results(facts: Facts) -> dict[Pattern, frozenset[Strand]]:
    """What is no parameter itself."""
    kept = {
        pattern: frozenset(strand for strand in strands if not strand.weight)
        for pattern, strands in facts.strands.items()
    }
    return {pattern: strands for pattern, strands in kept.items() if strands}


def _note_rows(walk: Walk, facts: Facts) -> None:
    """Slices of a parameter, or of a result, are matrices of their own."""
    for pattern, strands in facts.strands.items():
        if axes_in(pattern, [0]):
            for strand in strands:
                walk.group(strand.leaf, [(pattern, (0,))], "one by one")
                if strand.weight:
                    walk.scanned.add(strand.leaf)


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
