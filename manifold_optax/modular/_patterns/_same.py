"""Values that a program computes twice."""

from manifold_optax.modular._computation._constants import constant_number
from manifold_optax.modular._computation._graph import Value
from manifold_optax.modular._patterns._layout import bare, STRUCTURE

_DEEPEST = 6
"""How many operations two spellings of one value are compared through."""

_PLAIN = STRUCTURE | {
    *("abs", "add", "div", "dot_general", "exp", "exp2", "integer_pow", "logistic"),
    *("cos", "erf", "log", "sin"),
    *("max", "mul", "neg", "reduce_max", "reduce_sum", "rsqrt", "select_n", "slice"),
    *("sqrt", "square", "sub", "tanh"),
}
"""Operations whose parameters are plain values, which can be compared."""


def same(a: Value, b: Value, depth: int = 0) -> bool:
    """Whether two values are one, or made in the same way from the same values."""
    a, b = bare(a), bare(b)
    if a is b:
        return True
    if a.shape != b.shape or a.is_float != b.is_float or depth > _DEEPEST:
        return False
    one, other = a.operation, b.operation
    if one is None or other is None:
        number = constant_number(a)
        return number is not None and number == constant_number(b)
    if one.name != other.name or one.name not in _PLAIN or one.params != other.params:
        return False
    return all(
        same(x, y, depth + 1) for x, y in zip(one.operands, other.operands, strict=True)
    )
