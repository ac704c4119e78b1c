"""Known functions in a graph, recognised by their algebra and not by their names."""

from manifold_optax.modular._graph import Operation, Value
from manifold_optax.modular._patterns._linear import linear
from manifold_optax.modular._patterns._normalization import normalization
from manifold_optax.modular._patterns._softmax import softmax

__all__ = ["recognise"]


def recognise(value: Value) -> Operation | None:
    return softmax(value) or normalization(value) or linear(value)
