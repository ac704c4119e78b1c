"""The value of a formula of sizes, computed with arrays that may be traced.

All numbers are logarithms to base 2, so that products of hundreds of norms neither
overflow nor vanish. Every step is rounded up by more than its error in float32. Hence
the result is a bound, and the arithmetic costs it about 1e-6 for each step.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float32

from manifold_optax.modular._bounds._number import Number, Size

EPS = 2.0**-23
"""Spacing of float32 at 1."""

_STEP = 8 * EPS
"""Allowance of one step, relative to |log₂| + 1: `log2`, `exp2` and a sum err by less
than 4 units in the last place each, of a result that is no larger."""


class Evaluation:
    """Formulas evaluated for one set of weights; what they share is computed once."""

    def __init__(
        self,
        norms_of: Callable[[Sequence[Any]], Sequence[Float32[Array, "..."]]],
        arrays: Sequence[Array],
    ) -> None:
        """Takes what the symbols mean, and the weights that the result depends on.

        Args:
            norms_of: names → upper bounds of these norms. All of a formula are asked
                for at once, so that those of one shape share a program.
            arrays: the weights. Where one is not finite, nothing is bounded, though a
                layer of zeros stand before it.
        """
        self._norms_of = norms_of
        self._finite = [jnp.isfinite(x).all() for x in arrays]
        self._logs: dict[Number, Array] = {}
        self._norms: dict[Hashable, Array] = {}

    def value(self, size: Size) -> Float32[Array, "..."]:
        """The value, rounded up; infinite where it is beyond float32."""
        value = jnp.exp2(_up(self.log2(size)))
        finite = jnp.all(jnp.stack(self._finite)) if self._finite else True
        return jnp.where(finite, value, jnp.inf)

    def number(self, size: Size) -> float:
        """The same as a float of Python, which reaches further; not inside `jit`."""
        log = float(self.log2(size))
        if not all(self._finite):
            return math.inf
        return 2.0**log if log < 1024 else math.inf

    def log2(self, size: Size) -> Float32[Array, "..."]:
        """Its logarithm; -∞ for 0."""
        if not isinstance(size, Number):
            return jnp.asarray(_log2(size), jnp.float32)
        needed = list(_needed(size, self._logs))
        symbols = [number for number in needed if number.kind == "symbol"]
        # Formulas that were made apart name the same norms.
        names = dict.fromkeys(number.data for number in symbols)
        names = [name for name in names if name not in self._norms]
        norms = self._norms_of(names)
        self._norms.update(zip(names, norms, strict=True))
        for number in symbols:
            self._logs[number] = _up(jnp.log2(self._norms[number.data]))
        for number in needed:
            if number.kind != "symbol":
                self._logs[number] = self._of(number)
        return self._logs[size]

    def _of(self, number: Number) -> Array:
        given = [
            self._logs[x]
            if isinstance(x, Number)
            else jnp.asarray(_log2(x), jnp.float32)
            for x in number.operands
        ]
        if number.kind == "steps":
            return _steps(given[0], number.data)  # type: ignore[arg-type]
        factor = 2.0 if number.kind == "hypot" else 1.0
        result = given[0] * factor
        for other in given[1:]:
            result = _COMBINED[number.kind](result, other * factor)
        return result / factor


def numbers_of(size: Size) -> list[Number]:
    """All numbers of a formula."""
    return list(_needed(size, {})) if isinstance(size, Number) else []


def _needed(size: Number, known: dict[Number, Array]) -> Iterator[Number]:
    """The numbers of a formula, each after those that it is made of."""
    stack: list[tuple[Number, bool]] = [(size, False)]
    done: set[Number] = set()
    while stack:
        number, ready = stack.pop()
        if number in known or number in done:
            continue
        if ready:
            done.add(number)
            yield number
            continue
        stack.append((number, True))
        stack.extend((x, False) for x in number.operands if isinstance(x, Number))


def _log2(size: float) -> float:
    """The logarithm of a float of Python, which may be beyond float32."""
    return math.log2(size) if 0 < size < math.inf else (math.inf if size else -math.inf)


def _up(log: Array) -> Array:
    """A logarithm, rounded up by more than the error of one step."""
    return log + jnp.where(jnp.isfinite(log), _STEP * (jnp.abs(log) + 1), 0.0)


def _mul(a: Array, b: Array) -> Array:
    """The logarithm of a product, in which nothing times anything is nothing."""
    nothing = (a == -jnp.inf) | (b == -jnp.inf)
    return _up(jnp.where(nothing, -jnp.inf, a + b))


def _add(a: Array, b: Array) -> Array:
    high, low = jnp.maximum(a, b), jnp.minimum(a, b)
    difference = jnp.where(jnp.isfinite(high), low - high, 0.0)
    both = high + jnp.log2(1 + jnp.exp2(difference))
    return _up(jnp.where(jnp.isfinite(high), both, high))


def _steps(log: Array, table: tuple[tuple[float, float], ...]) -> Array:
    """The value at the first limit that is not exceeded."""
    result = jnp.full(log.shape, jnp.inf, jnp.float32)
    for limit, value in reversed(table):
        result = jnp.where(log <= _log2(limit) - _STEP, _log2(value), result)
    return _up(result)


_COMBINED: dict[str, Callable[[Array, Array], Array]] = {
    "mul": _mul,
    "add": _add,
    "hypot": _add,
    "max": jnp.maximum,
    "min": jnp.minimum,
}
