"""The linear maps of a region as arrays, from live parameters."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manifold_optax.linalg._reductions import divisor, matmul
from manifold_optax.modular._certificates._linear_steps import applied
from manifold_optax.modular._certificates._region import Region
from manifold_optax.modular._certificates._weights import computed
from manifold_optax.modular._computation._graph import Value


class Gram(NamedTuple):
    """`x xᵀ` for matrices `scale · x`, and what it takes to bound their norms by it."""

    square: Float[Array, "b n n"]
    scale: Float[Array, ""]
    rounding: Float[Array, ""]
    left_out: Float[Array, ""]


def grams(
    region: Region, sources: Sequence[Value], arrays: dict[Value, Array], rows: int
) -> list[Gram]:
    """The maps from some sources to the target, by their smaller sides.

    Args:
        region: the affine part.
        sources: some of its sources.
        arrays: the parameters, and what was made of them.
        rows: how many entries of the target are measured together.

    Returns:
        For each source the Gram matrices of its maps to these entries.
    """
    return _grams(_constants(region, arrays), region, tuple(sources), rows)


def distances(
    region: Region, sources: Sequence[Value], arrays: dict[Value, Array]
) -> list[Float[Array, "out out"]]:
    """Euclidean norms of the differences of every two rows of each map, rounded up."""
    return _distances(_constants(region, arrays), region, tuple(sources))


def norm_of_gram(gram: Gram, norm: Float[Array, ""]) -> Float[Array, ""]:
    """A bound of the norm of matrices by one of their Gram matrices."""
    eps = float(jnp.finfo(gram.square.dtype).eps)
    bound = gram.scale * jnp.sqrt(norm + gram.rounding) * (1 + 8 * eps) + gram.left_out
    return jnp.where(jnp.isnan(bound), jnp.inf, bound).astype(jnp.float32)


# Compiled as one program, as `live_norm` is: there are dozens of small operations.
@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _grams(
    constants: list[Array], region: Region, sources: tuple[Value, ...], rows: int
) -> list[Gram]:
    maps = _maps(region, sources, constants)
    return [_gram(x.reshape(-1, rows, x.shape[1])) for x in maps]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _distances(
    constants: list[Array], region: Region, sources: tuple[Value, ...]
) -> list[Array]:
    return [_row_distances(x) for x in _maps(region, sources, constants)]


def _gram(x: Float[Array, "b out in"]) -> Gram:
    scale = divisor(jnp.max(jnp.abs(x)))
    x = x / scale
    x = x if x.shape[1] <= x.shape[2] else jnp.swapaxes(x, 1, 2)
    square = matmul(x, jnp.swapaxes(x, 1, 2))
    limits = jnp.finfo(x.dtype)
    # Each entry is a sum of products, and all moduli of these together are at most the
    # trace; for the factor see `_live_norms._allowance`.
    trace = jnp.max(jnp.trace(square, axis1=1, axis2=2))
    terms = 2 * math.sqrt(x.shape[2]) + 2 * math.sqrt(x.shape[1]) + 16
    entries = math.sqrt(x.shape[1] * x.shape[2])
    # Subnormal entries count as zeros here.
    left_out = 4 * entries * float(limits.tiny) * jnp.maximum(scale, 1)
    left_out = jnp.where(trace > 0, left_out, 0)
    return Gram(square, scale, terms * float(limits.eps) * trace, left_out)


def _row_distances(rows: Float[Array, "n m"]) -> Float[Array, "n n"]:
    limits, scale = jnp.finfo(rows.dtype), divisor(jnp.max(jnp.abs(rows)))
    scaled, eps = rows / scale, float(limits.eps)

    def of(row: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(row[None] - scaled), axis=1))

    found = (
        scale
        * jax.lax.map(of, scaled)
        * (1 + (2 * math.sqrt(rows.shape[1]) + 16) * eps)
    )
    # Each scaled entry errs by half a unit in the last place of 1.
    found += math.sqrt(rows.shape[1]) * 2 * eps * scale
    return jnp.where(jnp.isnan(found), jnp.inf, found).astype(jnp.float32)


def _maps(
    region: Region, sources: Sequence[Value], constants: Sequence[Array]
) -> list[Float[Array, "out in"]]:
    """Matrices from all entries of each source to all entries of the target.

    Row by row for a target that is smaller than a source, else column by column.
    """
    rows = math.prod(region.target.shape)
    wide = [x for x in sources if math.prod(x.shape) >= rows]
    found = dict(zip(wide, _by_rows(region, wide, constants), strict=True))
    for source in sources:
        if source not in found:
            found[source] = _by_columns(region, source, constants)
    return [found[source] for source in sources]


def _by_rows(
    region: Region, sources: Sequence[Value], constants: Sequence[Array]
) -> list[Array]:
    if not sources:
        return []
    shape, rows = region.target.shape, math.prod(region.target.shape)
    zeros = [jnp.zeros(x.shape, _dtype(region)) for x in sources]
    _, back = jax.vjp(_function(region, sources, constants), *zeros)
    found = jax.vmap(back)(jnp.eye(rows, dtype=_dtype(region)).reshape(rows, *shape))
    return [x.reshape(rows, -1) for x in found]


def _by_columns(region: Region, source: Value, constants: Sequence[Array]) -> Array:
    columns, dtype = math.prod(source.shape), _dtype(region)
    function = _function(region, [source], constants)
    zero = jnp.zeros(source.shape, dtype)

    def column(direction: Array) -> Array:
        return jax.jvp(function, (zero,), (direction,))[1].reshape(-1)

    units = jnp.eye(columns, dtype=dtype).reshape(columns, *source.shape)
    return jax.vmap(column, out_axes=1)(units)


def _constants(region: Region, arrays: dict[Value, Array]) -> list[Array]:
    dtype = _dtype(region)
    return [_widened(computed(x, arrays), dtype) for x in region.constants]


def _function(
    region: Region, sources: Sequence[Value], constants: Sequence[Array]
) -> Callable[..., Array]:
    """The target as a function of some sources, the others 0."""
    weights = dict(zip(region.constants, constants, strict=True))

    def value(*given: Array) -> Array:
        known = {**weights, **dict(zip(sources, given, strict=True))}
        return _value(region, known)

    return value


def _value(region: Region, known: Mapping[Value, Array]) -> Array:
    values = dict(known)

    def of(operand: Value) -> Array:
        if operand not in values:
            values[operand] = jnp.zeros(operand.shape, _dtype(region))
        return values[operand]

    for operation, slope in region.steps:
        if slope is None:
            results = applied(operation, [of(x) for x in operation.operands])
        else:
            results = [slope * of(operation.operands[0])]
        for result, array in zip(operation.results, results, strict=True):
            # A remainder is added to what its step is besides.
            values[result] = array + values[result] if result in values else array
    return of(region.target)


def _dtype(region: Region) -> jnp.dtype:
    double = region.target.dtype == jnp.float64
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def _widened(x: Array, dtype: jnp.dtype) -> Array:
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x
