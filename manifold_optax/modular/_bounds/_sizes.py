"""How large the values of a computation are, asked for one norm at a time."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from manifold_optax.modular._bounds._convolution_norm import ConvolutionNorm
from manifold_optax.modular._bounds._least_entry import least_entry
from manifold_optax.modular._bounds._mixed_norm import (
    MixedNorm,
    natural_norm,
    ratio,
    remarked,
)
from manifold_optax.modular._bounds._number import reference, Size, smallest
from manifold_optax.modular._computation._constants import constant_array
from manifold_optax.modular._computation._graph import Graph, Operation, Value

_T = TypeVar("_T")


class Unreadable(ValueError):
    """The reader met something that it cannot follow."""


class Fact(NamedTuple):
    """A norm of a value and an upper bound of it."""

    norm: MixedNorm
    size: Size


class Flags(NamedTuple):
    """What a value depends on: parameters, inputs; and whether it moves with them."""

    params: bool = False
    inputs: bool = False
    moves: bool = False


class Known(NamedTuple):
    """What is known of an input of a graph.

    Attributes:
        facts: bounds of its norms.
        params: whether it depends on parameters.
        inputs: whether it depends on the inputs of the model.
        moves: whether a small change of a parameter or of an input changes it.
        norms: of a parameter, those in which its size is known.
    """

    facts: Callable[[MixedNorm], Size]
    params: bool = False
    inputs: bool = False
    moves: bool = False
    norms: tuple[MixedNorm, ...] = ()


class Move(NamedTuple):
    """Where a change of an operand is seen, and how much larger.

    Attributes:
        result: which result of the operation.
        factor: a change of norm 1 becomes one of at most this norm.
        norm: the norm of the result.
        reason: what the factor is.
    """

    result: int
    factor: Size
    norm: MixedNorm
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the reader knows of one primitive.

    Attributes:
        size: `(operation, result, norm, sizes)` → an upper bound of that norm of that
            result.
        moves: `(operation, operand, norm, sizes)` → ways to bound what a change of that
            operand, of norm 1, does: a list of alternatives, each the moves of all
            results that change.
        operators: whether both know operator norms, of weights (mark `"i"`); else they
            are asked for the Euclidean norm, which is larger.
    """

    size: "Callable[[Operation, int, MixedNorm, Sizes], Size]"
    moves: "Callable[[Operation, int, MixedNorm, Sizes], Sequence[Sequence[Move]]]"
    operators: bool = False


