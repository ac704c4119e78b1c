"""LayerNorm, RMSNorm, GroupNorm, BatchNorm and L2 normalisation, by their algebra.

All are a linear numerator, x or x - m, over the root of a variance: the mean over the
same axes of its square, plus a number. Gains, in whatever order they are multiplied,
become a product after it.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax

from manifold_optax.modular._computation._graph import made_by, Operation, Value
from manifold_optax.modular._patterns._divisors import (
    as_divisor,
    Divisor,
    least,
    roots,
)
from manifold_optax.modular._patterns._layout import bare, identity, merged
from manifold_optax.modular._patterns._leaves import factors, Leaf, terms
from manifold_optax.modular._patterns._moments import (
    added,
    MEAN,
    MEAN_2,
    Moments,
    ONE,
    Reader,
    SLACK,
    SQUARE,
    structural,
    X,
)

_MOST_TERMS = 4
"""`x a + (b - m a)` is a sum of three; longer sums are no layers."""


@dataclasses.dataclass(frozen=True)
class _Quotient:
    """A numerator over the root of a variance of one value, times gains."""

    reader: Reader
    divisor: Divisor
    variance: Moments
    numerator: Moments
    gains: list[Leaf]

    @property
    def is_normal(self) -> bool:
        """Whether the numerator is what the variance is of."""
        a, b = self.numerator[X], self.numerator[MEAN]
        if self.numerator.terms.keys() - {X, MEAN} or not a:
            return False
        return b == 0 if not self.is_centred else abs(a + b) <= SLACK * abs(a)

    @property
    def is_centred(self) -> bool:
        """Whether the variance is that of x - m."""
        return self.variance[MEAN_2] != 0


def normalization(value: Value) -> Operation | None:
    """The layer that a value is the result of.

    Args:
        value: any value of a traced graph.

    Returns:
        An operation whose result is the value. `"normalize"` has the operand x and
        the parameters `axes`, `centred`, `epsilon`, `scale`, `offset` and `floor`: the
        result is `scale (x - m) / max(sqrt(v + epsilon) + offset, floor)`, where v is
        the mean over the axes of `(x - m)²`, and m is 0 where it is not centred.
        `"mul"`, `"div"`, `"reshape"` and `"add"` have such a result as an operand.
        `None` for any other value.
    """
    operation = value.operation
    if operation is None or not value.is_float:
        return None
    if operation.name in ("mul", "div"):
        for quotient in _quotients(value):
            if quotient.is_normal:
                return _as_operation(value, quotient)
    if operation.name in ("add", "sub"):
        return _folded(value)
    return None


def _quotients(value: Value) -> Iterator[_Quotient]:
    """The ways to read a product as a quotient."""
    for leaf in factors(value)[1]:
        below = as_divisor(leaf)
        for root in roots(below.square) if below else ():
            reader = Reader(root)
            quotient = _quotient(value, reader, bare(below.square)) if below else None
            if quotient is not None:
                yield quotient


def _quotient(value: Value, reader: Reader, square: Value) -> _Quotient | None:
    """A product as a quotient over the root of `square`, a variance of the root."""

    def is_numerator(leaf: Leaf) -> bool:
        found = reader.read(leaf.value)
        return (
            found is not None
            and not found.terms.keys() - {X, MEAN}
            and found.terms != {}
        )

    number, leaves = factors(value, is_numerator)
    divisor, numerator, gains = None, None, []
    for leaf in leaves:
        below = as_divisor(leaf)
        if divisor is None and below and _alike(reader, below.square, square):
            divisor = below
        elif numerator is None and leaf.weight == 1 and is_numerator(leaf):
            numerator = _along(leaf.path, reader.read(leaf.value))
        else:
            gains.append(leaf)
    if divisor is None or numerator is None:
        return None
    floor, inner = least(divisor.square)
    variance = _along(divisor.path, reader.read(inner))
    if variance is None or not variance.is_variance or not _is_plain(variance):
        return None
    if merged(variance.layout, numerator.layout) is None:
        return None
    if numerator.axes not in (None, variance.axes):
        return None
    low = max(divisor.floor, floor + divisor.offset if floor else 0.0)
    return _Quotient(
        reader,
        dataclasses.replace(divisor, floor=low),
        variance,
        dataclasses.replace(
            numerator,
            terms={
                key: number / divisor.factor * c for key, c in numerator.terms.items()
            },
        ),
        gains,
    )


def _alike(reader: Reader, one: Value, other: Value) -> bool:
    """Whether two squares are one value, or the same polynomial written twice."""
    if bare(one) is bare(other):
        return True
    a, b = reader.read(one), reader.read(other)
    return a is not None and b is not None and a.axes is not None and a == b


def _is_plain(variance: Moments) -> bool:
    """Whether it is q or q - m², times a number, plus a number."""
    a, b = variance[SQUARE], variance[MEAN_2]
    return b == 0 or abs(a + b) <= SLACK * a


def _along(path: Sequence[Operation], x: Moments | None) -> Moments | None:
    for operation in path:
        x = None if x is None else structural(operation, x)
    return x


def _as_operation(value: Value, quotient: _Quotient) -> Operation | None:
    """A normal quotient as operations; the last of them makes `value`."""
    root, variance, divisor = quotient.reader.root, quotient.variance, quotient.divisor
    flat = [factor for axis in quotient.numerator.layout for factor in axis]
    own = [factor for axis in identity(root.shape) for factor in axis]
    if sorted(flat, key=str) != sorted(own, key=str):
        return None  # Broadcast along a new axis.
    size = math.sqrt(variance[SQUARE])
    params = {
        "axes": tuple(sorted(variance.axes or ())),
        "centred": quotient.is_centred,
        "epsilon": variance[ONE] / variance[SQUARE],
        "scale": quotient.numerator[X] / size,
        "offset": divisor.offset / size,
        "floor": divisor.floor / size,
    }
    steps: list[tuple[str, tuple[Value, ...], dict[str, object], tuple[int, ...]]] = [
        ("normalize", (root,), params, root.shape)
    ]
    if flat != own:  # Transposed on the way.
        narrow = tuple(size for _, size in own)
        steps.append(("reshape", (), _reshape(narrow), narrow))
        order = tuple(own.index(factor) for factor in flat)
        narrow = tuple(size for _, size in flat)
        steps.append(("transpose", (), {"permutation": order}, narrow))
    if value.shape != steps[-1][-1]:
        steps.append(("reshape", (), _reshape(value.shape), value.shape))
    for gain in quotient.gains:
        name = "mul" if gain.weight == 1 else "div"
        steps.append((name, (gain.placed(),), {}, value.shape))
    return _chain(value, steps)


def _chain(
    value: Value,
    steps: list[tuple[str, tuple[Value, ...], dict[str, object], tuple[int, ...]]],
) -> Operation:
    """Operations one after another; each takes the result before as first operand."""
    sources = value.operation.sources if value.operation is not None else ()
    before: tuple[Value, ...] = ()
    for name, more, params, shape in steps[:-1]:
        before = made_by(
            name,
            (*before, *more),
            params,
            [(shape, value.dtype)],
            primitive=_PRIMITIVES.get(name),
            sources=sources,
        )
    name, more, params, _ = steps[-1]
    return Operation(
        name,
        (*before, *more),
        params,
        results=[value],
        primitive=_PRIMITIVES.get(name),
        sources=sources,
    )


def _reshape(shape: tuple[int, ...]) -> dict[str, object]:
    return {"new_sizes": shape, "dimensions": None, "sharding": None}


_PRIMITIVES = {
    "add": jax.lax.add_p,
    "div": jax.lax.div_p,
    "mul": jax.lax.mul_p,
    "reshape": jax.lax.reshape_p,
    "sub": jax.lax.sub_p,
    "transpose": jax.lax.transpose_p,
}


def _folded(value: Value) -> Operation | None:
    """`x a - m a`, with or without a bias: a gain multiplied in before the mean."""
    parts = terms(value)
    if not 2 <= len(parts) <= _MOST_TERMS:
        return None
    for first in parts:
        for quotient in _quotients(first.value) if not first.path else ():
            if not quotient.is_centred or quotient.numerator[MEAN]:
                continue
            for second in parts:
                whole = _with_mean(quotient, first, second)
                if whole is not None:
                    rest = [part for part in parts if part not in (first, second)]
                    return _with_bias(value, whole, rest)
    return None


def _with_mean(quotient: _Quotient, first: Leaf, second: Leaf) -> _Quotient | None:
    """The quotient and a second term with the same gains, as one quotient."""
    if second is first:
        return None
    square = bare(quotient.divisor.square)
    other = _quotient(second.value, quotient.reader, square)
    if other is None or other.numerator[X]:
        return None
    if [_key(gain) for gain in other.gains] != [_key(gain) for gain in quotient.gains]:
        return None
    mean = _along(second.path, other.numerator)
    numerator = mean and added(
        quotient.numerator, mean, float(first.weight * second.weight)
    )
    if not numerator:
        return None
    sign = {key: first.weight * c for key, c in numerator.terms.items()}
    whole = dataclasses.replace(
        quotient, numerator=dataclasses.replace(numerator, terms=sign)
    )
    return whole if whole.is_normal else None


def _key(gain: Leaf) -> tuple[Value, int]:
    return gain.value, gain.weight


def _with_bias(value: Value, quotient: _Quotient, rest: list[Leaf]) -> Operation | None:
    """The quotient as operations, and then the terms that are added to it."""
    if not rest:
        return _as_operation(value, quotient)
    normal = Value(value.shape, value.dtype)
    made = _as_operation(normal, quotient)
    if made is None:
        return None
    (before,) = made_by(
        made.name,
        made.operands,
        made.params,
        [(value.shape, value.dtype)],
        primitive=made.primitive,
        sources=value.operation.sources if value.operation is not None else (),
    )
    steps = [
        ("add" if part.weight == 1 else "sub", (part.placed(),), {}, value.shape)
        for part in rest
    ]
    name, more, params, shape = steps[0]
    return _chain(value, [(name, (before, *more), params, shape), *steps[1:]])
