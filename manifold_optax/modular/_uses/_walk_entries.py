"""How parameters are followed through functions of entries."""

from typing import NamedTuple

from manifold_optax.modular._computation._graph import Operation
from manifold_optax.modular._uses._provenance import foreign, Pattern
from manifold_optax.modular._uses._walk import (
    Facts,
    Found,
    is_of_leaf,
    is_own,
    joined,
    Strand,
    UNKNOWN,
    Walk,
)


def entrywise(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Strands stay where they are; parameters that meet others get their mark."""
    (result,) = operation.results
    weak = not result.is_float or operation.name == "stop_gradient"
    every = []
    for index, (one, value) in enumerate(zip(facts, operation.operands, strict=True)):
        strands = one.strands
        if strands and value.shape != result.shape:
            scalars = frozenset(s for some in strands.values() for s in some)
            scalars = frozenset(s for s in scalars if s.weight)
            strands = {foreign(result.shape): scalars}
        others = facts[:index] + facts[index + 1 :]
        alone = not any(other.live or other.strands for other in others)
        if weak or not alone:
            meeting = _Meeting(
                operation,
                one.live,
                any(other.live for other in others),
                alone,
                is_own(strands),
                any(is_of_leaf(p) for other in others for p in other.strands),
                weak,
            )
            strands = {p: _met(walk, meeting, p, some) for p, some in strands.items()}
            strands = {pattern: some for pattern, some in strands.items() if some}
        every.append(strands)
    return [Facts(any(one.live for one in facts), joined(*every))]


class _Meeting(NamedTuple):
    """How one operand is combined with the others.

    Attributes:
        operation: that combines them.
        live: whether the operand is an activation, or was combined with one.
        with_live: whether another one is.
        alone: whether all others are constants.
        own: whether the operand has axes of parameters alone.
        with_own: whether another one has axes of one parameter alone.
        weak: whether no gradient passes the operation.
    """

    operation: Operation
    live: bool
    with_live: bool
    alone: bool
    own: bool
    with_own: bool
    weak: bool


def _met(
    walk: Walk, meeting: _Meeting, pattern: Pattern, strands: frozenset[Strand]
) -> frozenset[Strand]:
    """The strands of one operand after it was combined with the others.

    What is combined with activations is a gain or a bias. If it has axes of parameters
    alone it is followed further, too: masked weights are still weights. What scales
    the rows, columns or blocks of a larger parameter is a gain.
    """
    if not any(strand.weight for strand in strands):
        return strands
    operation = meeting.operation
    mark = (_MARKS.get(operation.name, "other"), operation)
    narrow = mark[0] == "gain" and meeting.with_own and not is_of_leaf(pattern)
    kept = set()
    for strand in strands:
        weak = strand.weak or meeting.weak
        if not strand.weight:
            kept.add(strand)
            continue
        if meeting.alone:
            kept.add(strand._replace(weak=weak))
            continue
        if narrow and not strand.inner:
            walk.use(strand.leaf, Found(mark[0], weak=strand.weak), operation)
            continue
        if meeting.with_live and not meeting.live:
            walk.use(strand.leaf, Found(mark[0], weak=strand.weak), operation)
            strand = strand._replace(mark=mark)
        elif strand.mark is None:
            strand = strand._replace(mark=mark)
        live = meeting.live or meeting.with_live
        if not live or (meeting.own and not strand.weak):
            kept.add(strand._replace(weak=weak))
    return frozenset(kept)


def default(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Follows what has the shape of the result, and ends the rest.

    A primitive whose operands have the shape of its result is taken to work entry by
    entry, or along axes that it keeps.
    """
    shapes = [value.shape for value in operation.operands]
    results = [value.shape for value in operation.results]
    if operation.name not in _MIXING and not operation.bodies:
        if len(results) == 1 and all(s in ((), results[0]) for s in shapes):
            return entrywise(walk, operation, facts)
        if shapes == results:
            return facts
    for one in facts:
        walk.end(one, operation)
    return [UNKNOWN] * len(results)


_MARKS = {
    "add": "bias",
    "add_any": "bias",
    "sub": "bias",
    "select_n": "bias",
    "mul": "gain",
    "div": "gain",
}
"""What a parameter is that an operation combines with activations."""

_MIXING = (
    "cholesky",
    "custom_call",
    "declared",
    "eigh",
    "fft",
    "ffi_call",
    "hessenberg",
    "io_callback",
    "lu",
    "pallas_call",
    "pure_callback",
    "qr",
    "schur",
    "svd",
    "triangular_solve",
    "tridiagonal",
)
"""Primitives whose results have other axes than their operands, though as long."""
