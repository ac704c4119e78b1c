"""How much of a change of a value reaches the outputs, read from the outputs back."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from manifold_optax.modular._bounds._mixed_norm import (
    MixedNorm,
    natural_norm,
    outermost,
    ratio,
    remarked,
)
from manifold_optax.modular._bounds._number import reference, Size, total
from manifold_optax.modular._bounds._sizes import (
    all_max,
    Fact,
    Move,
    rule_of,
    Sizes,
    times,
    unfollowed,
    Unreadable,
)
from manifold_optax.modular._computation._graph import Graph, Operation, Value

_ORDERED = frozenset({
    "add", "add_any", "convert_element_type", "dot_general", "entrywise", "select_n",
    "softmax", "sub", "transpose",
})  # fmt: skip
"""Operations whose rules follow maxima and sums inside Euclidean norms."""


class Link(NamedTuple):
    """One step of a change on its way to the outputs.

    Attributes:
        operation: what it passes; `None` where it has arrived.
        move: which result it changes, by which factor, in which norm.
        gain: what reaches the outputs from there on.
    """

    operation: Operation | None
    move: Move
    gain: Size


class Gains:
    """Bounds of the derivative of some outputs of a graph with respect to its values.

    The gain of a value in a norm is the largest norm of the change of the outputs, to
    first order, for a change of the value of norm 1. It is the sum over the uses of the
    value; for each use the least of what its rule offers.
    """

    def __init__(
        self, graph: Graph, sizes: Sizes, wanted: Mapping[Value, Sequence[Fact]]
    ) -> None:
        """`wanted`: norms of the outputs, each with its weight in the sum."""
        self.graph = graph
        self.sizes = sizes
        self._wanted = wanted
        self.uses = graph.uses()
        self._gains: dict[tuple[Value, MixedNorm], Size | Unreadable] = {}
        self._prepare()

    def gain(self, value: Value, norm: MixedNorm) -> Size:
        """What a change of `value`, of norm 1, does to the outputs at most."""
        if norm.has("i") and not self.sizes.is_weight(value):
            # What happens to an activation differs from row to row, so that a norm of
            # all rows together says no more than that of the longest.
            norm = remarked(norm, "i", "b")
        key = (value, norm)
        if key not in self._gains:
            try:
                ways = self._ways(value, norm)
                gain = total(passed for passed, _ in ways)
                self._gains[key] = math.inf if math.isnan(reference(gain)) else gain
            except Unreadable as error:
                self._gains[key] = error
        found = self._gains[key]
        if isinstance(found, Unreadable):
            raise found
        return found

    def best(self, operation: Operation, position: int, norm: MixedNorm) -> list[Move]:
        """The moves of one operation by which least of a change arrives."""
        _, links = self._least(operation, position, norm)
        return [link.move for link in links]

    def links(
        self,
        value: Value,
        norm: MixedNorm,
        number: Callable[[Size], float] = reference,
    ) -> list[Link]:
        """The moves behind a gain, the one that carries most first, by `number`."""
        if norm.has("i") and not self.sizes.is_weight(value):
            norm = remarked(norm, "i", "b")
        links = [link for _, way in self._ways(value, norm) for link in way]
        return sorted(
            links, key=lambda link: -number(times(link.move.factor, link.gain))
        )

    def _ways(self, value: Value, norm: MixedNorm) -> Iterator[tuple[Size, list[Link]]]:
        """For each use: what it passes on, and by which moves."""
        for wanted, weight in self._wanted.get(value, ()):
            move = Move(0, ratio(wanted, outermost(norm)), wanted, "the output")
            yield move.factor * weight, [Link(None, move, weight)]
        if not value.is_float:
            return
        for operation, position in self.uses.get(value, ()):
            if any(self._is_seen(result) for result in operation.results):
                yield self._least(operation, position, norm)

    def _is_seen(self, result: Value) -> bool:
        return result in self.uses or result in self._wanted

    def _least(
        self, operation: Operation, position: int, norm: MixedNorm
    ) -> tuple[Size, list[Link]]:
        """The least of the ways that the rule of one use offers."""
        best: tuple[Size, list[Link]] | None = None
        rule, given = rule_of(operation), norm
        if operation.name not in _ORDERED:
            given = outermost(norm)
        if not rule.operators:
            given = remarked(given, "i", "o")
        factor = ratio(given, norm)
        for moves in rule.moves(operation, position, given, self.sizes):
            scaled = [move._replace(factor=factor * move.factor) for move in moves]
            links = [
                Link(operation, move, self._beyond(operation, move)) for move in scaled
            ]
            passed = total(times(x.move.factor, x.gain) for x in links)
            if best is None or reference(passed) < reference(best[0]):
                best = (passed, links)
        if best is None:
            raise unfollowed(operation, f"no bound for a change in the norm {norm}")
        return best

    def _beyond(self, operation: Operation, move: Move) -> Size:
        result = operation.results[move.result]
        if move.factor and not result.is_float:
            raise unfollowed(
                operation, "its result jumps where a parameter or an input moves"
            )
        return self.gain(result, move.norm) if self._is_seen(result) else 0.0

    def _prepare(self) -> None:
        """Fills the usual norms from the outputs back, so that no call nests deep.

        What fails here fails again, with its message, if it is asked for.
        """
        for operation in reversed(self.graph.operations()):
            for result in operation.results:
                if not result.is_float or not self.sizes.is_moving(result):
                    continue
                for usual in (natural_norm, all_max):
                    with contextlib.suppress(Unreadable):
                        self.gain(result, usual(result.shape))
