"""Enclosures of a scalar function and of its derivative on cells, one rule a primitive.

Each rule is interval arithmetic on the value, and the chain rule in interval arithmetic
on the derivative. Where a branch is not decided on a cell, both branches count.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from manifold_optax.modular._scalar._cells import (
    ANY,
    BoolArray,
    Cells,
    Enclosure,
    Evaluation,
    NEGATIVE,
    POSITIVE,
    Truth,
    ZERO,
)
from manifold_optax.modular._scalar._expression import (
    COMPARISONS,
    Expression,
    Operand,
    Ref,
    Step,
)
from manifold_optax.modular._scalar._scaled import (
    FloatArray,
    natural,
    number,
    outward,
    Scale,
    Scaled,
)
from manifold_optax.modular._scalar._smooth import RANGES, STEPS

_HOLDS = {
    "gt": POSITIVE,
    "ge": POSITIVE | ZERO,
    "lt": NEGATIVE,
    "le": NEGATIVE | ZERO,
    "eq": ZERO,
    "ne": POSITIVE | NEGATIVE,
}
"""The signs of the switch with which each comparison holds."""


@lru_cache(maxsize=1024)
def switches(expression: Expression) -> tuple[Ref, ...]:
    """The results whose signs select branches."""
    found = {
        step.operands[-1]
        for step in expression.steps
        if step.primitive in (*COMPARISONS, "max", "min", "abs")
    }
    refs = [o for o in found if isinstance(o, Ref)]
    return tuple(sorted(refs, key=lambda ref: ref.index))


@np.errstate(all="ignore")
def evaluate(expression: Expression, cells: Cells) -> Evaluation:
    """Encloses value and derivative of `expression` on each cell."""
    run = _Run(expression, cells)
    for step in expression.steps:
        run.results.append(_RULES[step.primitive](run, step))
    last = run.number(Ref(len(expression.steps)))
    size = cells.lo.shape
    quotient = Scaled(last.value.power - 1.0, last.value.lo, last.value.hi)
    value, slope, ratio = (
        (np.broadcast_to(lo, size), np.broadcast_to(hi, size))
        for lo, hi in map(run.scale.interval, (last.value, last.slope, quotient))
    )
    signs, moving = np.empty_like(cells.signs), np.empty(cells.signs.shape, bool)
    for row, ref in enumerate(run.switches):
        signs[row] = run.signs(ref)
        change = run.number(ref).slope
        moving[row] = (change.lo > 0) | (change.hi < 0)
    broken = np.broadcast_to(last.broken, size)
    return Evaluation(value, slope, ratio, broken, signs, moving)


def value_at(expression: Expression, x: float) -> float | bool:
    """f(x), within rounding; NaN where the function is undefined."""
    signs = np.full((len(switches(expression)), 1), ANY, np.int8)
    result = evaluate(expression, Cells(np.array([x]), np.array([x]), signs))
    (lo,), (hi,) = result.value
    if result.broken.any():
        return math.nan
    value = float(lo if lo == hi else 0.5 * lo + 0.5 * hi)
    return value > 0.5 if expression.logical else value


class _Run:
    """The results of one evaluation, so far."""

    def __init__(self, expression: Expression, cells: Cells) -> None:
        near = np.minimum(np.abs(cells.lo), np.abs(cells.hi))
        far = np.maximum(np.abs(cells.lo), np.abs(cells.hi))
        sign = np.where(cells.lo + cells.hi < 0, -1.0, 1.0)
        self.scale = Scale(near, far, sign)
        self.switches = switches(expression)
        self._assumed = dict(zip(self.switches, cells.signs, strict=True))
        one = sign * sign
        argument = Enclosure(
            self.scale.argument(), natural(one, one), np.zeros(1, bool)
        )
        self.results: list[Enclosure | Truth] = [argument]

    def number(self, operand: Operand) -> Enclosure:
        """The enclosure of a number; a condition counts as 1 or 0."""
        if not isinstance(operand, Ref):
            return Enclosure(number(operand), number(0.0), np.zeros(1, bool))
        result = self.results[operand.index]
        if isinstance(result, Enclosure):
            return result
        one, zero = (self.number(value) for value in (1.0, 0.0))
        return self.choice(result, one, zero)

    def truth(self, operand: Operand) -> Truth:
        """A condition."""
        if not isinstance(operand, Ref):
            return Truth(np.array([bool(operand)]), np.array([not operand]))
        result = self.results[operand.index]
        assert isinstance(result, Truth)
        return result

    def signs(self, switch: Operand) -> np.ndarray:
        """The signs that a switch may have, as bits."""
        lo, hi = self.scale.interval(self.number(switch).value)
        bits = (
            NEGATIVE * (lo < 0) + ZERO * ((lo <= 0) & (hi >= 0)) + POSITIVE * (hi > 0)
        )
        assumed = self._assumed[switch] if isinstance(switch, Ref) else ANY
        return bits & assumed

    def interval(self, enclosure: Enclosure) -> tuple[FloatArray, FloatArray]:
        """The ordinary interval of a value."""
        return self.scale.interval(enclosure.value)

    def choice(self, condition: Truth, a: Enclosure, b: Enclosure) -> Enclosure:
        """A where the condition holds, b where it fails, and both where it is open."""
        is_open = condition.holds & condition.fails
        value, slope = (
            _pick(condition.fails, _pick(is_open, self.scale.hull(x, y), y), x)
            for x, y in ((a.value, b.value), (a.slope, b.slope))
        )
        broken = np.where(condition.holds, a.broken, False)
        broken = broken | np.where(condition.fails, b.broken, False)
        return Enclosure(value, slope, broken | is_open)


def _pick(mask: BoolArray, a: Scaled, b: Scaled) -> Scaled:
    """A where the mask is true, otherwise b."""
    power, lo, hi = (np.where(mask, x, y) for x, y in zip(a, b, strict=True))
    return Scaled(power, lo, hi)


def _undefined(mask: BoolArray, enclosure: Enclosure) -> Enclosure:
    """The enclosure, with nothing known where the mask is true."""
    whole = natural(-np.inf, np.inf)
    return Enclosure(
        _pick(mask, whole, enclosure.value),
        _pick(mask, whole, enclosure.slope),
        enclosure.broken | mask,
    )


def _constant(run: _Run, step: Step) -> Enclosure | Truth:
    (value,) = step.operands
    return run.truth(value) if isinstance(value, bool) else run.number(value)


def _add(run: _Run, step: Step) -> Enclosure:
    """(a + b)' = a' + b'."""
    a, b = map(run.number, step.operands)
    return Enclosure(
        run.scale.add(a.value, b.value),
        run.scale.add(a.slope, b.slope),
        a.broken | b.broken,
    )


