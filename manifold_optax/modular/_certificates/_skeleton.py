"""Bounds below the product of norms: what layers do together, and remainders apart.

A value is an affine function of the inputs and of the remainders `ρₖ = vₖ − cₖ·uₖ` of
the nonlinear steps behind it (`_region`). With `Aₖ` the linear map from a remainder to
the value,

    ‖v(x) − v(y)‖ ≤ (‖A₀‖ + Σₖ ‖Aₖ‖ · rₖ) · ‖x − y‖

where `rₖ` bounds how far the remainder moves: for a scalar function of u with slopes in
`[a, b]` it is `(b − a)/2` times the bound of u, for other steps the bound of v itself.
Bounds of u are found in the same way. All norms are Euclidean over one example.

Source: P. Combettes, J.-C. Pesquet, "Lipschitz Certificates for Layered Network
Structures Driven by Averaged Activation Operators" (1903.01014); here for
any graph.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from manifold_optax.modular._bounds._mixed_norm import (
    mixed_norm,
    MixedNorm,
    ratio,
    remarked,
)
from manifold_optax.modular._bounds._number import least, reference, Size, symbol, total
from manifold_optax.modular._bounds._sizes import (
    Move,
    rule_of,
    Sizes,
    times,
    Unreadable,
)
from manifold_optax.modular._certificates._evaluate import EPS
from manifold_optax.modular._certificates._linear_steps import contracts, is_exact
from manifold_optax.modular._certificates._reading import LiveNetwork
from manifold_optax.modular._certificates._region import bend_of, Region, region_of
from manifold_optax.modular._certificates._weights import Weights
from manifold_optax.modular._computation._graph import Operation, Value

MOST_ENTRIES = 2**24
"""Entries of a linear map; a larger one is bounded by the product of its norms."""

_MOST_WORK = 2**32
"""Multiplications for the maps to values inside a network: 0.1 s on two cores."""

_MOST_ROWS = 2**12
"""Entries of a value whose affine part is read. Maps between larger ones have more
than `MOST_ENTRIES`, and reading them takes its time."""


class MapNorm(NamedTuple):
    """The name of a number: the norm of the linear map from a source to a value."""

    target: Value
    source: Value


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """What one source adds to the bound of a value.

    Attributes:
        source: an input or a remainder.
        radius: how far it moves at most.
        product: a bound of the norm of its map, by the product of norms.
        error: by how much of the product the computed map may be off.
        computed: whether its map says more than the product, and is worth its cost.
    """

    source: Value
    radius: Size
    product: Size
    error: float
    computed: bool


class Skeleton:
    """The formulas of the affine parts of one network."""

    def __init__(self, network: LiveNetwork) -> None:
        self.network = network
        self._weights = Weights(network.norms, affine=False)
        self._work = _MOST_WORK
        self._gains: dict[Value, Size] = {}
        self._regions: dict[Value, Region] = {}

    @functools.cached_property
    def terms(self) -> tuple[Term, ...]:
        """What each source adds to the change of the output; none if it is not known.

        The inputs have to be floats, and one example each: the output of a batch may
        depend on all of it.
        """
        network = self.network
        rest = network.graph.inputs[len(network.paths) :]
        (output,) = network.graph.outputs
        single = all(x.is_float and (len(x.shape) < 2 or x.shape[0] == 1) for x in rest)
        operations = network.fused.operations()
        if not single or not self._moves(output) or _too_large(output):
            return ()
        self._gains.update(dict.fromkeys(rest, 1.0))
        corners = _corners(operations)
        for operation in operations:
            for result in operation.results:
                if self._moves(result):
                    self._gains[result] = self._gain(operation, result, corners)
        return self._terms(output, inner=False)

    @functools.cached_property
    def size(self) -> Size:
        """The bound of the change of the output; infinite if it is not known."""
        if not self.terms:
            return math.inf
        return self._sum(self.network.graph.outputs[0], self.terms)

    @functools.cached_property
    def _sizes(self) -> Sizes:
        return self.network.analysis()[0]

    def region(self, target: Value) -> Region:
        """The affine part behind a value."""
        if target not in self._regions:
            fused = self.network.fused
            found = region_of(fused, target, self._moves, self._weights.computable)
            self._regions[target] = found
        return self._regions[target]

    def _moves(self, value: Value) -> bool:
        return value in self._moving

    @functools.cached_property
    def _moving(self) -> frozenset[Value]:
        """Also what patterns put in between."""
        found = set(self.network.depend_on_inputs)
        for operation in self.network.fused.operations():
            if not found.isdisjoint(operation.operands):
                found.update(operation.results)
        return frozenset(found)

    def _gain(self, operation: Operation, value: Value, corners: set[Value]) -> Size:
        """How far a value moves, one step after what it is made of."""
        step = total(
            times(self._factor(operation, k, value), self._gains.get(x, math.inf))
            for k, x in enumerate(operation.operands)
            if self._moves(x)
        )
        if value not in corners or _too_large(value) or reference(step) == math.inf:
            return step
        terms = self._terms(value, inner=True)
        if not any(term.computed for term in terms):
            return step
        return least([step, self._sum(value, terms)])

    def _factor(self, operation: Operation, position: int, result: Value) -> Size:
        """What a change of one operand, of norm 1, does to a result at most."""
        operand = operation.operands[position]
        if not result.is_float or not operand.is_float:
            return math.inf
        norm, ways = euclidean(operand.shape), []
        place = operation.results.index(result)
        try:
            rule = rule_of(operation)
            given = norm if rule.operators else remarked(norm, "i", "o")
            for moves in rule.moves(operation, position, given, self._sizes):
                ways.append(_to_result(moves, place, euclidean(result.shape)))
        except Unreadable:
            return math.inf
        return least(ways) if ways else math.inf

    def _sum(self, target: Value, terms: tuple[Term, ...]) -> Size:
        return total(times(self._map(target, x), x.radius) for x in terms)

    def _map(self, target: Value, term: Term) -> Size:
        if not term.computed:
            return term.product
        name = MapNorm(target, term.source)
        norm = symbol(name, reference(term.product))
        return least([term.product, norm + times(term.error, term.product)])

    def _terms(self, target: Value, *, inner: bool) -> tuple[Term, ...]:
        region = self.region(target)
        rows = math.prod(target.shape)
        behind = _Behind(region, self._factor, self._moves)
        terms = []
        for source in region.sources:
            product = behind.products.get(source, 0.0)
            columns = math.prod(source.shape)
            computed = behind.contractions.get(source, 0) > 1
            work = _work(rows, columns, behind.work.get(source, 0))
            computed &= rows * columns <= MOST_ENTRIES
            computed &= reference(product) < math.inf
            if computed and inner:
                computed = work <= self._work
                self._work -= work if computed else 0
            error = behind.errors.get(source, 0.0) * math.sqrt(min(rows, columns))
            terms.append(Term(source, self._radius(source), product, error, computed))
        return tuple(terms)

    def _radius(self, source: Value) -> Size:
        """How far an input or a remainder moves."""
        operation = self.network.fused.maker(source)
        if operation is not None and operation.name == "entrywise":
            bend = bend_of(operation)
            if bend is not None:
                (root,) = operation.operands
                return times(bend.rest, self._gains.get(root, math.inf))
        return self._gains.get(source, math.inf)


class _Behind:
    """What is known of the maps from all values of a region to its target.

    Attributes:
        products: bounds of their norms, each step by itself.
        contractions: steps on the way that sum products, and places where ways meet.
        errors: of the computed maps, relative to the product and to √rank.
        work: multiplications for one row or column.
    """

    def __init__(
        self,
        region: Region,
        factor: Callable[[Operation, int, Value], Size],
        moves: Callable[[Value], bool],
    ) -> None:
        self.products: dict[Value, Size] = {region.target: 1.0}
        self.contractions: dict[Value, int] = {region.target: 0}
        self.errors: dict[Value, float] = {region.target: 0.0}
        self.work: dict[Value, int] = {region.target: 0}
        for operation, slope in reversed(region.steps):
            for result in operation.results:
                if result in self.products:
                    for k, operand in enumerate(operation.operands):
                        if moves(operand):
                            one = factor(operation, k, result)
                            one = one if slope is None else abs(slope)
                            self._pass(operation, operand, result, one)

    def _pass(
        self, operation: Operation, operand: Value, result: Value, factor: Size
    ) -> None:
        product = times(factor, self.products[result])
        again = operand in self.products
        self.products[operand] = self.products.get(operand, 0.0) + product
        count = self.contractions[result] + contracts(operation) + again
        before = self.contractions.get(operand, 0)
        self.contractions[operand] = max(count, before + again)
        error = self.errors[result] + _error(operation, operand, result)
        self.errors[operand] = max(error, self.errors.get(operand, 0.0))
        work = self.work[result] + _multiplications(operation, result)
        self.work[operand] = max(work, self.work.get(operand, 0))


def _too_large(value: Value) -> bool:
    return not value.is_float or math.prod(value.shape) > _MOST_ROWS


def euclidean(shape: tuple[int, ...]) -> MixedNorm:
    """The Euclidean norm over all axes."""
    return mixed_norm(shape, "o" * len(shape))


def _to_result(moves: Iterable[Move], place: int, norm: MixedNorm) -> Size:
    """What the moves of one operand do to one result."""
    return total(
        ratio(norm, move.norm) * move.factor for move in moves if move.result == place
    )


def _corners(operations: list[Operation]) -> set[Value]:
    """Values that enter nonlinear steps."""
    names = ("entrywise", "reduce_window_max", "softmax", "normalize", "reduce_max")
    return {x for step in operations if step.name in names for x in step.operands}


def _error(operation: Operation, operand: Value, result: Value) -> float:
    """The rounding of one step, relative to the product of norms, per root of rows.

    A matrix of r rows that meets one of rank n in sums of t products errs by at most
    (2√t + 8)·eps·√r·√n times the product of the norms; see `_live_norms._allowance`
    for the first factor. The others are of Frobenius norms by spectral ones.
    """
    if is_exact(operation):
        return 2 * EPS  # Where uses meet, they are added.
    if not contracts(operation):
        return 10 * EPS
    sizes = math.prod(operand.shape), math.prod(result.shape)
    terms = max(sizes)
    if len(operation.operands) > 1:
        weight = next(x for x in operation.operands if x is not operand)
        terms = min(terms, math.prod(weight.shape))
    return (2 * math.sqrt(terms) + 8) * EPS * math.sqrt(min(sizes))


def _multiplications(operation: Operation, result: Value) -> int:
    """How many multiplications one product with one column takes."""
    if operation.name not in ("dot_general", "conv_general_dilated"):
        return 0
    size = min(math.prod(x.shape) for x in operation.operands)
    return size * max(1, math.prod(result.shape) // max(1, result.shape[-1]))


def _work(rows: int, columns: int, product: int) -> int:
    """Multiplications for a map of that shape, and for a bound of its norm."""
    short = min(rows, columns)
    return short * (product + rows * columns + 4 * short * short)
