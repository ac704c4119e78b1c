"""Known functions in a graph, recognised by their algebra and not by their names."""

from manifold_optax.modular._computation._graph import Operation, Value
from manifold_optax.modular._patterns._linear import linear
from manifold_optax.modular._patterns._normalization import normalization
from manifold_optax.modular._patterns._softmax import softmax

__all__ = ["recognise"]


def recognise(value: Value) -> Operation | None:
    """The known function that a value is the result of.

    The patterns, with the parameters of each:

    - `"softmax"` and `"log_softmax"` of z: `axes`. The operand has the shape of the
      value; it may be new, with `-inf` where a mask puts 0.
    - `"normalize"` of x: `axes`, `centred`, `epsilon`, `scale`, `offset`, `floor`. The
      value is `scale (x - m) / max(sqrt(v + epsilon) + offset, floor)`, where v is the
      mean over the axes of `(x - m)²`, and m the mean, or 0 if it is not centred.
      Where gains were multiplied in before, the value gets an operation `"mul"` or
      `"div"` instead, whose first operand is a new value that `"normalize"` makes;
      likewise `"add"` and `"sub"` for biases, and `"reshape"` for groups.
    - `"linear"` of x: `norm`, an upper bound of the operator norms along the last axis,
      and `axes`, that axis. The map is constant, and at least two uses of x meet in it.

    Casts are taken for equalities: rounding is no part of the algebra.

    Args:
        value: any value of a traced graph, without other patterns in it. Walk back from
            the outputs, and ask for each value that is needed: the outermost pattern
            is the largest.

    Returns:
        An operation whose only result is the value, to be put in the place of
        `value.operation`; `None` if no pattern is known. Each call makes a new one.
    """
    return softmax(value) or normalization(value) or linear(value)
