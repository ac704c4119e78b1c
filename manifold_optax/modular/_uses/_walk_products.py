"""How parameters are used in products and convolutions."""

from collections.abc import Sequence
from typing import NamedTuple

from manifold_optax.modular._computation._graph import Operation
from manifold_optax.modular._uses._provenance import (
    axes_in,
    moved,
    NOTHING,
    Pattern,
    reshaped,
)
from manifold_optax.modular._uses._walk import (
    Facts,
    Found,
    is_own,
    joined,
    Strand,
    Strands,
    Walk,
)


class _Side(NamedTuple):
    """One operand of a product, and the other.

    Attributes:
        facts: of this operand.
        other: of the other one.
        contracted: axes of this operand that are contracted.
        batch: its batch axes.
        free: its other axes.
        layout: for each axis of the result the axis of this operand.
        one_hot: whether the other operand picks entries.
    """

    facts: Facts
    other: Facts
    contracted: tuple[int, ...]
    batch: tuple[int, ...]
    free: tuple[int, ...]
    layout: tuple[int | None, ...]
    one_hot: bool = False


def dot_general(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """A product: of activations, of parameters, or of the one with the other."""
    left, right = operation.operands
    one = _as_tokens(walk, operation, *facts)
    two = _as_tokens(walk, operation, *facts[::-1])
    contracting, batching = operation.params["dimension_numbers"]
    free_left = _rest(left.shape, (*contracting[0], *batching[0]))
    free_right = _rest(right.shape, (*contracting[1], *batching[1]))
    first = _Side(
        one,
        two,
        tuple(contracting[0]),
        tuple(batching[0]),
        free_left,
        (*batching[0], *free_left, *(None,) * len(free_right)),
        right in walk.one_hot,
    )
    second = _Side(
        two,
        one,
        tuple(contracting[1]),
        tuple(batching[1]),
        free_right,
        (*batching[1], *(None,) * len(free_left), *free_right),
        left in walk.one_hot,
    )
    return _product(walk, operation, first, second)


def ragged_dot(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """Tokens in groups, each with its matrix of a stack `[groups, in, out]`."""
    numbers = operation.params["ragged_dot_dimension_numbers"]
    (left, right), (batch_left, batch_right) = numbers.dot_dimension_numbers
    groups = tuple(numbers.rhs_group_dimensions)
    if not groups:
        for one in facts:
            walk.end(one, operation)
        return [Facts(live=True)]
    tokens, weights = operation.operands[:2]
    free_left = _rest(tokens.shape, (*left, *batch_left))
    free_right = _rest(weights.shape, (*right, *batch_right, *groups))
    first = _Side(
        facts[0],
        facts[1],
        tuple(left),
        tuple(batch_left),
        free_left,
        (*batch_left, *free_left, *(None,) * len(free_right)),
    )
    second = _Side(
        facts[1],
        facts[0],
        tuple(right),
        (*batch_right, *groups),
        free_right,
        (*batch_right, *(None,) * len(free_left), *free_right),
    )
    return _product(walk, operation, first, second)


def convolution(walk: Walk, operation: Operation, facts: list[Facts]) -> list[Facts]:
    """The taps and input channels of a kernel are its inputs."""
    numbers = operation.params["dimension_numbers"]
    groups = operation.params["feature_group_count"]
    if operation.params["batch_group_count"] != 1:
        for one in facts:
            walk.end(one, operation)
        return [Facts(live=True)]
    rank = len(operation.results[0].shape)
    images: list[int | None] = [None] * rank
    images[numbers.out_spec[0]] = numbers.lhs_spec[0]
    kernel: list[int | None] = [None] * rank
    kernel[numbers.out_spec[1]] = numbers.rhs_spec[0]
    out, channel, *taps = numbers.rhs_spec
    one, two = facts
    first = _Side(
        one,
        two,
        (numbers.lhs_spec[1],),
        (),
        (numbers.lhs_spec[0], *numbers.lhs_spec[2:]),
        tuple(images),
    )
    second = _Side(two, one, (channel, *taps), (), (out,), tuple(kernel))
    if groups > 1:
        for pattern, strands in two.strands.items():
            _note_groups(walk, operation, pattern, strands, groups)
    return _product(walk, operation, first, second, "convolution")


def _product(
    walk: Walk,
    operation: Operation,
    first: _Side,
    second: _Side,
    kind: str = "matrix",
) -> list[Facts]:
    strands = [_of_side(walk, operation, side, kind) for side in (first, second)]
    applied = any(
        not s.weight for one in strands for some in one.values() for s in some
    )
    live = applied or first.facts.live or second.facts.live
    return [Facts(live, joined(*strands))]


def _as_tokens(walk: Walk, operation: Operation, mine: Facts, other: Facts) -> Facts:
    """A parameter that was repeated over a batch, as activations.

    Learned queries are such; a matrix meets a matrix as it is.
    """
    if mine.live or not mine.strands or not other.strands or is_own(mine.strands):
        return mine
    walk.end(mine, operation, "bias")
    return Facts(live=True)


def _of_side(walk: Walk, operation: Operation, side: _Side, kind: str) -> Strands:
    """What of one operand is in the product."""
    shape = operation.results[0].shape
    summed = _summed(side)
    _note_taken(walk, side, summed)
    found: dict[Pattern, set[Strand]] = {}
    taken: dict[int, list[tuple[Pattern, tuple[int, ...]]]] = {}
    for pattern, strands in side.facts.strands.items():
        new = moved(pattern, side.layout, shape, parts=not side.facts.live)
        if any(factor.axis != NOTHING for dim in new for factor in dim):
            found.setdefault(new, set()).update(
                s for s in strands if not s.weight and s.leaf not in summed
            )
        for strand in (s for s in strands if s.weight):
            kept = _of_weight(walk, operation, side, pattern, strand, kind)
            if kept is None:
                continue
            if kept.weight:
                found.setdefault(new, set()).add(kept)
                continue
            if not strand.weak:
                taken.setdefault(strand.leaf, []).append((pattern, side.batch))
            # Along a batch axis the result runs over matrices, not over outputs.
            outputs = axes_in(pattern, side.free)
            layout = [
                None
                if source in side.batch and not axes_in(pattern, [source]) & outputs
                else source
                for source in side.layout
            ]
            result = moved(pattern, layout, shape, parts=True)
            found.setdefault(result, set()).add(kept)
    for leaf, parts in taken.items():
        walk.group(leaf, parts, "batch")
    return {pattern: frozenset(some) for pattern, some in found.items() if some}


def _note_taken(walk: Walk, side: _Side, summed: frozenset[int]) -> None:
    """How the product takes the results of earlier matrices.

    A batch axis of a product belongs to several matrices side by side: heads, or
    experts if the other operand is a parameter. So does an axis that remains where
    another one is contracted with activations: queries of heads that share their keys.
    """
    other = side.other
    if not side.contracted:
        return
    batch = side.batch if other.live or other.strands else ()
    groups: dict[int, list[tuple[Pattern, tuple[int, ...]]]] = {}
    for pattern, strands in side.facts.strands.items():
        taken = axes_in(pattern, (*side.contracted, *batch))
        for strand in strands:
            if strand.weight or not (taken or other.live or strand.leaf in summed):
                continue
            free = side.free if other.live and strand.leaf in summed else ()
            groups.setdefault(strand.leaf, []).append((pattern, (*batch, *free)))
    for leaf, parts in groups.items():
        walk.group(leaf, parts, "heads" if other.live else "experts")


def _summed(side: _Side) -> frozenset[int]:
    """The leaves over whose outputs the product sums."""
    found = [
        strand.leaf
        for pattern, strands in side.facts.strands.items()
        if axes_in(pattern, side.contracted)
        for strand in strands
        if not strand.weight
    ]
    return frozenset(found)


def _of_weight(
    walk: Walk,
    operation: Operation,
    side: _Side,
    pattern: Pattern,
    strand: Strand,
    kind: str,
) -> Strand | None:
    """The strand of a parameter after the product; `None` if it ends there."""
    contracted = axes_in(pattern, side.contracted)
    if side.facts.live:
        is_weight = any(s.weight for some in side.other.strands.values() for s in some)
        if not side.other.live or is_weight:
            return None
    elif not side.other.live and (side.other.strands or not side.contracted):
        mark = strand.mark
        if side.other.strands and not side.contracted and mark is None:
            mark = ("gain", operation)
        return strand._replace(inner=strand.inner | contracted, mark=mark)
    # Constants are inputs like others: coordinates, waves, or a first state of zeros.
    if side.one_hot and contracted:
        walk.use(strand.leaf, Found("embedding", weak=strand.weak), operation)
        return None
    found = _as_matrix(walk.shapes[strand.leaf], side, pattern, strand, kind)
    if found is not None:
        walk.overrule(strand)
        walk.use(strand.leaf, found, operation)
        return Strand(strand.leaf, weight=False)
    if not side.facts.live:
        name, place = strand.mark or ("gain", operation)
        walk.use(strand.leaf, Found(name, weak=strand.weak), place)
    return None


def _as_matrix(
    shape: tuple[int, ...], side: _Side, pattern: Pattern, strand: Strand, kind: str
) -> Found | None:
    """The use of a parameter as a matrix; `None` if nothing is contracted or left."""
    inputs = axes_in(pattern, side.contracted)
    outputs = axes_in(pattern, side.free)
    if not side.contracted or inputs & outputs:
        return None
    last = bool(outputs)
    used = axes_in(pattern, range(len(pattern)))
    inner = strand.inner - used
    if inner and not inputs and not outputs:
        first, *rest = sorted(inner)
        inputs, outputs = frozenset([first]), frozenset(rest)
    elif inner and not outputs:
        outputs = inner
    elif inner:
        inputs |= inner
    if strand.mark is None:
        # An axis of size 1 leaves no trace; the last one is meant.
        single = [axis for axis, size in enumerate(shape) if size == 1]
        if single and not outputs:
            outputs, last = frozenset([single.pop()]), True
        if single and not inputs:
            inputs = frozenset([single.pop()])
    if not inputs or not outputs:
        return None
    return Found(kind, inputs, outputs, last, strand.weak)


def _note_groups(
    walk: Walk,
    operation: Operation,
    pattern: Pattern,
    strands: frozenset[Strand],
    groups: int,
) -> None:
    """The outputs of a grouped convolution see the channels of their group alone."""
    out = operation.params["dimension_numbers"].rhs_spec[0]
    size = operation.operands[1].shape[out]
    apart = reshaped((pattern[out], ()), (groups, size // groups))
    for strand in strands:
        if strand.weight and apart is not None:
            walk.group(strand.leaf, [(apart, (0,))], "groups")


def _rest(shape: Sequence[int], taken: Sequence[int]) -> tuple[int, ...]:
    return tuple(dim for dim in range(len(shape)) if dim not in taken)
