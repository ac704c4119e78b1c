"""The linear maps of a region as arrays, from live parameters."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manifold_optax.modular._bounds._mixed_norm import mixed_norm
from manifold_optax.modular._certificates._linear_steps import applied
from manifold_optax.modular._certificates._live_norms import live_norms
from manifold_optax.modular._certificates._region import Region
from manifold_optax.modular._certificates._weights import computed
from manifold_optax.modular._computation._graph import Value


def map_norms(
    region: Region,
    sources: Iterable[Value],
    arrays: dict[Value, Array],
    *,
    is_output: bool,
) -> list[Float[Array, ""]]:
    """Norms of the maps from some sources to the target of a region.

    Euclidean over all entries of the source and, of an inner value, of the target; of
    an output over its last axis, the largest over the others.

    Args:
        region: the affine part.
        sources: some of its sources.
        arrays: the parameters, and what was made of them.
        is_output: whether the target is the output.

    Returns:
        Strict bounds for the maps as they were computed, in the order of the sources.
    """
    maps = linear_maps(region, sources, arrays)
    if is_output:
        last = region.target.shape[-1] if region.target.shape else 1
        maps = [x.reshape(-1, last, x.shape[1]) for x in maps]
    marks = "boi" if is_output else "oi"
    return live_norms([(x, mixed_norm(x.shape, marks)) for x in maps])


def linear_maps(
    region: Region, sources: Iterable[Value], arrays: dict[Value, Array]
) -> list[Float[Array, "out in"]]:
    """Matrices from all entries of each source to all entries of the target.

    Row by row for a target that is smaller than a source, else column by column.
    """
    sources = list(sources)
    rows = math.prod(region.target.shape)
    wide = [x for x in sources if math.prod(x.shape) >= rows]
    found = dict(zip(wide, _by_rows(region, wide, arrays), strict=True))
    for source in sources:
        if source not in found:
            found[source] = _by_columns(region, source, arrays)
    return [found[source] for source in sources]


def _by_rows(
    region: Region, sources: Sequence[Value], arrays: dict[Value, Array]
) -> list[Array]:
    if not sources:
        return []
    shape, rows = region.target.shape, math.prod(region.target.shape)
    zeros = [jnp.zeros(x.shape, _dtype(region)) for x in sources]
    _, back = jax.vjp(_function(region, sources, arrays), *zeros)
    found = jax.vmap(back)(jnp.eye(rows, dtype=_dtype(region)).reshape(rows, *shape))
    return [x.reshape(rows, -1) for x in found]


def _by_columns(
    region: Region, source: Value, arrays: dict[Value, Array]
) -> Array:
    columns, dtype = math.prod(source.shape), _dtype(region)
    function, zero = _function(region, [source], arrays), jnp.zeros(source.shape, dtype)

    def column(direction: Array) -> Array:
        return jax.jvp(function, (zero,), (direction,))[1].reshape(-1)

    units = jnp.eye(columns, dtype=dtype).reshape(columns, *source.shape)
    return jax.vmap(column, out_axes=1)(units)


def _function(
    region: Region, sources: Sequence[Value], arrays: dict[Value, Array]
) -> Callable[..., Array]:
    """The target as a function of some sources, the others 0."""
    dtype = _dtype(region)
    constants: dict[Value, Array] = {}
    made = {result for step, _ in region.steps for result in step.results}
    for operation, slope in region.steps:
        for operand in operation.operands if slope is None else ():
            if operand not in made and operand not in region.sources:
                constants[operand] = _widened(computed(operand, arrays), dtype)

    def value(*given: Array) -> Array:
        known = {**constants, **dict(zip(sources, given, strict=True))}
        return _value(region, known, dtype)

    return value


def _value(region: Region, known: Mapping[Value, Array], dtype: jnp.dtype) -> Array:
    values = dict(known)

    def of(operand: Value) -> Array:
        if operand not in values:
            values[operand] = jnp.zeros(operand.shape, dtype)
        return values[operand]

    for operation, slope in region.steps:
        given = [of(x) for x in operation.operands]
        if slope is None:
            results = applied(operation, given)
        else:
            results = [slope * given[0]]
        for result, array in zip(operation.results, results, strict=True):
            # A remainder is added to what its step is besides.
            values[result] = array + values[result] if result in values else array
    return of(region.target)


def _dtype(region: Region) -> jnp.dtype:
    double = region.target.dtype == jnp.float64
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def _widened(x: Array, dtype: jnp.dtype) -> Array:
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x
