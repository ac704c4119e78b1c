"""The value of a graph, computed with the patterns in it or without."""

import jax
import jax.numpy as jnp
import numpy as np
from manifold_optax.modular._graph import Graph, Operation, Value
from manifold_optax.modular._patterns import recognise
from manifold_optax.modular._trace import trace


def only_output(function, *arguments) -> tuple[Graph, Value]:
    """The graph of a function of arrays, and its one output."""
    graph, _, _ = trace(lambda args: function(*args), arguments)
    (output,) = graph.outputs
    return graph, output


def found(value: Value, graph: Graph, name: str) -> list[Operation]:
    """All patterns of a name that a walk from `value` to the inputs meets."""
    seen, stack, patterns = set(), [value], []
    while stack:
        value = stack.pop()
        if value in seen or value in graph.inputs:
            continue
        seen.add(value)
        operation = recognise(value) or value.operation
        if operation is None:
            continue
        assert operation.results[value.index] is value
        if operation.name == name:
            patterns.append(operation)
        stack.extend(operation.operands)
    return patterns


def evaluate(value: Value, graph: Graph, arguments) -> np.ndarray:
    """The value, with every pattern computed by its definition."""
    known = dict(zip(graph.inputs, arguments, strict=True))

    def get(value):
        if value not in known:
            operation = recognise(value) or value.operation
            if operation is None:
                known[value] = jnp.asarray(value.constant)
            else:
                operands = [get(operand) for operand in operation.operands]
                known[value] = _apply(operation, operands, value)
        return known[value]

    return np.asarray(get(value))


def _apply(operation, operands, value):
    if operation.name in DEFINITIONS:
        result = DEFINITIONS[operation.name](*operands, **operation.params)
        return jnp.asarray(result, value.dtype)
    if operation.name in ARITHMETIC:
        return jnp.asarray(ARITHMETIC[operation.name](*operands), value.dtype)
    if operation.name == "broadcast_in_dim":  # Those of the graph itself are incomplete.
        dimensions = operation.params["broadcast_dimensions"]
        return jax.lax.broadcast_in_dim(operands[0], value.shape, dimensions)
    results = operation.primitive.bind(*operands, **operation.params)
    return results[value.index] if operation.primitive.multiple_results else results


def normalize(x, *, axes, centred, epsilon, scale, offset, floor):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x - jnp.mean(x, axes, keepdims=True) if centred else x
    size = jnp.sqrt(jnp.mean(x * x, axes, keepdims=True) + epsilon)
    return scale * x / jnp.maximum(size + offset, floor)


DEFINITIONS = {
    "normalize": normalize,
    "softmax": lambda z, *, axes: jax.nn.softmax(z, axes),
    "log_softmax": lambda z, *, axes: jax.nn.log_softmax(z, axes),
}

ARITHMETIC = {"add": jnp.add, "sub": jnp.subtract, "mul": jnp.multiply, "div": jnp.divide}
