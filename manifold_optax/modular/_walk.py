"""Follows parameters through a computation, and collects how they are used."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from manifold_optax.modular._graph import Graph, Operation, Value
from manifold_optax.modular._provenance import foreign, NOTHING, Pattern, whole


class Strand(NamedTuple):
    """What of one leaf is in an array.

    Attributes:
        leaf: number of the leaf.
        weight: whether the array holds the entries of the leaf, or functions of them;
            if not, it is the result of a product with the leaf.
        weak: whether the entries went through something that no gradient passes, or
            were summed: such uses count only if there is no other.
        mark: how the entries were combined with others so far, and where.
        inner: axes that were contracted with other parameters.
    """

    leaf: int
    weight: bool
    weak: bool = False
    mark: tuple[str, Operation] | None = None
    inner: frozenset[int] = frozenset()


Strands: TypeAlias = Mapping[Pattern, frozenset[Strand]]


class Facts(NamedTuple):
    """What is known of an array.

    Attributes:
        live: whether it depends on the inputs of the model, not on parameters alone.
        strands: what is in it of which leaf, by how its axes run over that leaf.
    """

    live: bool
    strands: Strands = {}  # noqa: RUF012 - never changed


class Found(NamedTuple):
    """One way in which a leaf is used.

    Attributes:
        kind: as in `Use.kind`.
        inputs: its axes that are contracted.
        outputs: its axes that remain.
        last: whether the outputs are axes of the result.
        weak: as in `Strand`.
    """

    kind: str
    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()
    last: bool = False
    weak: bool = False


class Group(NamedTuple):
    """A leaf, or the result of a product with it, as one operation takes it.

    Attributes:
        parts: how the axes of that array run over the leaf, once for each part of the
            leaf that is in it, and those axes along which it is several matrices.
        reason: what these matrices are: `"heads"`, `"experts"`, …
    """

    parts: frozenset[tuple[Pattern, tuple[int, ...]]]
    reason: str


Rule: TypeAlias = Callable[["Walk", Operation, list[Facts]], list[Facts]]

UNKNOWN = Facts(live=True)
"""An array that no parameter is followed into."""


class Walk:
    """One walk over a graph and the bodies of its loops; it only ever adds.

    Attributes:
        shapes: of the leaves.
        found: for each leaf its uses and where they are.
        groups: for each leaf how it and its results are taken apart.
        one_hot: arrays that compare integers of the input with constants.
        scanned: leaves that a loop takes slice by slice.
        shards: for axes of leaves of which a device sees a part: number of parts.
        matrices: operations that apply a matrix, a convolution or an embedding.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], rules: Mapping[str, Rule]):
        self.shapes = shapes
        self.rules = rules
        self.found: dict[int, dict[tuple[Found, Operation], None]] = {}
        self.groups: dict[int, dict[Group, None]] = {}
        self.one_hot: set[Value] = set()
        self.scanned: set[int] = set()
        self.shards: dict[tuple[int, int], int] = {}
        self.matrices: set[Operation] = set()
        self._overruled: set[tuple[int, Operation]] = set()

    def run(self, graph: Graph, inputs: Sequence[Facts]) -> list[Facts]:
        """Facts of the outputs of a graph."""
        known = dict(zip(graph.inputs, inputs, strict=True))
        for operation in graph.operations():
            facts = [known.get(value, Facts(False)) for value in operation.operands]
            known.update(
                zip(operation.results, self._apply(operation, facts), strict=True)
            )
        return [known.get(value, Facts(False)) for value in graph.outputs]

    def _apply(self, operation: Operation, facts: list[Facts]) -> list[Facts]:
        self._note_one_hot(operation, facts)
        if not any(one.strands for one in facts):
            live = any(one.live for one in facts)
            return [Facts(live)] * len(operation.results)
        return self.rules.get(operation.name, default)(self, operation, facts)

    def _note_one_hot(self, operation: Operation, facts: list[Facts]) -> None:
        if operation.name == "eq" and not any(x.is_float for x in operation.operands):
            if facts[0].live != facts[1].live:
                self.one_hot.add(operation.results[0])
        elif operation.name in _SAME_ENTRIES and operation.operands[0] in self.one_hot:
            self.one_hot.add(operation.results[0])

    def use(self, leaf: int, found: Found, operation: Operation) -> None:
        """Notes a use of a leaf."""
        self.found.setdefault(leaf, {})[found, operation] = None
        if found.kind in ("matrix", "convolution", "embedding"):
            self.matrices.add(operation)

    def group(
        self,
        leaf: int,
        parts: Iterable[tuple[Pattern, tuple[int, ...]]],
        reason: str = "",
    ) -> None:
        """Notes how a leaf, or a result of it, is taken."""
        group = Group(frozenset(parts), reason)
        self.groups.setdefault(leaf, {})[group] = None

    def overrule(self, strand: Strand) -> None:
        """The mark of a strand was part of its way to a product, not its use."""
        if strand.mark is not None:
            self._overruled.add((strand.leaf, strand.mark[1]))

    def end(self, facts: Facts, operation: Operation, kind: str = "other") -> None:
        """Notes that the parameters in an array are followed no further."""
        for strands in facts.strands.values():
            for strand in strands:
                if not strand.weight or facts.live:  # if live, its use is noted
                    continue
                name, place = strand.mark or (kind, operation)
                self.use(strand.leaf, Found(name, weak=strand.weak), place)

    def uses_of(
        self, leaf: int, alive: set[Operation]
    ) -> list[tuple[Found, Operation]]:
        """The uses of a leaf; weak ones, and such that are not alive, if all are."""
        every = [
            (found, operation)
            for found, operation in self.found.get(leaf, {})
            if (leaf, operation) not in self._overruled or found.inputs
        ]
        strong = [one for one in every if not one[0].weak and one[1] in alive]
        return strong or every


