"""Norms and quotients of float32 matrices, correct to a rounding unit without float64.

A number is kept as the sum of two float32 numbers, of which the second is the rounding
error of the first. Every step whose rounding would count is exact instead:

- A number with 12 significant bits has an exact square, and so have products of two.
- Multiples of `top/2²⁴` whose sum is at most `top` are added exactly, in any order.
- Scaling by a power of two is exact.

Exact products and sums come out the same whatever order or fused operation a compiler
chooses, and no step is of the form `(a + b) − a`, which a compiler could simplify.

Sources: T. Dekker, "A floating-point technique for extending the available precision"
(Numer. Math. 18, 1971): products and quotients by halves; S. Rump, T. Ogita, S. Oishi,
"Accurate floating-point summation, part I" (SIAM J. Sci. Comput. 31, 2008): sums by
extraction of multiples.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from manifold_optax._typing import AxisName
from manifold_optax.linalg._reductions import divisor, dot

_BITS = 24
"""Significant bits of a float32 (IEEE 754)."""

_HALF = 11
"""Stored significant bits of half a float32: with the implicit one 12, half of 24."""

_LEAST_TOP = 2.0**-96
"""Least power of two that a sum is measured by, for a matrix with a largest entry near
1. The sum of a row below it adds nothing to a sum of squares of at least 0.4, and
`top/2²⁴` stays far above the smallest normal number, 2⁻¹²⁶."""


class _Norm(NamedTuple):
    """A norm as `scale·(high + low)`, and the array divided by `scale`."""

    scaled: Array
    scale: Array
    high: Array
    low: Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def compensated_norm(x: Float32[Array, "..."], axes: tuple[int, ...]) -> Array:
    """Returns the Frobenius norm over some axes, which are kept.

    It errs by 0.51 units in the last place, at any scale from 1e-30 to 1e30. A zero
    array gives 0, a non-finite one NaN.

    Args:
        x: an array of float32.
        axes: the axes that make up one matrix.

    Cost: 20 operations an entry in three passes, in place of 2 in one.
    """
    norm = _norm(x, axes, None)
    return norm.scale * (norm.high + norm.low)


@compensated_norm.defjvp
def _(axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> Any:
    (x,), (change,) = primals, tangents
    norm = compensated_norm(x, axes)
    unit = x / jnp.where(norm == 0, 1, norm)
    return norm, jnp.sum(unit * change, axes, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def compensated_normalize(
    x: Float32[Array, "*batch m n"], axis_name: AxisName
) -> Array:
    """Returns `x / ‖x‖_F`, every entry rounded once, for entries of any scale.

    So the rounding errors of the entries are independent of one another, and the norm
    of the result differs from 1 by less than a rounding unit. Zero stays zero; a matrix
    with a non-finite entry becomes NaN everywhere.

    Args:
        x: matrices of float32.
        axis_name: mesh axes over which the rows are split, inside `shard_map`.

    Cost: 40 operations an entry in four passes; with split rows two all-gathers, of one
    and of two numbers for each device and matrix.
    """
    norm = _norm(x, (-2, -1), axis_name)
    return _divided(norm.scaled, norm.high, norm.low)


@compensated_normalize.defjvp
def _(axis_name: AxisName, primals: tuple[Array], tangents: tuple[Array]) -> Any:
    (x,), (change,) = primals, tangents
    norm = _norm(x, (-2, -1), axis_name)
    unit = _divided(norm.scaled, norm.high, norm.low)
    length = norm.scale * (norm.high + norm.low)
    slope = (change - unit * dot(unit, change, axis_name)) / jnp.where(
        length == 0, 1, length
    )
    return unit, slope


# Traced once for all matrices of one shape.
@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _norm(x: Array, axes: tuple[int, ...], axis_name: AxisName) -> _Norm:
    largest = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
    if axis_name is not None:
        largest = jnp.max(jax.lax.all_gather(largest, axis_name), axis=0)
    scale = _power_of_two(divisor(largest))
    scaled = x * _inverse(scale)
    half, rest = _halves(scaled)
    high, low = half * half, rest * (scaled + half)
    for axis in axes:
        high, low = _sum(high, low, axis)
    if axis_name is not None:
        both = jax.lax.all_gather(jnp.stack([high, low]), axis_name)
        high, low = (x[0] for x in _sum(both[:, 0], both[:, 1], 0))
    return _Norm(scaled, scale, *_root(high, low))


def _sum(high: Array, low: Array, axis: int) -> tuple[Array, Array]:
    """The sum of `high + low` along an axis, which is kept, for `high ≥ 0`.

    The multiples of a unit in `high` are added exactly. What is left of each entry is
    below the unit, and is added with the low parts: for n entries the error is n·2⁻⁴⁶
    of the sum.
    """
    total = jnp.sum(high, axis, keepdims=True)
    # The next power of two but one, or that one: no sum of multiples exceeds it.
    top = jnp.maximum(2 * _power_of_two(total), _LEAST_TOP)
    unit = top * 2.0**-_BITS
    whole = jnp.floor(high * _inverse(unit)) * unit
    rest = (high - whole) + low
    return jnp.sum(whole, axis, keepdims=True), jnp.sum(rest, axis, keepdims=True)


def _root(high: Array, low: Array) -> tuple[Array, Array]:
    """The square root of `high + low`, by a step of Newton's method from float32."""
    root = jnp.sqrt(high + low)
    half, rest = _halves(root)
    missing = ((high - half * half) - rest * (root + half)) + low
    return root, missing / jnp.where(root == 0, 1, 2 * root)


@functools.partial(jax.jit, inline=True)
def _divided(x: Array, high: Array, low: Array) -> Array:
    """`x / (high + low)`, rounded once: a quotient and what its product leaves of x."""
    divided_by = jnp.where(high == 0, 1, high)
    quotient = x / divided_by
    (a, b), (c, d) = _halves(quotient), _halves(divided_by)
    left = ((x - a * c) - a * d - b * c) - b * d - quotient * low
    return quotient + left / divided_by


def _halves(x: Array) -> tuple[Array, Array]:
    """`x` as a sum of two numbers of 12 significant bits."""
    half = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=_HALF)
    return half, x - half


def _power_of_two(x: Array) -> Array:
    """The power of two nearest to a number ≥ 0, which is at least 3/4 of it."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=0)


def _inverse(power: Array) -> Array:
    """The inverse of a power of two, exact also where division is not.

    Its exponent has the other sign: bits 23 to 30 hold the exponent plus 127.
    """
    bits = jax.lax.bitcast_convert_type(power, jnp.int32)
    return jax.lax.bitcast_convert_type(jnp.int32(254 << 23) - bits, jnp.float32)
