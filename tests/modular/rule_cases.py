"""Small functions with what is known of their operands: the cases of the rules."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manifold_optax.modular._bounds._mixed_norm import MixedNorm, natural_norm
from manifold_optax.modular._bounds._sizes import (
    Assumptions,
    Fact,
    Known,
    known_facts,
    no_facts,
    Sizes,
)
from manifold_optax.modular._computation._fuse import fuse
from manifold_optax.modular._computation._graph import Graph, made_by, Value
from manifold_optax.modular._computation._trace import trace
from modular.measured_norms import norm_of


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
