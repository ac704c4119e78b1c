"""The graph as an expression of the algebra, for people to check.

Where all paths from the input to a value pass one earlier value, the network is a
composition of what comes before that value and what comes after. What lies between two
such values and has several operands is a sum, or a bond of a tuple.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence

from manifold_optax.modular._algebra._expression import (
    Bond,
    compose,
    Identity,
    Module,
    Sum,
)
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._algebra._repeat import Repeat
from manifold_optax.modular._bounds._gains import Gains
from manifold_optax.modular._bounds._mixed_norm import MixedNorm, natural_norm, ratio
from manifold_optax.modular._bounds._number import reference, total
from manifold_optax.modular._bounds._sensitivities import Analysis
from manifold_optax.modular._bounds._sizes import Move, rule_of, Sizes, Unreadable
from manifold_optax.modular._computation._graph import Graph, Operation, Value
from manifold_optax.modular._primitives import loop_of, multiple
from manifold_optax.roles import VECTOR

_MOVED = frozenset({
    "reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim",
    "convert_element_type", "copy", "slice", "split", "stop_gradient", "rev",
    "sharding_constraint", "name", "pad", "select_n", "optimization_barrier",
    "reduce_precision",
})  # fmt: skip
"""Operations that only move entries: left out where their constant is 1."""


_MOST_STEPS = 5_000
"""A step that several others use is written once for each: in a dense network there are
2^depth of them. A transformer of 48 blocks has about 1,000."""


def tree_of(analysis: Analysis, atoms: Sequence[Atom]) -> Module:
    """The network of an analysis; atoms that are vectors are left out.

    Raises:
        ValueError: for a step without a rule.
    """
    (output,) = analysis.graph.outputs
    paths = {leaf: path for path, leaf in analysis.leaves.items()}
    known = {atom.path: atom for atom in atoms}
    return _Tree(
        analysis.graph, analysis.sizes, analysis.gains, paths, known, set()
    ).between(None, output)


@dataclasses.dataclass
class _Tree:
    """One graph on its way to an expression."""

    graph: Graph
    sizes: Sizes
    gains: Gains
    paths: dict[Value, str]
    atoms: dict[str, Atom]
    named: set[str]
    """Paths that stand in the tree already."""
    steps: int = 0
    """How many steps are written so far."""

    def between(self, start: Value | None, end: Value) -> Module:
        """The map from one value to another that all its paths pass."""
        if end is start:
            return Identity()
        steps = [end]
        while steps[-1] is not start:
            # An output of parameters or constants alone has nothing above it.
            above = self._above.get(steps[-1])
            if above is None or above is start:
                break
            steps.append(above)
        modules: list[Module] = []
        for below in reversed(steps):
            modules += self._step(self._above.get(below), below)
        return compose(*modules) if modules else Identity()

    def _step(self, above: Value | None, value: Value) -> list[Module]:
        """What makes one value from the one above it."""
        operation = self.graph.maker(value)
        if operation is None or value is above:
            return []
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise Unreadable(
                "Its paths branch too often to be written as a tree; budgets and "
                "explain(path) know its sensitivities all the same."
            )
        acting = self._acting(operation)
        if all(operation.operands[k] is above for k in acting):
            return self._unary(operation, acting, value)
        parts = [self.between(above, operation.operands[k]) for k in acting]
        constants = [self._constant(operation, k, value) for k in acting]
        if len(parts) == 1:
            return [parts[0], *self._unary(operation, acting, value)]
        if operation.name in ("add", "sub", "add_any"):
            terms = zip(parts, constants, strict=True)
            return [Sum(tuple(c * part if c != 1 else part for part, c in terms))]
        return [compose(tuple(parts), Bond(_name(operation), tuple(constants)))]

    def _unary(
        self, operation: Operation, acting: Sequence[int], value: Value
    ) -> list[Module]:
        """An atom, or a bond, or nothing for what only moves entries."""
        if operation.name == "scan":
            return self._loop(operation, acting, value)
        constants = [self._constant(operation, k, value) for k in acting]
        constant = sum(constants) if acting else 1.0
        paths = self._leaves(operation)
        atoms = [self.atoms[path] for path in paths]
        fresh = [a for a in atoms if a.role != VECTOR and a.path not in self.named]
        if len(fresh) == 1 and len(atoms) == 1:
            self.named.add(fresh[0].path)
            return [dataclasses.replace(fresh[0], sensitivity=constant)]
        quiet = operation.name in _MOVED or all(a.role == VECTOR for a in atoms)
        if quiet and abs(constant - 1) < 1e-12 and (atoms or operation.name in _MOVED):
            return []
        name = _name(operation)
        if atoms:
            name = f"{name} ({', '.join(paths)})"
        return [Bond(name, (constant,))]

    def _loop(
        self, operation: Operation, acting: Sequence[int], value: Value
    ) -> list[Module]:
        """A stack of layers as a repeat; every other loop as one bond."""
        loop = loop_of(operation, self.sizes)
        constants = tuple(self._constant(operation, k, value) for k in acting)
        name = f"scan of {loop.length} steps"
        stacked = range(loop.carried.stop, len(operation.operands))
        first, outputs = loop.carried.start, loop.body.outputs
        if list(acting) != [first] or len(outputs) != 1:
            held = self._leaves(operation)
            name = f"{name} ({', '.join(held)})" if held else name
            return [Bond(name, constants or (1.0,))]
        leaves = {
            loop.body.inputs[k]: self._leaf(operation.operands[k]) for k in stacked
        }
        paths = {
            inner: self.paths[leaf]
            for inner, leaf in leaves.items()
            if leaf is not None
        }
        inside = _Tree(loop.body, loop.sizes, loop.to[0], paths, self.atoms, self.named)
        body = inside.between(loop.body.inputs[first], *outputs)
        return [Repeat(body, loop.length)]

    def _leaf(self, value: Value) -> Value | None:
        """The leaf that a value is, perhaps cast or moved."""
        while value not in self.paths:
            operation = self.graph.maker(value)
            if operation is None or not operation.operands:
                return None
            value = next(iter(operation.operands))
        return value

    def _leaves(self, operation: Operation) -> list[str]:
        """The parameters that enter an operation beside the activations."""
        found: dict[str, None] = {}
        stack = [x for x in operation.operands if not self._acts(x)]
        while stack:
            value = stack.pop()
            if value in self.paths:
                found[self.paths[value]] = None
                continue
            maker = self.graph.maker(value)
            if maker is not None and self.sizes.flags(value).params:
                stack.extend(maker.operands)
        return list(found)

    def _acts(self, value: Value) -> bool:
        """Whether a value is an activation: it moves, and is no weight."""
        return value.is_float and self.sizes.is_moving(value) and value in self._above

    def _acting(self, operation: Operation) -> list[int]:
        return [k for k, x in enumerate(operation.operands) if self._acts(x)]

    @functools.cached_property
    def _above(self) -> dict[Value, Value | None]:
        """For each activation the last value that all paths to it pass."""
        above: dict[Value, Value | None] = {}
        depth: dict[Value | None, int] = {None: 0}

        def common(a: Value | None, b: Value | None) -> Value | None:
            while a is not b:
                if depth[a] >= depth[b]:
                    a = above[a] if a is not None else None
                else:
                    b = above[b] if b is not None else None
            return a

        for value in self.graph.inputs:
            if value.is_float and self.sizes.flags(value).inputs:
                above[value], depth[value] = None, 1
        for operation in self.graph.operations():
            acting = [x for x in operation.operands if x in above]
            if not acting and not self.sizes.flags(operation.results[0]).inputs:
                continue
            shared = functools.reduce(common, acting) if acting else None
            for result in operation.results:
                if result.is_float and self.sizes.is_moving(result):
                    above[result], depth[result] = shared, depth[shared] + 1
        return above

    @functools.cached_property
    def _norms(self) -> dict[Value, MixedNorm]:
        """For each activation the norm in which changes of it are measured here."""
        norms: dict[Value, MixedNorm] = {}
        for operation in self.graph.operations():
            for k, operand in enumerate(operation.operands):
                if not self._acts(operand):
                    continue
                norm = norms.setdefault(operand, natural_norm(operand.shape))
                moves: list[Move] = []
                with contextlib.suppress(Unreadable):
                    moves = self.gains.best(operation, k, norm)
                for move in moves:
                    norms.setdefault(operation.results[move.result], move.norm)
        return norms

    def _constant(self, operation: Operation, position: int, value: Value) -> float:
        """How much larger a change becomes in one step, in units of RMS.

        Infinite where a rule knows no bound, as for a variance that is an input.
        """
        wanted = self._norms.get(value, natural_norm(value.shape))
        operand = operation.operands[position]
        norm = self._norms[operand]
        best, ways = math.inf, []
        with contextlib.suppress(Unreadable):
            ways = rule_of(operation).moves(operation, position, norm, self.sizes)
        for moves in ways:
            mine = [m for m in moves if operation.results[m.result] is value]
            passed = total(ratio(wanted, move.norm) * move.factor for move in mine)
            best = min(best, reference(passed))
        return best * math.sqrt(norm.count("oi") / max(1, wanted.count("oi")))


def _name(operation: Operation) -> str:
    """A name that a person knows: of the function that was called, or of the step."""
    if operation.name == "entrywise":
        factor = multiple(operation)
        if factor is not None:
            return f"× {factor:.4g}"
        plain = [call for call in operation.calls if not call.startswith("_")]
        return plain[0] if plain else "scalar function"
    names = {
        "normalize": "norm layer", "dot_general": "product", "mul": "product",
        "declared": "declared", "linear": "linear map",
    }  # fmt: skip
    return names.get(operation.name, operation.name)
