"""Attacks on the rules: sizes and gains of small functions, against what is measured."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manifold_optax.modular._primitives  # noqa: F401
from manifold_optax.modular._fuse import fuse
from manifold_optax.modular._gains import Gains
from manifold_optax.modular._graph import Graph, made_by, Value
from manifold_optax.modular._mixed_norm import MixedNorm, natural_norm
from manifold_optax.modular._sizes import (
    Assumptions,
    Fact,
    Known,
    known_facts,
    no_facts,
    Sizes,
)
from manifold_optax.modular._trace import trace
from modular.measured_norms import (
    Floats,
    largest_ratio,
    measured,
    norm_of,
    normal,
    starts_of,
    steepest,
)

# Rounding of float64 through a few operations; the scalar analysis rounds up by 1e-12.
ROUNDING = 1 + 1e-7


@dataclasses.dataclass(frozen=True)
class Given:
    """An operand of a case: any array whose norm is at most the size.

    Attributes:
        shape: its shape.
        marks: the norm; see `norm_of`. The default is the natural norm.
        size: the bound of that norm.
        weight: whether it counts as a parameter, rather than an input.
        fixed: integers that it consists of, which nothing moves.
    """

    shape: tuple[int, ...]
    marks: str = ""
    size: float = 1.0
    weight: bool = False
    fixed: Any = None

    @property
    def norm(self) -> MixedNorm:
        return norm_of(self.shape, self.marks) if self.marks else _natural(self.shape)

    @property
    def moves(self) -> bool:
        return self.fixed is None


def weight(*shape: int, marks: str = "", size: float = 1.0) -> Given:
    """A parameter."""
    return Given(shape, marks, size, weight=True)


def data(*shape: int, marks: str = "", size: float = 1.0) -> Given:
    """An input that moves."""
    return Given(shape, marks, size)


def fixed(values: Any) -> Given:
    """An input of integers or flags."""
    array = np.asarray(values)
    return Given(array.shape, fixed=array)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A small function whose sizes and gains are attacked.

    Attributes:
        name: of the case.
        function: of arrays, to one array.
        operands: what it is applied to.
        wanted: further norms of the result, as texts.
        given: further norms of the first operand, as texts.
        floor: the least RMS of what enters a norm layer.
        ahead: whether to differentiate forwards: through loops without a fixed end.
        operation: name and parameters of the one operation that the function is, for
            rules that no plain function needs.
    """

    name: str
    function: Callable[..., Any]
    operands: tuple[Given, ...]
    wanted: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    floor: float = 0.0
    ahead: bool = False
    operation: tuple[str, dict[str, Any]] | None = None

    def __str__(self) -> str:
        return self.name


def case(
    name: str, function: Callable[..., Any], *operands: Given, **more: Any
) -> Case:
    return Case(name, function, operands, **more)


def _natural(shape: Sequence[int]) -> MixedNorm:
    return natural_norm(shape)


@functools.cache
def read(the: Case) -> tuple[Graph, Sizes]:
    """The graph of a case, and its sizes."""
    arguments = [
        jax.ShapeDtypeStruct(x.shape, jnp.result_type(float))
        if x.moves
        else jax.ShapeDtypeStruct(x.shape, x.fixed.dtype)
        for x in the.operands
    ]
    if the.operation is None:
        graph, _, _ = trace(lambda _, *xs: the.function(*xs), {}, *arguments)
        fused = fuse(graph)
    else:
        fused = _of_one_operation(the, arguments)
    known = {
        value: Known(
            known_facts(Fact(x.norm, x.size)) if x.moves else no_facts,
            params=x.weight,
            inputs=not x.weight,
            moves=x.moves,
            norms=(x.norm,) if x.weight else (),
        )
        for value, x in zip(fused.inputs, the.operands, strict=True)
    }
    return fused, Sizes(fused, known, Assumptions(floor=the.floor))


def _of_one_operation(the: Case, arguments: Sequence[Any]) -> Graph:
    assert the.operation is not None
    name, params = the.operation
    values = tuple(Value(x.shape, x.dtype) for x in arguments)
    shape = jax.eval_shape(the.function, *arguments)
    return Graph(values, made_by(name, values, params, [(shape.shape, shape.dtype)]))


def names_in(graph: Graph) -> set[str]:
    """The names of all operations of a graph and of its loops."""
    names = set()
    for operation in graph.operations():
        names.add(operation.name)
        for body in operation.bodies:
            names |= names_in(body)
    return names


def norms_of(shape: Sequence[int], further: Sequence[str] = ()) -> list[MixedNorm]:
    """Norms of arrays of a shape: plain ones, operators, sums, and blocks."""
    rank = len(shape)
    texts = ["".join(marks) for marks in itertools.product("bo", repeat=rank)]
    if rank > 1:
        for first, last in itertools.permutations(range(rank), 2):
            marks = ["b"] * rank
            marks[first], marks[last] = "i", "o"
            texts.append("".join(marks))
        texts.append("o" * (rank - 2) + "io")
        texts.append("i" * (rank - 1) + "o")
    for axis in range(rank):
        texts.append("b" * axis + "s" + "b" * (rank - axis - 1))
    found = [norm_of(shape, " ".join(text)) for text in texts]
    for axis, size in enumerate(shape):
        for factor in range(2, size):
            if size % factor == 0:
                for pair in ("bo", "ob"):
                    for other in "bo":
                        marks = [other] * rank
                        marks[axis] = f"{factor}{pair[0]}{size // factor}{pair[1]}"
                        found.append(norm_of(shape, " ".join(marks)))
    found += [norm_of(shape, text) for text in further]
    return list(dict.fromkeys(found))


