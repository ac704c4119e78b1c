"""Sums, products, powers and logarithms of scalar programs in normal form.

Constants come last in sums and first in products. Identities avoid cancellation and
overflow that the function itself does not have: 1 + tanh(u) is 2 σ(2u), for example.
"""

import math

from manifold_optax.modular._scalar._expression import Operand, Program, Ref, Step


def add(program: Program, a: Operand, b: Operand) -> Operand:
    """The sum a + b."""
    if not isinstance(a, Ref):
        a, b = b, a
    if not isinstance(b, Ref):
        return a if b == 0 else _shifted(program, a, float(b))
    return program.add("add", a, b)


def sub(program: Program, a: Operand, b: Operand) -> Operand:
    """The difference a - b, which is 0 for equal operands."""
    if isinstance(a, Ref) and a == b:
        return 0.0
    return add(program, a, neg(program, b))


def neg(program: Program, a: Operand) -> Operand:
    """The product -a."""
    return mul(program, -1.0, a) if isinstance(a, Ref) else -a


def mul(program: Program, a: Operand, b: Operand) -> Operand:
    """The product a · b; constant factors are collected."""
    if not isinstance(b, Ref):
        a, b = b, a
    if isinstance(a, Ref):
        return power(program, a, 2.0) if a == b else program.add("mul", a, b)
    if a == 0:
        return 0.0
    if a == 1:
        return b
    factor, inner = _scaled(program, b)
    return mul(program, a * factor, inner) if factor != 1 else program.add("mul", a, b)


def div(program: Program, a: Operand, b: Operand) -> Operand:
    """The quotient a / b, with 1 / (1 + exp(u)) = σ(-u)."""
    if not isinstance(b, Ref) and b != 0:
        return mul(program, a, 1.0 / b)
    exponent = _exponent(program, b)
    if exponent is not None:
        return mul(program, a, program.add("logistic", neg(program, exponent)))
    return program.add("div", a, b)


def power(program: Program, base: Operand, exponent: float) -> Operand:
    """The power with a constant exponent; it is "integer_pow" or "pow"."""
    if exponent == 1:
        return base
    if exponent == 0:
        return 1.0
    if exponent == int(exponent):
        return program.add("integer_pow", base, y=int(exponent))
    return program.add("pow", base, y=exponent)


def general_power(program: Program, base: Operand, exponent: Operand) -> Operand | None:
    """The power if base or exponent is constant, otherwise None."""
    if not isinstance(exponent, Ref):
        finite = math.isfinite(exponent)
        return power(program, base, float(exponent)) if finite else None
    if isinstance(base, Ref) or not 0 < base < math.inf:
        return None
    return program.add("exp", mul(program, math.log(base), exponent))


def log(program: Program, a: Operand) -> Operand:
    """The logarithm; that of 1 + exp(u) is `softplus`, which does not overflow."""
    exponent = _exponent(program, a)
    if exponent is not None:
        return program.add("softplus", exponent)
    return program.add("log", a)


def log1p(program: Program, a: Operand) -> Operand:
    """The logarithm of 1 + a, which is `softplus` if a is an exponential."""
    step = program.step(a)
    if step is not None and step.primitive == "exp":
        return program.add("softplus", step.operands[0])
    return program.add("log1p", a)


def _scaled(program: Program, a: Operand) -> tuple[float, Operand]:
    """The constant factor of a product, and the rest."""
    step = program.step(a)
    if step is not None and step.primitive == "mul":
        factor, inner = step.operands
        if not isinstance(factor, Ref):
            return float(factor), inner
    return 1.0, a


def _shifted(program: Program, a: Operand, shift: float) -> Operand:
    """The sum a + shift, by an identity if a is a sigmoid that tends to -shift."""
    factor, inner = _scaled(program, a)
    step = program.step(inner)
    if step is not None and abs(factor) == abs(shift):
        near_0 = _one_plus(program, step, factor / shift)
        if near_0 is not None:
            return mul(program, shift, near_0)
    return program.add("add", a, shift)


def _one_plus(program: Program, step: Step, sign: float) -> Operand | None:
    """1 ± f(u), if it is a function that tends to 0 where f tends to ∓1."""
    u = step.operands[0]
    match step.primitive:
        case "tanh":  # 1 ± tanh(u) = 2 σ(±2u)
            logistic = program.add("logistic", mul(program, 2.0 * sign, u))
            return mul(program, 2.0, logistic)
        case "erf":  # 1 ± erf(u) = erfc(∓u)
            return program.add("erfc", mul(program, -sign, u))
        case "logistic" if sign < 0:  # 1 - σ(u) = σ(-u)
            return program.add("logistic", neg(program, u))
        case "exp" if sign < 0:  # 1 - exp(u) = -expm1(u)
            return neg(program, program.add("expm1", u))
        case "expm1" if sign > 0:  # 1 + expm1(u) = exp(u)
            return program.add("exp", u)
    return None


def _exponent(program: Program, a: Operand) -> Operand | None:
    """The operand u, if a is 1 + exp(u)."""
    step = program.step(a)
    if step is None or step.primitive != "add" or step.operands[1] != 1.0:
        return None
    inner = program.step(step.operands[0])
    return inner.operands[0] if inner is not None and inner.primitive == "exp" else None