def leaf_facts(leaf: int, shape: tuple[int, ...]) -> Facts:
    """A leaf itself."""
    return Facts(False, {whole(shape): frozenset([Strand(leaf, True)])})


def joined(*strands: Strands) -> Strands:
    """What is in any of several arrays that become one."""
    first, *others = strands
    if not any(others):
        return first
    found = dict(first)
    for more in others:
        for pattern, some in more.items():
            known = found.get(pattern)
            found[pattern] = some if known is None else known | some
    return found


def changed(
    facts: Facts,
    change: Callable[[Pattern], Pattern | None],
    of_weight: Callable[[Strand], Strand | None] = lambda strand: strand,
) -> Facts:
    """Facts after an operation on the axes of one array.

    Args:
        facts: those of the array.
        change: the new pattern; `None` if the strand is not in the result.
        of_weight: the new strand of a weight; `None` to end it.
    """
    found: dict[Pattern, frozenset[Strand]] = {}
    for pattern, strands in facts.strands.items():
        new = change(pattern)
        if new is None:
            continue
        of_leaf = any(factor.axis != NOTHING for dim in new for factor in dim)
        kept = set()
        for strand in strands:
            if strand.weight:
                kept.add(of_weight(strand))
            elif of_leaf:
                kept.add(strand)
        kept.discard(None)
        if kept:
            found[new] = found.get(new, frozenset()) | kept
    return Facts(facts.live, found)


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
                any(_is_own(p) for other in others for p in other.strands),
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
    narrow = mark[0] == "gain" and meeting.with_own and not _is_own(pattern)
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


def is_own(strands: Strands) -> bool:
    """Whether every axis of an array runs over an axis of some parameter in it."""
    patterns = [p for p, some in strands.items() if any(s.weight for s in some)]
    return all(
        any(_is_own((dim,)) for dim in dims) for dims in zip(*patterns, strict=True)
    )


def _is_own(pattern: Pattern) -> bool:
    """Whether no axis of an array is foreign to the leaf."""
    return all(factor.axis != NOTHING for dim in pattern for factor in dim)


_MARKS = {
    "add": "bias",
    "add_any": "bias",
    "sub": "bias",
    "select_n": "bias",
    "mul": "gain",
    "div": "gain",
}
"""What a parameter is that an operation combines with activations."""

_SAME_ENTRIES = (
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "optimization_barrier",
    "reshape",
    "sharding_constraint",
    "squeeze",
    "stop_gradient",
    "transpose",
)
"""Primitives that keep the entries of an array."""

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
