"""The values of formulas of sizes, computed with arrays that may be traced.

All numbers are logarithms to base 2, so that products of hundreds of norms neither
overflow nor vanish. Every step is rounded up by more than its error in float32. Hence
the result is a bound, and the arithmetic costs it about 1e-6 for each step.

Formulas become a table with a row for each step, and one compiled loop goes through its
rows. As operations of their own, the steps of twelve layers (hundreds, or a thousand
for a change) took longer to compile than the norms take to compute.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from manifold_optax.modular._bounds._number import Number, Size
from manifold_optax.modular._certificates._live_norms import is_finite

EPS = 2.0**-23
"""Spacing of float32 at 1."""

_STEP = 8 * EPS
"""Allowance of one step, relative to |log₂| + 1: `log2`, `exp2` and a sum err by less
than 4 units in the last place each, of a result that is no larger."""

_KINDS = ("mul", "add", "hypot", "max", "min", "steps")
"""What a row of a table does with its two operands, by its first column."""


class Evaluation:
    """Formulas evaluated for one set of weights, each norm of which is taken once."""

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
        self._finite = _all_finite(list(arrays))
        self._norms: dict[Hashable, Array] = {}

    def value(self, size: Size) -> Float32[Array, "..."]:
        """The value, rounded up; infinite where it is beyond float32."""
        return self.values([size])[0]

    def values(self, sizes: Sequence[Size]) -> Float32[Array, "sizes ..."]:
        """The values of several formulas, which share what they have in common."""
        table = _table(sizes)
        norms = jnp.broadcast_arrays(*self._of(table.names)) if table.names else ()
        stack = jnp.stack(norms) if norms else jnp.zeros(0, jnp.float32)
        found = _run(stack, table.constants, table.rows, table.limits)
        values = found[np.asarray(table.results)]
        return jnp.where(self._finite, values, jnp.inf)

    def number(self, size: Size) -> float:
        """The same as a float of Python, which reaches further; not inside `jit`."""
        if not self._finite:
            return math.inf
        table = _table([size])
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = [_up(np, np.log2(float(norm))) for norm in self._of(table.names)]
            logs += table.constants.tolist()
            for (kind, *places), limits in zip(table.rows, table.limits, strict=True):
                logs.append(_steps(np, *(logs[k] for k in places), *limits)[kind])
            log = float(_up(np, logs[table.results[0]]))
        return 2.0**log if log < 1024 else math.inf

    def _of(self, names: Sequence[Hashable]) -> list[Array]:
        missing = [name for name in names if name not in self._norms]
        found = self._norms_of(missing)
        self._norms.update(zip(missing, found, strict=True))
        return [self._norms[name] for name in names]


class _Table(NamedTuple):
    """Formulas as steps, each after those that it is made of.

    The norms have the first places, the constants those that follow, then the rows.

    Attributes:
        names: of the norms.
        constants: logarithms.
        rows: the kind, and the places of the two operands.
        limits: of a row of the kind `"steps"`, the largest first operand for which the
            second number counts, rather than the second operand.
        results: the places of the formulas.
    """

    names: tuple[Hashable, ...]
    constants: np.ndarray
    rows: np.ndarray
    limits: np.ndarray
    results: tuple[int, ...]


def _table(sizes: Sequence[Size]) -> _Table:
    roots = [size for size in sizes if isinstance(size, Number)]
    needed = list(_needed(roots))
    # Formulas that were made apart name the same norms.
    names = dict.fromkeys(x.data for x in needed if x.kind == "symbol")
    floats = {x for number in needed for x in number.operands} | set(sizes)
    floats = [*(x for x in floats if not isinstance(x, Number)), math.inf]
    order = [*names, *dict.fromkeys(map(float, floats))]
    places: dict[Any, int] = {x: place for place, x in enumerate(order)}
    rows: list[tuple[int, int, int]] = []
    limits: list[tuple[float, float]] = []

    def add(kind: str, x: int, y: int, limit: tuple[float, float]) -> int:
        rows.append((_KINDS.index(kind), x, y))
        limits.append(limit)
        return len(order) + len(rows) - 1

    for number in needed:
        if number.kind == "symbol":
            places[number] = places[number.data]
            continue
        place, *others = (places[x] for x in number.operands)
        if number.kind == "steps":
            argument, place = place, places[math.inf]
            for limit, value in reversed(number.data):  # type: ignore[arg-type]
                pair = (_log2(limit) - _STEP, _up(np, _log2(value)))
                place = add(number.kind, argument, place, pair)
        for other in others:
            place = add(number.kind, place, other, (0.0, 0.0))
        places[number] = place
    constants = [_log2(x) for x in order[len(names) :]]
    return _Table(
        tuple(names),
        np.asarray(constants, np.float32),
        np.asarray(rows, np.int32).reshape(-1, 3),
        np.asarray(limits, np.float32).reshape(-1, 2),
        tuple(places[size] for size in sizes),
    )


@jax.jit
def _all_finite(arrays: list[Array]) -> Bool[Array, ""]:
    finite = [is_finite(x) for x in arrays]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


@jax.jit
def _run(
    norms: Float32[Array, "..."],
    constants: Float32[Array | np.ndarray, " constants"],
    rows: Int32[Array | np.ndarray, "rows 3"],
    limits: Float32[Array | np.ndarray, "rows 2"],
) -> Float32[Array, "..."]:
    """The values at all places."""
    logs = _up(jnp, jnp.log2(norms))
    logs = jnp.where(jnp.isnan(logs), jnp.inf, logs)
    batch = norms.shape[1:]
    constants = jnp.reshape(constants, (-1, *(1 for _ in batch)))
    known = [logs, jnp.broadcast_to(constants, (len(constants), *batch))]
    room = jnp.zeros((len(rows), *batch), jnp.float32)
    first = len(norms) + len(constants)

    def step(values: Array, row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        (kind, left, right), (limit, value), place = row
        found = _steps(jnp, values[left], values[right], limit, value)
        one = jax.lax.select_n(kind, *(jnp.broadcast_to(x, batch) for x in found))
        return values.at[place].set(one), None

    places = first + jnp.arange(len(rows))
    steps = (jnp.asarray(rows), jnp.asarray(limits), places)
    values, _ = jax.lax.scan(step, jnp.concatenate([*known, room]), steps)
    return jnp.exp2(_up(jnp, values))


def numbers_of(size: Size) -> list[Number]:
    """All numbers of a formula."""
    return list(_needed([size])) if isinstance(size, Number) else []


def _needed(sizes: Sequence[Number]) -> Iterator[Number]:
    """The numbers of some formulas, each after those that it is made of."""
    stack = [(size, False) for size in reversed(sizes)]
    done: set[Number] = set()
    while stack:
        number, ready = stack.pop()
        if number in done:
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


def _steps(xp: Any, x: Any, y: Any, limit: Any, value: Any) -> list[Any]:
    """What each of `_KINDS` makes of two logarithms; `xp`: `jax.numpy` or `numpy`."""
    product = x + y
    return [
        # Nothing times anything, infinity even, is nothing.
        _up(xp, xp.where(xp.isnan(product), -xp.inf, product)),
        _add(xp, x, y),
        _add(xp, 2 * x, 2 * y) / 2,
        xp.maximum(x, y),
        xp.minimum(x, y),
        xp.where(x <= limit, value, y),
    ]


def _up(xp: Any, log: Any) -> Any:
    """A logarithm, rounded up by more than the error of one step."""
    return log + xp.where(xp.isfinite(log), _STEP * (xp.abs(log) + 1), 0.0)


def _add(xp: Any, x: Any, y: Any) -> Any:
    high, low = xp.maximum(x, y), xp.minimum(x, y)
    difference = xp.where(xp.isfinite(high), low - high, 0.0)
    both = high + xp.log2(1 + xp.exp2(difference))
    return _up(xp, xp.where(xp.isfinite(high), both, high))