RULES: dict[str, Rule] = {}
"""The rules, by the name of the operation."""


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What the sizes rest on.

    Attributes:
        nominal: every value that enters a weight, a norm layer or a product of two
            activations has RMS 1 and even entries, and biases are 0: the accounting of
            the theory, no bound.
        floor: the least RMS of what enters a norm layer.
    """

    nominal: bool = False
    floor: float = 0.0


class Sizes:
    """Bounds of the values of one graph, computed when asked for, and kept."""

    def __init__(
        self,
        graph: Graph,
        known: Mapping[Value, Known],
        assumptions: Assumptions,
        measured: Callable[[Value, Any], Size | None] | None = None,
    ) -> None:
        """`measured`: bounds of values that are not read but computed, where it can."""
        self.graph = graph
        self.assumptions = assumptions
        self._known = known
        self._bounds: dict[tuple[Value, MixedNorm], Size] = {}
        self._lowest: dict[Value, float] = {}
        self._loops: dict[Operation, Any] = {}
        self._flags: dict[Value, Flags] = {}
        self._measured = measured
        self._mark()

    def bound(self, value: Value, norm: MixedNorm) -> Size:
        """An upper bound of a norm of a value; `inf` where there is none."""
        key = (value, norm)
        if key not in self._bounds:
            size = self._bound(value, norm)
            # Not a number, from 0 times infinity, compares as if it were small.
            self._bounds[key] = math.inf if math.isnan(reference(size)) else size
        return self._bounds[key]

    def entering(self, value: Value, norm: MixedNorm) -> Size:
        """The bound of what enters a product: RMS 1 for activations, in nominal.

        Weights that are summed over (of attention) keep the bound of their sum.
        """
        assumed = self.assumptions.nominal and not norm.has("s")
        if assumed and self.is_moving(value) and not self.is_weight(value):
            return norm.of_ones
        return self.bound(value, norm)

    def least(self, value: Value) -> float:
        """A lower bound of the entries of a value; `-inf` where there is none."""
        if value not in self._lowest:
            self._lowest[value] = least_entry(value, self.graph, self.least)
        return self._lowest[value]

    def is_weight(self, value: Value) -> bool:
        """Whether a value is made of parameters and constants alone."""
        flags = self.flags(value)
        return flags.params and not flags.inputs

    def is_moving(self, value: Value) -> bool:
        """Whether small changes of parameters or inputs change the value at all."""
        return self.flags(value).moves

    def flags(self, value: Value) -> Flags:
        """What the value depends on."""
        return self._flags.get(value, Flags())

    def structure(self, value: Value) -> tuple[MixedNorm, ...]:
        """The norms in which the size of a weight is known, brought to its form here.

        Of a leaf those of its ball; of what is made from one weight, what becomes of
        them.
        """
        if value in self._known:
            return self._known[value].norms
        operation = self.graph.maker(value)
        if operation is None or not self.is_weight(value):
            return ()
        weights = [k for k, x in enumerate(operation.operands) if self.is_weight(x)]
        if len(operation.results) > 1 or not weights:
            return ()
        found = []
        for norm in self.structure(operation.operands[weights[0]]):
            for moves in rule_of(operation).moves(operation, weights[0], norm, self):
                found += [move.norm for move in moves[:1]]
                break
        return tuple(found)

    def loop(self, operation: Operation, read: Callable[[], _T]) -> _T:
        """What was read of the body of a loop, read once."""
        if operation not in self._loops:
            self._loops[operation] = read()
        return self._loops[operation]

    def measure(self, value: Value, norm: ConvolutionNorm) -> Size:
        """All windows of an image together have at most √overlap times its norm."""
        if self._measured is not None and self.is_weight(value):
            found = self._measured(value, norm)
            if found is not None:
                return found
        return math.sqrt(norm.overlap) * self.bound(value, norm.unfolded)

    def convert(self, value: Value, norm: MixedNorm, other: MixedNorm) -> Size:
        """The bound of a norm by way of another one."""
        even = self.assumptions.nominal and not self.is_weight(value)
        return ratio(norm, other, even=even) * self.bound(value, other)

    def _bound(self, value: Value, norm: MixedNorm) -> Size:
        if self._measured is not None and self.is_weight(value):
            found = self._measured(value, norm)
            if found is not None:
                return found
        if value in self._known:
            return self._known[value].facts(norm)
        operation = self.graph.maker(value)
        array = constant_array(value)
        if array is not None:
            return constant_size(array, norm)
        if operation is None or not value.is_float:
            return math.inf
        if operation.name not in RULES and not self.is_moving(value):
            # Noise, say: as large as the theory assumes everything to be, or unknown.
            return norm.of_ones if self.assumptions.nominal else math.inf
        index, rule = operation.results.index(value), rule_of(operation)
        if not rule.operators:
            norm = remarked(norm, "i", "o")
        size = rule.size(operation, index, norm, self)
        if size == math.inf:
            wide = natural_norm(value.shape)
            if wide != norm:
                size = self.convert(value, norm, wide)
        return size

    def _mark(self) -> None:
        """What each value depends on: on whatever its operands do."""
        for value, known in self._known.items():
            self._flags[value] = Flags(known.params, known.inputs, known.moves)
        for operation in self.graph.operations():
            flags = [self.flags(operand) for operand in operation.operands]
            if not flags:
                continue
            together = Flags(*(any(flag) for flag in zip(*flags, strict=True)))
            for result in operation.results:
                self._flags[result] = together


def rule_of(operation: Operation) -> Rule:
    """The rule of an operation.

    Raises:
        Unreadable: if there is none.
    """
    if operation.name in RULES:
        return RULES[operation.name]
    raise Unreadable(
        f"{operation.name}: no rule [{operation.line}]. Put that step into a function "
        "of its own and declare it with mo.modular.declare(slope=..., size=...), or "
        f"register a rule with mo.modular.register_rule({operation.name!r}, ...)."
    )


def constant_size(array: np.ndarray, norm: MixedNorm) -> float:
    """A norm of a known array; an operator norm where it is one plain matrix."""
    array = np.abs(np.asarray(array, np.float64))
    array = np.where(np.isnan(array), np.inf, array)  # No bound holds for it.
    norm = remarked(norm, "i", "o")
    marks = [mark for _, mark in norm.factors]
    array = array.reshape([size for size, _ in norm.factors])
    chosen: dict[str, tuple[int, ...]] = {
        mark: tuple(k for k, have in enumerate(marks) if have == mark) for mark in "os"
    }
    if chosen["s"]:
        array = np.sum(array, chosen["s"], keepdims=True)
    if chosen["o"]:
        top = np.max(array, chosen["o"], keepdims=True, initial=0.0)
        safe = np.where(top > 0, np.where(np.isfinite(top), top, 1.0), 1.0)
        array = np.sqrt(np.sum(np.square(array / safe), chosen["o"], keepdims=True))
        array = array * safe
    largest = float(np.max(array, initial=0.0))
    return math.inf if math.isnan(largest) else largest


def known_facts(*facts: Fact, even: bool = False) -> Callable[[MixedNorm], Size]:
    """Bounds of every norm from the bounds of some."""

    def bound(norm: MixedNorm) -> Size:
        return smallest(ratio(norm, given, even=even) * size for given, size in facts)

    return bound


def times(a: Size, b: Size) -> Size:
    """A product in which nothing times anything is nothing."""
    return a * b if a and b else 0.0  # A `Number` is never falsy.


def no_facts(norm: MixedNorm) -> float:
    """Nothing is known."""
    del norm
    return math.inf


def all_max(shape: Sequence[int]) -> MixedNorm:
    """The largest entry."""
    return MixedNorm(tuple(((n, "b"),) if n != 1 else () for n in shape))


def unfollowed(operation: Operation, why: str) -> Unreadable:
    """The error for a step that a rule cannot follow."""
    return Unreadable(
        f"{operation.name}: {why} [{operation.line}]. Put that step into a function of "
        "its own and declare it with mo.modular.declare(slope=..., size=...)."
    )
