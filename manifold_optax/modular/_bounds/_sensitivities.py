"""How much the output of a network changes with each of its parameters."""

import math
from collections.abc import Sequence

from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._bounds._ball import unit_ball, weights
from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import (
    natural_norm,
)
from manifold_optax.modular._bounds._number import reference
from manifold_optax.modular._bounds._sizes import (
    Assumptions,
    Fact,
    Known,
    known_facts,
    no_facts,
    Sizes,
)
from manifold_optax.modular._computation._graph import Graph, Value
from manifold_optax.modular._primitives import slice_gains


class Analysis:
    """Sizes and gains of one network under one set of assumptions."""

    def __init__(
        self,
        graph: Graph,
        atoms: Sequence[Atom],
        input_sizes: Sequence[float],
        assumptions: Assumptions,
    ) -> None:
        """`graph`: fused; its inputs are the leaves of the atoms, then the inputs."""
        self.graph = graph
        self.leaves = dict(zip((a.path for a in atoms), graph.inputs, strict=False))
        self.balls = {
            atom.path: unit_ball(atom, self.leaves[atom.path].shape) for atom in atoms
        }
        known = {
            self.leaves[atom.path]: Known(
                known_facts(*weights(atom, self.leaves[atom.path].shape)), params=True,
                moves=self.leaves[atom.path].is_float,
                norms=tuple(fact.norm for fact in self.balls[atom.path]),
            )
            for atom in atoms
        }  # fmt: skip
        for value, size in zip(graph.inputs[len(atoms) :], input_sizes, strict=True):
            known[value] = _known_input(value, size)
        self.sizes = Sizes(graph, known, assumptions)
        wanted: dict[Value, list[Fact]] = {}
        for output in graph.outputs:
            norm = natural_norm(output.shape)
            weight = 1.0 / math.sqrt(max(1, norm.count("o")))
            wanted.setdefault(output, []).append(Fact(norm, weight))
        self.gains = Gains(graph, self.sizes, wanted)

    def sensitivity(self, path: str) -> tuple[float, ...]:
        """How much the RMS of the output changes with one parameter, slice by slice.

        Raises:
            Unreadable: for a step on the way that has no rule.
        """
        leaf = self.leaves[path]
        if not leaf.is_float:
            return (0.0,)
        found = [
            tuple(
                reference(fact.size * gain)
                for gain in slice_gains(self.gains, leaf, fact.norm)
            )
            for fact in self.balls[path]
        ]
        return min(found, key=sum)


def _known_input(value: Value, size: float) -> Known:
    """What is known of an input of the model: its RMS over the last axis."""
    if not value.is_float:
        return Known(no_facts, inputs=True)
    norm = natural_norm(value.shape)
    fact = Fact(norm, size * math.sqrt(norm.count("o")))
    return Known(known_facts(fact), inputs=True, moves=True)
