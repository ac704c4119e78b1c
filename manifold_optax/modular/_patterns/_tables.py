"""Tables of cosines and sines, whose positions may be an input."""

import weakref

import jax
import numpy as np

from manifold_optax.modular._computation._constants import is_constant
from manifold_optax.modular._computation._graph import Value

_TABLES = frozenset(
    {"add", "broadcast_in_dim", "complex", "concatenate", "convert_element_type", "cos"}
    | {"div", "dot_general", "exp", "imag", "mul", "neg", "pow", "real", "reshape"}
    | {"sin", "slice", "split", "squeeze", "stack", "sub", "tile", "transpose"}
)
"""Analytic operations and structure: what angles are computed by from positions."""

_LONGEST = 40
"""Operations from positions to a table; there are about ten."""

_POSITIONS: weakref.WeakKeyDictionary[Value, tuple[Value, ...] | None] = (
    weakref.WeakKeyDictionary()
)


def positions(value: Value) -> tuple[Value, ...] | None:
    """The integers that a table of cosines is computed from.

    Returns:
        An empty tuple for a constant; `None` for a value that depends on anything else
        than constants and integers, by other operations than `_TABLES`.
    """
    if value not in _POSITIONS:
        found = _find_positions(value)
        if found is not None and value in found:
            return found  # Kept, it would keep itself alive.
        _POSITIONS[value] = found
    return _POSITIONS[value]


def is_table(value: Value) -> bool:
    """Whether a value depends on constants and positions alone."""
    return positions(value) is not None


def _find_positions(value: Value) -> tuple[Value, ...] | None:
    stack, seen, found = [value], {value}, []
    while stack:
        needed = stack.pop()
        if is_constant(needed):
            continue
        if jax.numpy.issubdtype(needed.dtype, np.integer):
            found.append(needed)
            if not _is_of_integers(needed):
                return None
            continue
        operation = needed.operation
        if operation is None or operation.name not in _TABLES or len(seen) > _LONGEST:
            return None
        new = [operand for operand in operation.operands if operand not in seen]
        seen.update(new)
        stack.extend(new)
    return tuple(found)


def _is_of_integers(value: Value) -> bool:
    """Whether a value depends on no float: the position of a maximum moves with it."""
    stack, seen = [value], {value}
    while stack:
        needed = stack.pop()
        if is_constant(needed):
            continue
        if needed.is_float or len(seen) > _LONGEST:
            return False
        operands = needed.operation.operands if needed.operation else ()
        new = [operand for operand in operands if operand not in seen]
        seen.update(new)
        stack.extend(new)
    return True