def _mul(run: _Run, step: Step) -> Enclosure:
    """(ab)' = a'b + ab'."""
    a, b = map(run.number, step.operands)
    scale = run.scale
    slope = scale.add(scale.mul(a.slope, b.value), scale.mul(a.value, b.slope))
    return Enclosure(scale.mul(a.value, b.value), slope, a.broken | b.broken)


def _div(run: _Run, step: Step) -> Enclosure:
    """(a/b)' = (a' - (a/b) b') / b; nothing is known where b may be 0."""
    a, b = map(run.number, step.operands)
    scale = run.scale
    inverse, pole = scale.reciprocal(b.value)
    value = scale.mul(a.value, inverse)
    fall = scale.mul(number(-1.0), scale.mul(value, b.slope))
    slope = scale.mul(scale.add(a.slope, fall), inverse)
    return Enclosure(value, slope, a.broken | b.broken | pole)


def _integer_pow(run: _Run, step: Step) -> Enclosure:
    """(uⁿ)' = n uⁿ⁻¹ u'; for n < 0 of 1/u."""
    u = run.number(step.operands[0])
    exponent = dict(step.params)["y"]
    assert isinstance(exponent, int)
    scale, n = run.scale, abs(exponent)
    value = scale.integer_power(u.value, n)
    below = scale.integer_power(u.value, n - 1) if n > 1 else number(1.0)
    slope = scale.mul(scale.mul(number(float(n)), below), u.slope)
    if exponent > 0:
        return Enclosure(value, slope, u.broken)
    # (1/v)' = -v' / v²
    inverse, pole = scale.reciprocal(value)
    fall = scale.mul(scale.mul(number(-1.0), slope), scale.mul(inverse, inverse))
    return Enclosure(inverse, fall, u.broken | pole)


def _pow(run: _Run, step: Step) -> Enclosure:
    """(u^y)' = y u^(y-1) u' for u ≥ 0, and u > 0 if y < 0."""
    u = run.number(step.operands[0])
    y = dict(step.params)["y"]
    assert isinstance(y, float)
    scale = run.scale
    below = scale.mul(number(y), scale.real_power(u.value, y - 1.0))
    slope = scale.mul(below, u.slope)
    result = Enclosure(scale.real_power(u.value, y), slope, u.broken)
    lo, _ = run.interval(u)
    return _undefined((lo < 0) | ((lo == 0) & (y < 0)), result)


def _cbrt(run: _Run, step: Step) -> Enclosure:
    """(∛u)' = u' / (3 ∛u²)."""
    u = run.number(step.operands[0])
    scale = run.scale
    bounds = outward(np.cbrt(u.value.lo), np.cbrt(u.value.hi))
    value = Scaled(u.value.power / 3.0, *bounds)
    inverse, _ = scale.reciprocal(scale.integer_power(value, 2))
    slope = scale.mul(scale.mul(number(1.0 / 3.0), inverse), u.slope)
    return Enclosure(value, slope, u.broken)


