"""The normal form of scalar programs: JAX's primitives in terms of a few."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from manifold_optax.modular._scalar._arithmetic import (
    add,
    div,
    general_power,
    log,
    log1p,
    mul,
    neg,
    power,
    sub,
)
from manifold_optax.modular._scalar._expression import (
    constant,
    Expression,
    Operand,
    Program,
    Ref,
)
from manifold_optax.modular._scalar._rules import value_at
from manifold_optax.modular._scalar._smooth import RANGES, STEPS

_Form = Callable[[Program, Sequence[Operand], Mapping[str, Any]], Operand | None]

_STEPS = sorted({*RANGES, *STEPS} - {"softplus"})
"""Primitives that are steps as they are. JAX has no primitive `softplus`."""

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
        operands: functions of the same argument, or Python numbers. Functions must be
            of a floating or boolean dtype; integers may only be constants.
        params: parameters of the equation; those that the primitive does not need are
            ignored.

    Returns:
        The function, or None if the analysis has no rule for the primitive with these
        operands.

    Example:
        >>> from manifold_optax.modular._scalar import IDENTITY
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


def _switch(program: Program, a: Operand, b: Operand) -> tuple[Operand, bool]:
    """The value whose sign compares a with b, and whether its sign is the other one.

    Affine maps are peeled off, so that all comparisons of one value with one threshold
    share a switch, and the threshold of an affine function is known exactly.
    """
    value, mirrored, shift = sub(program, a, b), False, 0.0
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
    return add(program, value, shift), mirrored


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
    negative = neg(program, a)
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
    if isinstance(which, bool):
        return on_true if which else on_false
    if program.logical(on_false) and program.logical(on_true):
        return program.add(
            "or",
            program.add("and", which, on_true),
            program.add("and", program.add("not", which), on_false),
        )
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


def _step(name: str) -> _Form:
    return lambda program, operands, _: program.add(name, operands[0])


def _form(function: Callable[..., Operand | None]) -> _Form:
    return lambda program, operands, _: function(program, *operands)


_FORMS: dict[str, _Form] = {
    "add": _form(add),
    "add_any": _form(add),
    "sub": _form(sub),
    "mul": _form(mul),
    "neg": _form(neg),
    "div": _form(div),
    "square": lambda program, operands, _: power(program, operands[0], 2.0),
    "sqrt": lambda program, operands, _: power(program, operands[0], 0.5),
    "rsqrt": lambda program, operands, _: power(program, operands[0], -0.5),
    "integer_pow": lambda program, operands, params: power(
        program, operands[0], float(params["y"])
    ),
    "pow": _form(general_power),
    "exp2": lambda program, operands, _: general_power(program, 2.0, operands[0]),
    "log": _form(log),
    "log1p": _form(log1p),
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
_FORMS |= {name: _step(name) for name in (*_STEPS, "cbrt")}
_FORMS |= {
    name: lambda _program, operands, _: operands[0]
    for name in ("copy", "copy_p", "stop_gradient", "reduce_precision")
}
