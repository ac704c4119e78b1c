"""The affine part of a network behind a value: what it is of inputs and remainders.

Every nonlinear step `v = φ(u)` on the way is written `v = c·u + ρ`, with `c` the middle
of the slopes of φ, or 0. With the *remainders* ρ as inputs of their own, the value is
an affine function.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from manifold_optax.modular._certificates._linear_steps import is_linear
from manifold_optax.modular._computation._graph import Graph, Operation, Value
from manifold_optax.modular._scalar import analyse

_ROUNDING = 1 + 1e-6
"""Allowance for half the range of slopes, found to 1e-12 and rounded to float32."""


_LINEAR = 2.0**-23
"""Half a range of slopes, relative to the slope, that is taken for rounding."""


class Bend(NamedTuple):
    """A scalar function as `slope · x` and a rest.

    Attributes:
        slope: the middle of its slopes, a float32.
        rest: the Lipschitz constant of the rest.
    """

    slope: float
    rest: float


def bend_of(operation: Operation) -> Bend | None:
    """The split of a scalar function; `None` if its slopes have no bounds."""
    facts = analyse(operation.params["expression"])
    low, high = facts.slope_lo, facts.slope_hi
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    slope = float(np.float32((low + high) / 2))
    rest = max(high - slope, slope - low, 0.0)
    # A multiple: what is left is below the rounding that is allowed for in every step.
    rest = 0.0 if rest <= _LINEAR * abs(slope) else rest * _ROUNDING
    return Bend(slope, rest)


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """The affine part of a graph behind one value.

    Attributes:
        target: the value.
        sources: the inputs and remainders that it is made of.
        steps: the operations from there, each after what it needs; of a scalar function
            with its slope.
    """

    target: Value
    sources: tuple[Value, ...]
    steps: tuple[tuple[Operation, float | None], ...]

    @functools.cached_property
    def constants(self) -> tuple[Value, ...]:
        """The other values that its steps need: weights, biases, indices."""
        made = {result for step, _ in self.steps for result in step.results}
        made.update(self.sources)
        needed = [x for step, c in self.steps if c is None for x in step.operands]
        return tuple(dict.fromkeys(x for x in needed if x not in made))


def region_of(
    graph: Graph,
    target: Value,
    moves: Callable[[Value], bool],
    known: Callable[[Value], bool],
) -> Region:
    """Walks back from a value to inputs and remainders.

    Args:
        graph: in larger steps.
        target: a value that depends on the inputs.
        moves: whether a value depends on them.
        known: whether the array of any other value can be computed.
    """
    inputs, done = set(graph.inputs), set()
    sources: list[Value] = []
    steps: list[tuple[Operation, float | None]] = []
    kept: set[Operation] = set()
    stack = [(target, False)]
    while stack:
        value, ready = stack.pop()
        if not moves(value) or (value in done and not ready):
            continue
        done.add(value)
        found = None if value in inputs else _step(graph, value, moves, known)
        if found is None or (found[1] is not None and not ready and found[1].rest):
            sources.append(value)
        if found is None:
            continue
        operation, bend = found
        if bend is not None and not bend.slope:
            continue
        if ready:
            if operation not in kept:
                kept.add(operation)
                steps.append((operation, None if bend is None else bend.slope))
            continue
        stack.append((value, True))
        stack.extend((x, False) for x in operation.operands)
    return Region(target, tuple(dict.fromkeys(sources)), tuple(steps))


def _step(
    graph: Graph,
    value: Value,
    moves: Callable[[Value], bool],
    known: Callable[[Value], bool],
) -> tuple[Operation, Bend | None] | None:
    """The affine step that makes a value; `None` if its remainder is all of it."""
    operation = graph.maker(value)
    if operation is None:
        return None
    if operation.name == "entrywise":
        bend = bend_of(operation)
        return None if bend is None else (operation, bend)
    if operation.name == "linear":
        if not _is_affine(value, operation.operands[0], moves, known):
            return None
        operation = value.operation
        assert operation is not None
    return (operation, None) if _follows(operation, moves, known) else None


def _follows(
    operation: Operation,
    moves: Callable[[Value], bool],
    known: Callable[[Value], bool],
) -> bool:
    rest = [x for x in operation.operands if not moves(x)]
    return is_linear(operation, moves) and all(map(known, rest))


def _is_affine(
    value: Value,
    root: Value,
    moves: Callable[[Value], bool],
    known: Callable[[Value], bool],
) -> bool:
    """Whether all operations from the root to a value are affine ones as written."""
    stack, done = [value], {root}
    while stack:
        needed = stack.pop()
        if needed in done or not moves(needed):
            continue
        done.add(needed)
        operation = needed.operation
        if operation is None or not _follows(operation, moves, known):
            return False
        stack.extend(operation.operands)
    return True