def _log(run: _Run, step: Step) -> Enclosure:
    """(log u)' = u'/u for u > 0; log1p is that of 1 + u."""
    u = run.number(step.operands[0])
    scale = run.scale
    near_one = step.primitive == "log1p"
    argument = scale.add(u.value, number(1.0)) if near_one else u.value
    lo, hi = run.interval(u)
    least = -1.0 if near_one else 0.0
    log = np.log1p if near_one else np.log
    bounds = outward(log(np.maximum(lo, least)), log(np.maximum(hi, least)))
    inverse, _ = scale.reciprocal(argument)
    result = Enclosure(natural(*bounds), scale.mul(inverse, u.slope), u.broken)
    return _undefined(lo <= least, result)


def _smooth(run: _Run, step: Step) -> Enclosure:
    """F(u)' = F'(u) u', with the ranges of F and F' on the interval of u."""
    u = run.number(step.operands[0])
    lo, hi = run.interval(u)
    value, slope = (natural(*outward(*f(lo, hi))) for f in RANGES[step.primitive])
    return Enclosure(value, run.scale.mul(slope, u.slope), u.broken)


def _steps(run: _Run, step: Step) -> Enclosure:
    """A step function jumps unless both ends are on one step."""
    u = run.number(step.operands[0])
    ends = run.interval(u)
    lo, hi = (f(end) for f, end in zip(STEPS[step.primitive], ends, strict=True))
    return Enclosure(natural(lo, hi), number(0.0), u.broken | (lo != hi))


def _extremum(run: _Run, step: Step) -> Enclosure:
    """The first operand where the switch is ≥ 0, the second where it is ≤ 0.

    They meet where the switch is 0, so there is no jump. Almost everywhere on a set
    where both are equal their derivatives are equal, too.
    """
    a, b = map(run.number, step.operands[:2])
    bits = run.signs(step.operands[2])
    first, second = (bits & NEGATIVE) == 0, (bits & POSITIVE) == 0
    both = Truth(np.ones(1, bool), np.ones(1, bool))
    hull = run.choice(both, a, b)
    value = hull.value
    if step.primitive in ("max", "min"):
        _, low, high = value
        others = [run.scale.interval(x.value, value.power) for x in (a, b)]
        if step.primitive == "max":
            low = np.maximum(others[0][0], others[1][0])
        else:
            high = np.minimum(others[0][1], others[1][1])
        value = Scaled(value.power, low, high)
    else:
        value = Scaled(value.power, np.maximum(value.lo, 0.0), value.hi)
    value, slope = (
        _pick(first, x, _pick(second, y, z))
        for x, y, z in ((a.value, b.value, value), (a.slope, b.slope, hull.slope))
    )
    broken = np.where(first, a.broken, np.where(second, b.broken, a.broken | b.broken))
    return Enclosure(value, slope, broken)


def _compare(run: _Run, step: Step) -> Truth:
    bits = run.signs(step.operands[0])
    holds = _HOLDS[step.primitive]
    return Truth((bits & holds) != 0, (bits & ~holds & ANY) != 0)


def _and(run: _Run, step: Step) -> Truth:
    a, b = map(run.truth, step.operands)
    return Truth(a.holds & b.holds, a.fails | b.fails)


def _or(run: _Run, step: Step) -> Truth:
    a, b = map(run.truth, step.operands)
    return Truth(a.holds | b.holds, a.fails & b.fails)


def _not(run: _Run, step: Step) -> Truth:
    (a,) = map(run.truth, step.operands)
    return Truth(a.fails, a.holds)


def _select(run: _Run, step: Step) -> Enclosure:
    """The branch that is taken; a jump is possible where that is open."""
    condition, on_false, on_true = step.operands
    return run.choice(run.truth(condition), run.number(on_true), run.number(on_false))


_RULES: dict[str, Callable[[_Run, Step], Enclosure | Truth]] = {
    "constant": _constant,
    "add": _add,
    "mul": _mul,
    "div": _div,
    "integer_pow": _integer_pow,
    "pow": _pow,
    "cbrt": _cbrt,
    "log": _log,
    "log1p": _log,
    "max": _extremum,
    "min": _extremum,
    "abs": _extremum,
    "and": _and,
    "or": _or,
    "not": _not,
    "select_n": _select,
}
_RULES |= dict.fromkeys(RANGES, _smooth)
_RULES |= dict.fromkeys(STEPS, _steps)
_RULES |= dict.fromkeys(COMPARISONS, _compare)
