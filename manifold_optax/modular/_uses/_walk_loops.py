"""How parameters are followed through loops, branches and the devices of a mesh."""

from manifold_optax.modular._computation._graph import Graph, Operation
from manifold_optax.modular._uses._provenance import axes_in, blank, moved, Pattern
from manifold_optax.modular._uses._walk import changed, Facts, joined, Strand, Walk

_ROUNDS = 8
"""Most passes over the body of a loop; each adds what its results bring round, and two
or three are enough for layers in a loop."""


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


def shard(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """The part of an array that one device of a mesh sees."""
    (outer,), (inner,) = operation.operands, operation.results
    parts = {
        dim: large // small
        for dim, (large, small) in enumerate(zip(outer.shape, inner.shape, strict=True))
        if large != small
    }
    for pattern, strands in facts[0].strands.items():
        for dim, count in parts.items():
            for axis in axes_in(pattern, [dim]):
                walk.shards.update({(strand.leaf, axis): count for strand in strands})
    return [changed(facts[0], lambda p: _shard(p, parts))]


def all_gather(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """An array that was cut between devices, whole again on each of them."""
    shape, dim = operation.results[0].shape, operation.params["all_gather_dimension"]
    if not operation.params["tiled"]:
        sources = [d - (d > dim) if d != dim else None for d in range(len(shape))]
        return [changed(facts[0], lambda p: moved(p, sources, shape))]
    count = shape[dim] // operation.operands[0].shape[dim]

    def change(pattern: Pattern) -> Pattern:
        factors = pattern[dim]
        wide = blank(shape[dim])
        if len(factors) == 1 and factors[0].start == 0 and not factors[0].padded:
            wide = (factors[0]._replace(size=factors[0].size * count),)
        return (*pattern[:dim], wide, *pattern[dim + 1 :])

    for pattern, strands in facts[0].strands.items():
        for axis in axes_in(pattern, [dim]):
            for strand in strands:
                parts = walk.shards.get((strand.leaf, axis), count)
                walk.shards[strand.leaf, axis] = max(1, parts // count)
    return [changed(facts[0], change)]


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
        value
        for number, value in enumerate(body.inputs)
        if number != consts + index and value.constant is None
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
