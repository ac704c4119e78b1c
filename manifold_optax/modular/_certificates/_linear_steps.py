"""Steps of a graph that are linear in what depends on the inputs, applied to arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax.modular._computation._graph import Operation, Value

_EXACT = frozenset({
    "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice",
    "expand_dims", "gather", "neg", "pad", "reshape", "rev", "select_n", "slice",
    "split", "squeeze", "stop_gradient", "transpose",
})  # fmt: skip
"""What moves entries, and computes nothing, there or back (apart from sums of uses)."""

_SUMS = frozenset({"add", "add_any", "sub"})
_PRODUCTS = frozenset({"conv_general_dilated", "dot_general", "mul"})
_CONTRACTIONS = frozenset({
    "conv_general_dilated", "cumsum", "dot_general", "reduce_sum", "reduce_window_sum",
})  # fmt: skip
"""What adds up several entries of one operand."""

_IN_THE_FIRST = (
    frozenset({"cumsum", "div", "reduce_sum", "reduce_window_sum"})
    | _EXACT - {"concatenate", "pad", "select_n"}
)  # fmt: skip
"""Linear in the first operand, where the others do not move."""

_IDENTITIES = frozenset({"convert_element_type", "copy", "stop_gradient"})

_MATMULS = frozenset({"conv_general_dilated", "dot_general"})


def is_linear(operation: Operation, moves: Callable[[Value], bool]) -> bool:
    """Whether an operation is affine in all of its operands that move."""
    name, operands = operation.name, operation.operands
    if operation.primitive is None or not all(x.is_float for x in operation.results):
        return False
    moving = [k for k, x in enumerate(operands) if moves(x)]
    if not all(operands[k].is_float for k in moving):
        return False
    if name in _SUMS or name in ("concatenate", "pad"):
        return True
    if name == "select_n":
        return 0 not in moving
    if name in _PRODUCTS:
        return len(moving) == 1
    return name in _IN_THE_FIRST and moving == [0]


def contracts(operation: Operation) -> bool:
    """Whether sums of products are computed, in which norms may be lost."""
    return operation.name in _CONTRACTIONS


def is_exact(operation: Operation) -> bool:
    """Whether entries are moved, and none computed."""
    return operation.name in _EXACT


def applied(operation: Operation, operands: Sequence[Array]) -> list[Array]:
    """The results, in the precision of the operands whatever the model computes in."""
    assert operation.primitive is not None
    params: dict[str, Any] = dict(operation.params)
    if operation.name in _IDENTITIES:
        return [operands[0]]
    if operation.name in _MATMULS:
        dtype = jnp.result_type(*operands)
        highest = jax.lax.Precision.HIGHEST
        params.update(precision=(highest, highest), preferred_element_type=dtype)
    found = operation.primitive.bind(*operands, **params)
    return list(found) if operation.primitive.multiple_results else [found]
