"""The normal form of scalar programs: JAX's primitives in terms of a few."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from manifold_optax.modular._scalar._expression import (
    constant,
    Expression,
    Operand,
    Program,
    Ref,
)
from manifold_optax.modular._scalar._rules import value_at

_Form = Callable[[Program, Sequence[Operand], Mapping[str, Any]], Operand | None]

_SMOOTH = (
    "exp expm1 tanh logistic erf erfc sin cos sinh cosh atan asinh cbrt"
).split()
_OF_CONDITIONS = ("select_n", "convert_element_type", "and", "or", "not", "copy")
"""Primitives that may act on truth values."""

_MIRRORED = {"gt": "lt", "lt": "gt", "ge": "le", "le": "ge", "eq": "eq", "ne": "ne"}
"""Each comparison and the one that holds of the operands with the other sign."""


def apply(
    primitive: str,
    operands: Sequence[Expression | float | int | bool],
    params: Mapping[str, Any],
) -> Expression | None:
    """The scalar function that applies a primitive to scalar functions.

    The analysis is in real arithmetic: conversions between floating dtypes are the
    identity, `x != x` is False, and every value is finite.

    Args:
        primitive: name of a JAX primitive, as in a jaxpr.
        operands: functions of the same argument, or constants, all of a floating or
            boolean dtype; integers must be constants.
        params: parameters of the equation; those that the primitive does not need are
            ignored.

    Returns:
        The function, or None if the analysis has no rule for the primitive with these
        operands.

    Example:
        >>> relu = apply("max", [IDENTITY, 0.0], {})
        >>> relu == apply("max", [0.0, IDENTITY], {})
        True
        >>> apply("lgamma", [IDENTITY], {}) is None
        True
    """
    program = Program()
    values = [
        program.include(o) if isinstance(o, Expression) else _plain(o) for o in operands
    ]
    form = _FORMS.get(primitive)
    if primitive not in _OF_CONDITIONS and any(map(program.logical, values)):
        form = None
    result = None if form is None else form(program, values, params)
    if result is None:
        return None
    expression = program.extract(result)
    if expression.constant is None and _ignores_argument(expression):
        return constant(value_at(expression, 0.0))
    return expression


def _plain(value: float | int | bool) -> float | bool:
    return value if isinstance(value, bool) else float(value)


def _ignores_argument(expression: Expression) -> bool:
    return bool(expression.steps) and not any(
        Ref(0) in step.operands for step in expression.steps
    )


def _add(program: Program, operands: Sequence[Operand], _: Any = None) -> Operand:
    a, b = operands
    if not isinstance(a, Ref):
        a, b = b, a
    if not isinstance(b, Ref):
        return a if b == 0 else _shifted(program, a, b)
    return program.add("add", a, b)


def _shifted(program: Program, a: Operand, shift: float) -> Operand:
    """a + shift, without cancellation where a tends to -shift."""
    factor, inner = 1.0, a
    step = program.step(a)
    if step is not None and step.primitive == "mul" and not isinstance(step.operands[0], Ref):
        factor, inner = step.operands
    step = program.step(inner)
    if step is None or isinstance(factor, Ref) or abs(factor) != abs(shift):
        return program.add("add", a, shift)
    sign = factor / shift
    (u,) = step.operands[:1]
    result: Operand | None = None
    match step.primitive, sign:
        case "tanh", _:  # 1 ± tanh(u) = 2 σ(±2u)
            logistic = program.add("logistic", _mul(program, [2.0 * sign, u]))
            result = _mul(program, [2.0, logistic])
        case "erf", _:  # 1 ± erf(u) = erfc(∓u)
            result = program.add("erfc", _mul(program, [-sign, u]))
        case "logistic", -1.0:  # 1 - σ(u) = σ(-u)
            result = program.add("logistic", _neg(program, [u]))
        case "exp", -1.0:  # 1 - exp(u)
            result = _neg(program, [program.add("expm1", u)])
        case "expm1", 1.0:
            result = program.add("exp", u)
        case _:
            return program.add("add", a, shift)
    return _mul(program, [shift, result])


def _exponent(program: Program, a: Operand) -> Operand | None:
    """u, if a is 1 + exp(u)."""
    step = program.step(a)
    if step is None or step.primitive != "add" or step.operands[1] != 1.0:
        return None
    inner = program.step(step.operands[0])
    return inner.operands[0] if inner is not None and inner.primitive == "exp" else None


def _log(program: Program, operands: Sequence[Operand], _: Any = None) -> Operand:
    u = _exponent(program, operands[0])
    if u is not None:
        return program.add("softplus", u)
    return program.add("log", operands[0])


def _log1p(program: Program, operands: Sequence[Operand], _: Any = None) -> Operand:
    step = program.step(operands[0])
    if step is not None and step.primitive == "exp":
        return program.add("softplus", step.operands[0])
    return program.add("log1p", operands[0])


def _mul(program: Program, operands: Sequence[Operand], _: Any = None) -> Operand:
    a, b = operands
    if not isinstance(b, Ref):
        a, b = b, a
    if not isinstance(a, Ref) and a == 0:
        return 0.0
    if not isinstance(a, Ref) and a == 1:
        return b
    inner = program.step(b)
    if not isinstance(a, Ref) and inner is not None and inner.primitive == "mul":
        first, second = inner.operands
        if not isinstance(first, Ref):
            return _mul(program, [a * first, second])
    if a == b:
        return program.add("integer_pow", a, y=2)
    return program.add("mul", a, b)


def _sub(program: Program, operands: Sequence[Operand], _: Any = None) -> Operand:
    a, b = operands
    if a == b and isinstance(a, Ref):
        return 0.0
    return _add(program, [a, _neg(program, [b])])


def _neg(program: Program, operands: Sequence[Operand], _: Any = None) -> Operand:
    (a,) = operands
    return _mul(program, [-1.0, a]) if isinstance(a, Ref) else -a


def _div(program: Program, operands: Sequence[Operand], _: Any = None) -> Operand:
    a, b = operands
    if not isinstance(b, Ref) and b != 0:
        return _mul(program, [a, 1.0 / b])
    u = _exponent(program, b)
    if u is not None:  # 1 / (1 + exp(u)) = σ(-u)
        logistic = program.add("logistic", _neg(program, [u]))
        return _mul(program, [a, logistic])
    return program.add("div", a, b)


def _power(program: Program, operand: Operand, exponent: float) -> Operand:
    if exponent == 1:
        return operand
    if exponent == 0:
        return 1.0
    if exponent == int(exponent):
        return program.add("integer_pow", operand, y=int(exponent))
    return program.add("pow", operand, y=float(exponent))


def _pow(program: Program, operands: Sequence[Operand], _: Any = None) -> Operand | None:
    base, exponent = operands
    if not isinstance(exponent, Ref):
        return _power(program, base, exponent) if math.isfinite(exponent) else None
    if isinstance(base, Ref) or not 0 < base < math.inf:
        return None
    return program.add("exp", _mul(program, [math.log(base), exponent]))


def _switch(program: Program, a: Operand, b: Operand) -> tuple[Operand, bool]:
    """The value whose sign compares a with b, and whether its sign is the other one.

    Affine maps are peeled off, so that all comparisons of one value with one threshold
    share a switch, and the threshold of an affine function is known exactly.
    """
    value, mirrored, shift = _sub(program, [a, b]), False, 0.0
    while (step := program.step(value)) is not None:
        first, *rest = step.operands
        if step.primitive == "add" and not isinstance(rest[0], Ref):
            value, shift = first, shift + rest[0]
        elif step.primitive == "mul" and not isinstance(first, Ref):
            value, shift, mirrored = rest[0], shift / first, mirrored != (first < 0)
        else:
            break
    if not isinstance(value, Ref):
        return value + shift, mirrored
    return _add(program, [value, shift]), mirrored


def _compare(name: str) -> _Form:
    def form(program: Program, operands: Sequence[Operand], _: Any) -> Operand:
        switch, mirrored = _switch(program, *operands)
        if switch == 0 and not isinstance(switch, Ref):
            return name in ("ge", "le", "eq")
        return program.add(_MIRRORED[name] if mirrored else name, switch)

    return form


def _extremum(name: str) -> _Form:
    def form(program: Program, operands: Sequence[Operand], _: Any = None) -> Operand:
        a, b = operands
        switch, mirrored = _switch(program, a, b)
        if not isinstance(switch, Ref):
            return a if ((switch > 0) != mirrored) == (name == "max") else b
        # The first operand is the one that is taken where the switch is positive.
        if mirrored != (name == "min"):
            a, b = b, a
        return program.add(name, a, b, switch)

    return form


def _abs(program: Program, operands: Sequence[Operand], _: Any) -> Operand:
    (a,) = operands
    switch, mirrored = _switch(program, a, 0.0)
    negative = _neg(program, [a])
    if mirrored:
        a, negative = negative, a
    return program.add("abs", a, negative, switch)


def _sign(program: Program, operands: Sequence[Operand], _: Any) -> Operand | None:
    (a,) = operands
    positive = _compare("gt")(program, [a, 0.0], {})
    negative = _compare("lt")(program, [a, 0.0], {})
    if positive is None or negative is None:
        return None
    below = _select(program, [negative, 0.0, -1.0], {})
    return None if below is None else _select(program, [positive, below, 1.0], {})


def _clamp(program: Program, operands: Sequence[Operand], _: Any) -> Operand | None:
    low, a, high = operands
    raised = _extremum("max")(program, [a, low], {})
    return None if raised is None else _extremum("min")(program, [raised, high], {})


def _select(program: Program, operands: Sequence[Operand], _: Any) -> Operand | None:
    if len(operands) != 3 or not program.logical(operands[0]):
        return None
    which, on_false, on_true = operands
    if on_false == on_true:
        return on_true
    if program.logical(on_false) or program.logical(on_true):
        return None
    if isinstance(which, bool):
        return on_true if which else on_false
    return program.add("select_n", which, on_false, on_true)


def _logic(name: str) -> _Form:
    def form(program: Program, operands: Sequence[Operand], _: Any) -> Operand | None:
        if all(program.logical(o) for o in operands):
            return program.add(name, *operands)
        return None  # of integers these primitives act on bits

    return form


def _convert(
    program: Program, operands: Sequence[Operand], params: Mapping[str, Any]
) -> Operand | None:
    (a,) = operands
    dtype = params.get("new_dtype", np.float32)
    if jnp.issubdtype(dtype, np.bool_):
        return a if program.logical(a) else _compare("ne")(program, [a, 0.0], {})
    if jnp.issubdtype(dtype, np.integer):  # rounds towards zero
        return None if isinstance(a, Ref) or not math.isfinite(a) else float(int(a))
    if isinstance(a, Ref) and program.logical(a):
        return _select(program, [a, 0.0, 1.0], {})
    return a if isinstance(a, Ref) else float(a)


def _smooth(name: str) -> _Form:
    return lambda program, operands, _: program.add(name, operands[0])


_FORMS: dict[str, _Form] = {
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "mul": _mul,
    "neg": _neg,
    "div": _div,
    "square": lambda program, operands, _: _power(program, operands[0], 2.0),
    "sqrt": lambda program, operands, _: _power(program, operands[0], 0.5),
    "rsqrt": lambda program, operands, _: _power(program, operands[0], -0.5),
    "integer_pow": lambda program, operands, params: _power(
        program, operands[0], params["y"]
    ),
    "pow": _pow,
    "exp2": lambda program, operands, _: _pow(program, [2.0, operands[0]]),
    "log": _log,
    "log1p": _log1p,
    "abs": _abs,
    "sign": _sign,
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _convert,
    "is_finite": lambda _program, _operands, _: True,
    "max": _extremum("max"),
    "min": _extremum("min"),
}
_FORMS |= {name: _compare(name) for name in _MIRRORED}
_FORMS |= {name: _logic(name) for name in ("and", "or", "not")}
_FORMS |= {name: _smooth(name) for name in (*_SMOOTH, "floor", "ceil", "round")}
_FORMS |= {
    name: lambda _program, operands, _: operands[0]
    for name in ("copy", "copy_p", "stop_gradient", "reduce_precision")
}
