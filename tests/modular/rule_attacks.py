"""Attacks on the rules: their bounds, against what small functions are measured at."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
# And of what is 0.
TINY = 1e-12

# How often a search for large values starts, and how many steps it takes: from corners
# of the sets of operands one or two steps reach most of the maximum.
TRIALS, ROUNDS = 3, 3


# Each case is compiled once and run a dozen times on a few numbers.
_QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


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
    """One case, attacked."""

    def __init__(self, the: Case, *, pairs: int, points: int) -> None:
        self.case = the
        self.graph, self.sizes = read(the)
        self.out = self.graph.outputs[0]
        self.rng = np.random.default_rng(sum(map(ord, the.name)))
        self.pairs, self.points = pairs, points
        self.moving = [k for k, x in enumerate(the.operands) if x.moves]
        self.found: list[Any] = []
        self.jacobians: list[list[Floats]] = []
        self.closest = {"size": 0.0, "gain": 0.0}  # Found over bound, the largest.
        self._gains: dict[MixedNorm, Gains] = {}

    def whole(self, moving: Sequence[Any]) -> list[Any]:
        """All operands, from those that move."""
        found = [x.fixed for x in self.case.operands]
        for k, x in zip(self.moving, moving, strict=True):
            found[k] = x
        return found

    def evaluated(self, moving: Sequence[Any]) -> Any:
        """The result, and its Jacobian by each operand that moves."""

        def function(*moving: Any) -> Any:
            return self.case.function(*self.whole(moving))

        jacobian = jax.jacfwd if self.case.ahead else jax.jacrev
        argnums = tuple(range(len(moving)))
        return function(*moving), jacobian(function, argnums)(*moving)

    def start(self, *, corner: bool) -> list[Floats]:
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

    def search(self) -> Generator[list[Floats], Any, None]:
        """Asks for values of the case, and notes norms that exceed their bounds."""
        norms = norms_of(self.out.shape, self.case.wanted)
        further = len(norms) - len(self.case.wanted)
        order = [
            *self.rng.permutation(further),
            *range(len(norms) - 1, further - 1, -1),
        ]
        for trial in range(TRIALS):
            norm = norms[order[-1 - trial % len(order)]]
            bound = self.sizes.bound(self.out, norm)
            xs = self.start(corner=trial % 2 == 0)
            if trial == 1:  # Near 0, where norm layers and softmax are steepest.
                xs = [1e-3 * x for x in xs]
            for round_ in range(ROUNDS):
                value, jacobians = yield xs
                if trial < self.points and round_ == 0:
                    self.jacobians.append(jacobians)
                size = measured(norm, value)
                self._close("size", size, bound)
                if not size <= bound * ROUNDING + TINY:
                    self.found.append(("size", str(norm), size, bound))
                xs = self._further(normal(norm, value).reshape(-1), jacobians)
        self._attack_gains()

    def _further(self, up: Floats, jacobians: list[Floats]) -> list[Floats]:
        """The operands of largest size along the gradient."""
        found = []
        for k, jacobian in zip(self.moving, jacobians, strict=True):
            x = self.case.operands[k]
            gradient = (up @ jacobian).reshape(x.shape)
            found.append(x.size * steepest(x.norm, gradient))
        return found

    def _attack_gains(self) -> None:
        """Notes pairs of norms whose gain is exceeded."""
        for which, k in enumerate(self.moving):
            operand = self.case.operands[k]
            norms = norms_of(operand.shape, self.case.given if k == 0 else ())
            given = list(dict.fromkeys([operand.norm, *norms]))
            wanted = norms_of(self.out.shape, self.case.wanted)
            for inner, outer in self._pairs(given, wanted):
                bound = self.gain(self.graph.inputs[k], inner, outer)
                for jacobians in self.jacobians:
                    found = self.steepest_found(jacobians[which], inner, outer)
                    self._close("gain", found, bound)
                    if not found <= bound * ROUNDING + TINY:
                        pair = str(inner), str(outer)
                        self.found.append((f"gain of {k}", *pair, found, bound))

    def _close(self, what: str, found: float, bound: float) -> None:
        if bound > 0:
            self.closest[what] = max(self.closest[what], found / bound)

    def gain(self, value: Value, inner: MixedNorm, outer: MixedNorm) -> float:
        """The bound."""
        if outer not in self._gains:
            wanted = {self.out: [Fact(outer, 1.0)]}
            self._gains[outer] = Gains(self.graph, self.sizes, wanted)
        return self._gains[outer].gain(value, inner)

    def steepest_found(
        self, jacobian: Floats, inner: MixedNorm, outer: MixedNorm
    ) -> float:
        """What a change of norm 1 does at most, as far as a few steps find."""
        shape = self.out.shape
        starts = starts_of(inner.shape, self.rng)
        chosen = self.rng.choice(len(starts), 2, replace=False)
        return largest_ratio(
            outer, inner, [starts[k] for k in chosen], rounds=2,
            apply=lambda x: (jacobian @ x.reshape(-1)).reshape(shape),
            transposed=lambda y: (y.reshape(-1) @ jacobian).reshape(inner.shape),
        )  # fmt: skip

    def _pairs(
        self, given: list[MixedNorm], wanted: list[MixedNorm]
    ) -> list[tuple[MixedNorm, MixedNorm]]:
        natural = natural_norm(self.out.shape)
        first = [(given[0], natural), (natural_norm(given[0].shape), natural)]
        pairs = list(itertools.product(given, wanted))
        order = self.rng.permutation(len(pairs))[: self.pairs]
        return [*first, *(pairs[k] for k in order)]


@functools.cache
def attacked(
    cases: tuple[Case, ...], *, pairs: int = 3, points: int = 2
) -> dict[Case, Attack]:
    """All cases, attacked together: one compilation is several times cheaper.

    Args:
        cases: what to attack.
        pairs: how many pairs of norms for each operand.
        points: at how many points the gains are measured.

    Returns:
        The attacks. What exceeds its bound is in `found`: nothing, for sound rules.
    """
    attacks = [Attack(the, pairs=pairs, points=points) for the in cases]
    run = jax.jit(
        lambda points: [
            attack.evaluated(point)
            for attack, point in zip(attacks, points, strict=True)
        ],
        compiler_options=_QUICKLY,
    )
    searches = [attack.search() for attack in attacks]
    asked = [next(search) for search in searches]
    while asked:
        results = jax.device_get(run(asked))
        answers = [
            (value, [j.reshape(value.size, -1) for j in jacobians])
            for value, jacobians in results
        ]
        asked = list(map(_send, searches, answers))
        asked = [] if None in asked else asked
    return dict(zip(cases, attacks, strict=True))


def _send(search: Generator[Any, Any, None], answer: Any) -> Any:
    """What a search asks for next; `None` at its end."""
    try:
        return search.send(answer)
    except StopIteration:
        return None
