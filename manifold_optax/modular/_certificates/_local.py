"""A network on small balls around single inputs."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from manifold_optax._typing import ArrayTree
from manifold_optax.modular._bounds._sizes import Unreadable
from manifold_optax.modular._certificates._local_affine import (
    centers_of,
    linear,
    Operand,
)
from manifold_optax.modular._certificates._local_linear import apply_linear, is_linear
from manifold_optax.modular._certificates._local_rules import LOCAL_RULES
from manifold_optax.modular._certificates._local_value import (
    Around,
    Ball,
    Description,
    EXACT,
    INPUT,
)
from manifold_optax.modular._computation._constants import array_given
from manifold_optax.modular._computation._fuse import fuse
from manifold_optax.modular._computation._graph import Graph, Operation, Value
from manifold_optax.modular._computation._trace import trace
from manifold_optax.modular._read import output_place

MOST_NUMBERS = 1 << 27
"""Larger matrices are not made: 1 GiB in float64."""


class LocalNetwork:
    """A function with its parameters, ready for bounds around single inputs.

    Up to the first operation that is not linear, the Jacobian is the same everywhere.
    It is computed once, and its columns are turned to as few as it has outputs.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        params: ArrayTree,
        example: jax.ShapeDtypeStruct,
        output: str | None = None,
    ) -> None:
        """`example`: the shape and dtype of one input, with its first axis of 1."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params
        )
        graph, paths, outputs = trace(function, abstract, example)
        place = output_place(graph, outputs, output)
        fused = fuse(Graph(graph.inputs, (graph.outputs[place],)))
        # Step by step a linear map is exact here; as one it is known by a norm alone.
        patterns = {v: o for v, o in fused.patterns.items() if o.name != "linear"}
        self.graph = Graph(fused.inputs, fused.outputs, patterns)
        leaves = map(np.asarray, jax.tree.leaves(params))
        self._arrays: dict[Value, np.ndarray] = dict(
            zip(self.graph.inputs[: len(paths)], leaves, strict=True)
        )
        (self._input,) = self.graph.inputs[len(paths) :]
        self._moving = {self._input}
        self._steps: list[Operation] = []
        for operation in self.graph.operations():
            if not self._moving.isdisjoint(operation.operands):
                self._moving.update(operation.results)
                self._steps.append(operation)

    def around(self, x: np.ndarray, ball: Ball) -> Around:
        """The output on a ball.

        Args:
            x: the center, in the shape of the example.
            ball: its radius is Euclidean, over all axes.

        Raises:
            Unreadable: for an operation without a local rule.
        """
        known = self._first_jacobians
        found: dict[Value, Around] = {}

        def placed(value: Value, made: Around) -> None:
            if value in known:
                own = Description({INPUT: known[value]}, np.zeros(()))
                made = Around(ball, made.center, (own,))
            found[value] = made

        center = np.asarray(x, np.float64)
        placed(self._input, Around(ball, center, (EXACT,)))
        for operation in self._steps:
            operands = [self._operand(value, found) for value in operation.operands]
            if operation.results[0] in self._affine:
                results = [
                    Around(ball, center, (EXACT,))
                    for center in centers_of(operation, operands)
                ]
            else:
                results = self._apply(operation, operands)
            for value, made in zip(operation.results, results, strict=True):
                placed(value, made)
        return found[self.graph.outputs[0]]

    def _apply(self, operation: Operation, operands: list[Operand]) -> list[Around]:
        moving = [isinstance(x, Around) for x in operands]
        count = sum(
            len(c)
            for x in operands
            if isinstance(x, Around)
            for c in x.descriptions[0].columns.values()
        )
        if count * math.prod(operation.results[0].shape) > MOST_NUMBERS:
            raise Unreadable(
                f"{operation.name}: its Jacobian has more than {MOST_NUMBERS} numbers "
                f"[{operation.line}]"
            )
        if is_linear(operation, moving):
            return linear(operation, operands)
        rule = LOCAL_RULES.get(operation.name)
        if rule is None:
            raise Unreadable(f"{operation.name}: no local rule [{operation.line}]")
        return [rule(operation, operands)]

    def _operand(self, value: Value, found: Mapping[Value, Around]) -> Operand:
        return found[value] if value in self._moving else self._constant(value)

    def _constant(self, value: Value) -> np.ndarray:
        """A value that does not depend on the input."""
        if value not in self._arrays:
            array = array_given(value, self._arrays)
            if array is None:
                raise Unreadable("a constant of the computation is too large to hold")
            self._arrays[value] = np.broadcast_to(array, value.shape)
        array = self._arrays[value]
        if value.is_float and array.dtype != np.float64:
            array = self._arrays[value] = array.astype(np.float64)
        return array

    @functools.cached_property
    def _affine(self) -> frozenset[Value]:
        """The values that are affine functions of the input."""
        affine = {self._input}
        for operation in self._steps:
            moving = [value in self._moving for value in operation.operands]
            if is_linear(operation, moving) and all(
                value in affine
                for value, moves in zip(operation.operands, moving, strict=True)
                if moves
            ):
                affine.update(operation.results)
        return frozenset(affine)

    @functools.cached_property
    def _first_jacobians(self) -> dict[Value, np.ndarray]:
        """The Jacobians of the affine values that others need.

        They are written in orthonormal coordinates of those directions of the input
        that change one of these values: a ball stays a ball.
        """
        size = math.prod(self._input.shape)
        if size**2 > MOST_NUMBERS:
            raise Unreadable(
                f"an input of {size} entries is too large for a local bound"
            )
        columns = {self._input: np.eye(size).reshape(size, *self._input.shape)}
        needed = {self.graph.outputs[0]} & self._affine
        for operation in self._steps:
            if operation.results[0] not in self._affine:
                needed.update(self._affine.intersection(operation.operands))
                continue
            moving = [value in self._moving for value in operation.operands]
            given = [
                columns[value] if moves else self._constant(value)
                for value, moves in zip(operation.operands, moving, strict=True)
            ]
            made = apply_linear(operation, given, moving)
            columns.update(zip(operation.results, made, strict=True))
        kept = {value: columns[value] for value in needed}
        if sum(math.prod(value.shape) for value in kept) >= size:
            return kept
        together = np.concatenate([x.reshape(size, -1) for x in kept.values()], 1)
        turned = np.linalg.qr(together, mode="r")
        starts = np.cumsum([math.prod(value.shape) for value in kept])[:-1]
        parts = np.split(turned, starts, 1)
        return {
            value: part.reshape(len(turned), *value.shape)
            for value, part in zip(kept, parts, strict=True)
        }
