"""Follows parameters through a computation, and collects how they are used."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from manifold_optax.modular._computation._graph import Graph, Operation, Value
from manifold_optax.modular._uses._provenance import NOTHING, Pattern, whole


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
        rules: how to follow parameters, by the name of a primitive.
        default: the rule of all other primitives.
        found: for each leaf its uses and where they are.
        groups: for each leaf how it and its results are taken apart.
        one_hot: arrays that compare integers of the input with constants.
        scanned: leaves that a loop takes slice by slice.
        shards: for axes of leaves of which a device sees a part: number of parts.
        matrices: operations that apply a matrix, a convolution or an embedding.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        rules: Mapping[str, Rule],
        default: Rule,
    ):
        self.shapes = shapes
        self.rules = rules
        self.default = default
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
        return self.rules.get(operation.name, self.default)(self, operation, facts)

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


def is_own(strands: Strands) -> bool:
    """Whether every axis of an array runs over an axis of some parameter in it."""
    patterns = [p for p, some in strands.items() if any(s.weight for s in some)]
    return all(
        any(is_of_leaf((dim,)) for dim in dims) for dims in zip(*patterns, strict=True)
    )


def is_of_leaf(pattern: Pattern) -> bool:
    """Whether no axis of an array is foreign to the leaf."""
    return all(factor.axis != NOTHING for dim in pattern for factor in dim)


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
