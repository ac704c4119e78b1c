"""Graphs of functions, and their values with patterns computed as they are defined."""

import jax
import jax.numpy as jnp

from manifold_optax.modular._computation._graph import Graph, Operation, Value
from manifold_optax.modular._computation._trace import trace
from manifold_optax.modular._patterns import recognise


def only_output(function, *arguments) -> tuple[Graph, Value]:
    """The graph of a function of arrays, and its one output."""
    graph, _, _ = trace(lambda args: function(*args), arguments)
    (output,) = graph.outputs
    return graph, output


def found(function, *arguments, name: str | None = None) -> list[Operation]:
    """The patterns, of one name or all, that a walk back from the output meets."""
    graph, output = only_output(function, *arguments)
    seen, stack, patterns = set(graph.inputs), [output], []
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        operation = recognise(value) or value.operation
        if operation is None:
            continue
        assert operation.results[value.index] is value
        if operation.name in PATTERNS if name is None else operation.name == name:
            patterns.append(operation)
        stack.extend(operation.operands)
    return patterns


def evaluate(function, *arguments) -> jax.Array:
    """The output, with every pattern computed as it is defined."""
    graph, output = only_output(function, *arguments)
    known = dict(zip(graph.inputs, arguments, strict=True))

    def get(value):
        if value in known:
            return known[value]
        operation = recognise(value)
        if operation is None or operation.name == "linear":
            operation = value.operation
        if operation is None:
            return jnp.asarray(value.constant)
        operands = [get(operand) for operand in operation.operands]
        known[value] = _apply(operation, operands, value)
        return known[value]

    return get(output)


def _apply(operation, operands, value):
    name, params = operation.name, operation.params
    if name in DEFINITIONS:
        return jnp.asarray(DEFINITIONS[name](*operands, **params), value.dtype)
    if name in ARITHMETIC:  # Without JAX's check that dtypes agree: casts are left out.
        return jnp.asarray(ARITHMETIC[name](*operands), value.dtype)
    if name == "broadcast_in_dim":  # Those that the graph adds lack a parameter.
        dimensions = params["broadcast_dimensions"]
        return jax.lax.broadcast_in_dim(operands[0], value.shape, dimensions)
    results = operation.primitive.bind(*operands, **params)
    return results[value.index] if operation.primitive.multiple_results else results


def normalize(x, *, axes, centred, epsilon, scale, offset, floor):
    """As `normalization` documents it."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x - jnp.mean(x, axes, keepdims=True) if centred else x
    size = jnp.sqrt(jnp.mean(x * x, axes, keepdims=True) + epsilon)
    return scale * x / jnp.maximum(size + offset, floor)


DEFINITIONS = {
    "normalize": normalize,
    "softmax": lambda z, *, axes: jax.nn.softmax(z, axes),
    "log_softmax": lambda z, *, axes: jax.nn.log_softmax(z, axes),
}

PATTERNS = (*DEFINITIONS, "linear")

ARITHMETIC = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
}
