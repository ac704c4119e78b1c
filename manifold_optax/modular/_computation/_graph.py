"""A traced computation as a graph: values, and the operations that make them."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jax_core
import jax.extend.source_info_util as source_info
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Value:
    """An array of the computation, known by its shape alone.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        operation: what makes it; `None` for inputs of a graph and for constants.
        index: which of the results of that operation it is.
        constant: the array itself, for a literal or a captured array.
    """

    shape: tuple[int, ...]
    dtype: Any
    operation: "Operation | None" = None
    index: int = 0
    constant: Any = None

    def __repr__(self) -> str:
        # Not what made it: that would be the whole network.
        return f"Value({self.dtype}{list(self.shape)})"

    @property
    def is_float(self) -> bool:
        """Whether a small change of the value means anything."""
        return jax.numpy.issubdtype(self.dtype, jax.numpy.inexact)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Operation:
    """One primitive, or one pattern of several, applied to values.

    Attributes:
        name: the name of the primitive (`"dot_general"`), or of the pattern
            (`"softmax"`).
        operands: what it is applied to.
        params: the parameters of the primitive, or what the pattern found.
        results: what it makes; filled in once by `made_by`.
        bodies: graphs of the functions that it calls: of `scan`, `while`, `cond`.
        primitive: the primitive, to compute constants with; `None` for a pattern.
        sources: where the user wrote it, and then the calls around it; see `line`.
        calls: the names of the functions around it, such as `"relu"`, inner first.
    """

    name: str
    operands: tuple[Value, ...]
    params: Mapping[str, Any]
    results: list[Value] = dataclasses.field(default_factory=list)
    bodies: "tuple[Graph, ...]" = ()
    primitive: jax_core.Primitive | None = None
    sources: tuple[Any, ...] = ()
    calls: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The user's source line, such as `model.py:176:4 (_route)`."""
        lines = (_line(source) for source in self.sources)
        return next(filter(None, lines), "unknown line")

    def __repr__(self) -> str:
        return f"{self.name} [{self.line}]"


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A function from values to values.

    Attributes:
        inputs: its arguments.
        outputs: its results; a value may be an input, a constant, or stand twice.
        patterns: operations that stand in the place of what made a value at first
            (`softmax` in the place of a division): the reader's own reading.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    patterns: Mapping[Value, Operation] = dataclasses.field(default_factory=dict)

    def maker(self, value: Value) -> Operation | None:
        """The operation that makes a value; `None` for inputs and constants."""
        return self.patterns.get(value, value.operation)

    def operations(self) -> list[Operation]:
        """What the outputs need, each after what it needs itself; no dead code."""
        return list(_in_order(self))

    def uses(self) -> dict[Value, list[tuple[Operation, int]]]:
        """For each value: the operations that need it, and as which operand."""
        found: dict[Value, list[tuple[Operation, int]]] = {}
        for operation in self.operations():
            for position, operand in enumerate(operation.operands):
                found.setdefault(operand, []).append((operation, position))
        return found


def made_by(
    name: str,
    operands: Sequence[Value],
    params: Mapping[str, Any],
    shapes: Sequence[tuple[tuple[int, ...], Any]],
    **more: Any,
) -> tuple[Value, ...]:
    """The results of a new operation; `shapes` are pairs of a shape and a dtype."""
    operation = Operation(name, tuple(operands), params, **more)
    operation.results.extend(
        Value(tuple(shape), dtype, operation, index)
        for index, (shape, dtype) in enumerate(shapes)
    )
    return tuple(operation.results)


def constant(array: Any) -> Value:
    """An array that the computation holds."""
    return Value(tuple(np.shape(array)), array.dtype, constant=array)


def _in_order(graph: Graph) -> Iterator[Operation]:
    """Depth first with a stack of its own: networks are deeper than Python's."""
    done: set[Operation] = set()
    given = set(graph.inputs)
    for output in graph.outputs:
        stack = [(output, False)]
        while stack:
            value, ready = stack.pop()
            operation = None if value in given else graph.maker(value)
            if operation is None or operation in done:
                continue
            if ready:
                done.add(operation)
                yield operation
                continue
            stack.append((value, True))
            stack.extend((operand, False) for operand in reversed(operation.operands))


def _line(source: Any) -> str:
    """`model.py:176 (_route)`: the innermost line that is not of an installed package.

    Where all are, as for a model out of a package, the innermost outside of JAX.
    """
    for frame in getattr(source.traceback, "frames", ()):
        if not any(folder in frame.file_name for folder in _INSTALLED):
            return _place(f"{frame.file_name}:{frame.line_num}", frame.function_name)
    place, _, function = source_info.summarize(source).partition(" (")
    return _place(place, function.removesuffix(")"))


_INSTALLED = (
    "site-packages", "dist-packages", "<frozen", str(pathlib.Path(__file__).parents[1]),
)  # fmt: skip
"""Parts of paths of files that the user did not write; the last is this library."""


def _place(place: str, function: str) -> str:
    """A line without the folders of its file."""
    name = place.replace("\\", "/").rsplit("/", 1)[-1]
    return f"{name} ({function})" if name and function else name
