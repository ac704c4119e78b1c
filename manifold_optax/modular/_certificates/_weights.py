"""Arrays of a graph that are made of parameters alone, from live parameters."""

from collections.abc import Mapping

import jax
from jaxtyping import Array

from manifold_optax.modular._computation._constants import constant_array, is_constant
from manifold_optax.modular._computation._graph import Operation, Value

_VIEWS = frozenset({
    "broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape",
    "squeeze", "stop_gradient", "transpose",
})  # fmt: skip
"""What their rules measure as exactly as it would be measured after them."""

_LINEAR = _VIEWS | frozenset({
    "add", "add_any", "concatenate", "cumsum", "neg", "pad", "reduce_sum", "rev",
    "slice", "split", "sub",
})  # fmt: skip
_LINEAR_IN_ONE = frozenset({"div", "dot_general", "gather", "mul", "select_n"})
"""Linear in the one operand that moves, where the others are constants."""


class Weights:
    """Which values of a graph can be computed from the parameters, and how."""

    def __init__(self, leaves: Mapping[Value, object], *, affine: bool) -> None:
        """`affine`: only values that are affine functions of all parameters."""
        self._leaves = leaves
        self._affine = affine
        self._can: dict[Value, bool] = {}

    def measures(self, value: Value) -> bool:
        """Whether the norm of a value is taken of its array, rather than by a rule."""
        if not value.is_float:
            return False
        if value in self._leaves:
            return True
        made = value.operation
        return made is not None and made.name not in _VIEWS and self.computable(value)

    def computable(self, value: Value) -> bool:
        """Whether a value is made of parameters and constants, by known primitives."""
        # Without recursion: what a parameter goes through may be long.
        stack = [value]
        while stack:
            needed = stack[-1]
            made = needed.operation
            if needed in self._can:
                stack.pop()
            elif needed in self._leaves or is_constant(needed):
                self._can[stack.pop()] = True
            elif made is None or not self._follows(made):
                self._can[stack.pop()] = False
            elif missing := [x for x in made.operands if x not in self._can]:
                stack.extend(missing)
            else:
                can = all(self._can[x] for x in made.operands)
                self._can[stack.pop()] = can
        return self._can[value]

    def _follows(self, operation: Operation) -> bool:
        if operation.primitive is None or operation.bodies:
            return False
        if {"jaxpr", "call_jaxpr", "axis_name", "callback"} & set(operation.params):
            return False
        if not self._affine or operation.name in _LINEAR:
            return True
        moving = [k for k, x in enumerate(operation.operands) if not is_constant(x)]
        if operation.name == "div":
            return moving == [0]
        if operation.name == "select_n":
            return 0 not in moving
        return operation.name in _LINEAR_IN_ONE and len(moving) <= 1


def computed(value: Value, arrays: dict[Value, Array]) -> Array:
    """A value from the parameters in `arrays`, which receives what it needs."""
    stack = [value]
    while stack:
        needed = stack[-1]
        made = needed.operation
        if needed in arrays:
            stack.pop()
        elif (array := constant_array(needed)) is not None:
            arrays[stack.pop()] = jax.numpy.asarray(array, needed.dtype)
        elif made is None:
            arrays[stack.pop()] = needed.constant
        elif missing := [x for x in made.operands if x not in arrays]:
            stack.extend(missing)
        else:
            assert made.primitive is not None
            given = (arrays[x] for x in made.operands)
            found = made.primitive.bind(*given, **made.params)
            results = found if made.primitive.multiple_results else [found]
            arrays.update(zip(made.results, results, strict=True))
            stack.pop()
    return arrays[value]