class Attack:
    """One case, evaluated and attacked."""

    def __init__(self, the: Case, *, pairs: int = 24, points: int = 2) -> None:
        self.case = the
        self.graph, self.sizes = read(the)
        self.out = self.graph.outputs[0]
        self.rng = np.random.default_rng(sum(map(ord, the.name)))
        self.pairs, self.points = pairs, points
        self.moving = [k for k, x in enumerate(the.operands) if x.moves]
        self._run = jax.jit(self._both)

    def _both(self, *xs: Any) -> Any:
        def function(*moving: Any) -> Any:
            whole = list(xs)
            for k, x in zip(self.moving, moving, strict=True):
                whole[k] = x
            return self.case.function(*whole)

        moving = [xs[k] for k in self.moving]
        argnums = tuple(range(len(moving)))
        jacobian = jax.jacfwd if self.case.ahead else jax.jacrev
        return function(*moving), jacobian(function, argnums)(*moving)

    def values(self, xs: Sequence[Any]) -> tuple[Floats, list[Floats]]:
        """The result, and its Jacobian by each operand that moves, as a matrix."""
        whole = [x.fixed for x in self.case.operands]
        for k, x in zip(self.moving, xs, strict=True):
            whole[k] = x
        value, jacobians = self._run(*whole)
        size = math.prod(self.out.shape)
        return np.asarray(value), [np.asarray(j).reshape(size, -1) for j in jacobians]

    def start(self, corner: bool) -> list[Floats]:
        """Operands of the largest size that is allowed, at random."""
        found = []
        for k in self.moving:
            x = self.case.operands[k]
            array = self.rng.standard_normal(x.shape)
            if self.rng.random() < 0.3:
                array = np.abs(array)
            array = steepest(x.norm, array) if corner else array
            found.append(array * (x.size / max(measured(x.norm, array), 1e-300)))
        return found

    def too_small_sizes(self) -> Iterator[tuple[str, float, float]]:
        """The norms of the result whose bound a result exceeds: norm, found, bound."""
        for norm in self._some(norms_of(self.out.shape, self.case.wanted)):
            bound = self.sizes.bound(self.out, norm)
            best = 0.0
            for corner in (True, False):
                xs = self.start(corner)
                for _ in range(3):
                    value, jacobians = self.values(xs)
                    best = max(best, measured(norm, value))
                    up = normal(norm, value).reshape(-1)
                    xs = [
                        self.case.operands[k].size
                        * steepest(
                            self.case.operands[k].norm, (up @ j).reshape(x.shape)
                        )
                        for k, x, j in zip(self.moving, xs, jacobians, strict=True)
                    ]
            if best > bound * ROUNDING + 1e-12:
                yield str(norm), best, bound

    def too_small_gains(self) -> Iterator[tuple[int, str, str, float, float]]:
        """Pairs of norms whose gain is exceeded: operand, norms, found, bound."""
        points = [self.values(self.start(k % 2 == 0))[1] for k in range(self.points)]
        for which, k in enumerate(self.moving):
            value, shape = self.graph.inputs[k], self.case.operands[k].shape
            further = (self.case.operands[k].norm,)
            norms = norms_of(shape, self.case.given if k == 0 else ())
            given = list(dict.fromkeys([*further, *norms]))
            wanted = norms_of(self.out.shape, self.case.wanted)
            for inner, outer in self._pairs(given, wanted):
                bound = self.gain(value, inner, outer)
                for jacobians in points:
                    found = self._found(jacobians[which], inner, outer)
                    if found > bound * ROUNDING + 1e-12:
                        yield k, str(inner), str(outer), found, bound

    def gain(self, value: Value, inner: MixedNorm, outer: MixedNorm) -> float:
        """The bound."""
        if outer not in self._gains:
            wanted = {self.out: [Fact(outer, 1.0)]}
            self._gains[outer] = Gains(self.graph, self.sizes, wanted)
        return self._gains[outer].gain(value, inner)

    @functools.cached_property
    def _gains(self) -> dict[MixedNorm, Gains]:
        return {}

    def _found(self, jacobian: Floats, inner: MixedNorm, outer: MixedNorm) -> float:
        """What a change of norm 1 does at most, as far as a few steps find."""
        shape = self.out.shape
        starts = starts_of(inner.shape, self.rng)
        chosen = self.rng.choice(len(starts), 2, replace=False)
        return largest_ratio(
            outer, inner, [starts[k] for k in chosen], rounds=3,
            apply=lambda x: (jacobian @ x.reshape(-1)).reshape(shape),
            transposed=lambda y: (y.reshape(-1) @ jacobian).reshape(inner.shape),
        )  # fmt: skip

    def _some(self, norms: list[MixedNorm]) -> list[MixedNorm]:
        """Some of the norms, the further ones of the case (at the end) among them."""
        last = norms[len(norms) - len(self.case.wanted) :]
        order = self.rng.permutation(len(norms))[: max(2, self.pairs // 3)]
        return [*(norms[k] for k in order), *last]

    def _pairs(
        self, given: list[MixedNorm], wanted: list[MixedNorm]
    ) -> list[tuple[MixedNorm, MixedNorm]]:
        natural = natural_norm(self.out.shape)
        first = [(given[0], natural), (natural_norm(given[0].shape), natural)]
        pairs = list(itertools.product(given, wanted))
        order = self.rng.permutation(len(pairs))[: self.pairs]
        return [*first, *(pairs[k] for k in order)]


def violations(the: Case, *, pairs: int = 24, points: int = 2) -> list[Any]:
    """All that exceeds its bound: empty for sound rules."""
    attack = Attack(the, pairs=pairs, points=points)
    return [*attack.too_small_sizes(), *attack.too_small_gains()]
