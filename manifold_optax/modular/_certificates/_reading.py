"""The sizes and gains of a network with live weights, as formulas of their norms."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._bounds._ball import unit_ball
from manifold_optax.modular._bounds._convolution_norm import ConvolutionNorm
from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import (
    mixed_norm,
    MixedNorm,
    natural_norm,
)
from manifold_optax.modular._bounds._number import Number, symbol
from manifold_optax.modular._bounds._sizes import (
    Assumptions,
    Fact,
    Known,
    no_facts,
    Sizes,
)
from manifold_optax.modular._budgets._rules import geometry_of
from manifold_optax.modular._certificates._weights import Weights
from manifold_optax.modular._computation._fuse import fuse
from manifold_optax.modular._computation._graph import Graph, Value
from manifold_optax.modular._computation._unroll import unrolled
from manifold_optax.modular._uses._roles import roles_of_use
from manifold_optax.modular._uses._use import uses


class WeightNorm(NamedTuple):
    """The name of a number: a norm of a value that is made of parameters."""

    value: Value
    norm: MixedNorm | ConvolutionNorm


class StepNorm(NamedTuple):
    """The name of a number: a norm of the step of a parameter, or of one slice."""

    value: Value
    norm: MixedNorm
    slice: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class LiveNetwork:
    """A network whose weights are known when a bound is asked for, and no sooner.

    Attributes:
        traced: the graph as it was traced, with one output.
        paths: of the parameters, its first inputs.
        inputs: what is known of its other inputs.
        floor: least RMS of what enters a norm layer.
    """

    traced: Graph
    paths: tuple[str, ...]
    inputs: tuple[Known, ...]
    floor: float

    @functools.cached_property
    def graph(self) -> Graph:
        """The same with loops written out."""
        return unrolled(self.traced)

    @functools.cached_property
    def fused(self) -> Graph:
        """The same in larger steps."""
        return fuse(self.graph)

    @property
    def leaves(self) -> tuple[Value, ...]:
        """The parameters."""
        return self.traced.inputs[: len(self.paths)]

    @functools.cached_property
    def depend_on_inputs(self) -> frozenset[Value]:
        """The values that are not made of parameters and constants alone."""
        found = set(self.graph.inputs[len(self.paths) :])
        for operation in self.graph.operations():
            if not found.isdisjoint(operation.operands):
                found.update(operation.results)
        return frozenset(found)

    @functools.cached_property
    def needed(self) -> frozenset[Value]:
        """The parameters that the output depends on."""
        used = set(self.traced.outputs)
        for operation in self.traced.operations():
            used.update(operation.operands)
        return frozenset(used.intersection(self.leaves))

    @functools.cached_property
    def norms(self) -> Mapping[Value, tuple[MixedNorm, ...]]:
        """In which norms each parameter is measured as what it is used as.

        As a matrix from its inputs to its outputs, head by head where it has heads; as
        rows of a table; as a vector.
        """
        found = uses(self.traced, self.paths)
        pairs = zip(self.paths, self.leaves, strict=True)
        return {leaf: _norms(path, leaf, found.get(path, ())) for path, leaf in pairs}

    def analysis(
        self, output: Value | None = None, *, affine: bool = False
    ) -> tuple[Sizes, Gains]:
        """Sizes of all values, and gains to the output or to a value on its way.

        Args:
            output: the value; `None`: the output of the network.
            affine: whether only such values are measured that are affine in the
                parameters, so that norms are convex along every step.
        """
        target = self.fused.outputs[0] if output is None else output
        graph = Graph(self.fused.inputs, (target,), self.fused.patterns)
        weights = Weights(self.norms, affine=affine)
        known = {
            leaf: Known(no_facts, params=True, moves=leaf.is_float, norms=norms)
            for leaf, norms in self.norms.items()
        }
        rest = self.graph.inputs[len(self.paths) :]
        known.update(zip(rest, self.inputs, strict=True))

        def measured(value: Value, norm: MixedNorm | ConvolutionNorm) -> Number | None:
            if not weights.measures(value):
                return None
            return symbol(WeightNorm(value, norm), assumed_size(value.shape, norm))

        sizes = Sizes(graph, known, Assumptions(floor=self.floor), measured)
        wanted = {target: [Fact(natural_norm(target.shape), 1.0)]}
        return sizes, Gains(graph, sizes, wanted)


def _norms(path: str, leaf: Value, found: Sequence) -> tuple[MixedNorm, ...]:
    """Those of its roles, of its vectors, and the Frobenius norm."""
    shape = leaf.shape
    norms = []
    if leaf.is_float:
        for role in roles_of_use(tuple(found), shape, alone=False):
            pair = geometry_of(path or "params", role.label, role.axes, shape, {})
            atom = Atom(path or "params", role.label, role.axes, *pair)
            norms += [fact.norm for fact in unit_ball(atom, shape)]
    norms += [natural_norm(shape), mixed_norm(shape, "o" * len(shape))]
    return tuple(dict.fromkeys(norms))


_PREFERRED = 1 - 1e-6


def assumed_size(shape: Sequence[int], norm: MixedNorm | ConvolutionNorm) -> float:
    """What a norm of a weight is taken for, to choose among bounds.

    That of independent entries of variance 1 / fan_in, as most weights start; of
    vectors, of entries 1. It decides which bound is computed, not whether it holds.
    """
    if isinstance(norm, ConvolutionNorm):
        return math.sqrt(norm.overlap) * assumed_size(shape, norm.unfolded)
    fan_in = math.prod(shape[:-1]) if len(shape) > 1 else 1
    entry = 1 / math.sqrt(max(1, fan_in))
    size = math.sqrt(norm.count("o"))
    if norm.has("i"):
        rows, columns = math.sqrt(norm.count("i")), size
        # Never above the Frobenius norm, and preferred to it.
        size = min(rows + columns, _PREFERRED * rows * columns)
    return entry * size * norm.count("s")
