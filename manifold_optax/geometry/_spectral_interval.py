"""How far singular values lie outside an interval.

Two ways to it: an eigendecomposition, the fast way on a CPU, and matrix products alone,
the fast way on an accelerator.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, PerMatrix
from manifold_optax.linalg import polar
from manifold_optax.linalg._device import chosen_by_platform
from manifold_optax.linalg._leading import leading_triple
from manifold_optax.linalg._reductions import gram, identity_like, inner, symmetric


def distance_from_interval(
    x: Array, low: float, high: float, axis_name: AxisName = None
) -> PerMatrix:
    """Largest distance of a singular value from `[low, high]`, `[*batch]`; 0 inside."""
    if axis_name is None and x.shape[-2] < x.shape[-1]:
        return distance_from_interval(x.mT, low, high)
    facts = {"low": low, "high": high, "axis_name": axis_name}
    distance = chosen_by_platform(
        functools.partial(distance_by_eigh, **facts),
        functools.partial(distance_by_products, **facts),
    )
    return distance(x)


def distance_by_eigh(
    x: Array, low: float, high: float, axis_name: AxisName = None
) -> PerMatrix:
    """`distance_from_interval` of a tall matrix, by an eigendecomposition."""
    squares = jnp.linalg.eigvalsh(gram(x, axis_name))
    values = jnp.sqrt(jnp.maximum(squares, 0))
    off = jnp.maximum(values - high, low - values)
    return jnp.max(jnp.maximum(off, 0), axis=-1, initial=0)


def distance_by_products(
    x: Array, low: float, high: float, axis_name: AxisName = None
) -> PerMatrix:
    """The same by products alone, to some rounding units of the largest.

    Cost: 23 products of `n × n` matrices and `2·m·n²` FLOPs; where `low` is above 0
    twice as many and a polar factor, of whose root the least eigenvalue is found.
    """
    top = leading_triple(x, axis_name).norm
    off = jnp.maximum(top - high, 0)
    if low > 0 and x.shape[-1]:
        root = symmetric(inner(polar(x, axis_name=axis_name), x, axis_name))
        identity = identity_like(root)
        least = top - leading_triple(top * identity - root).norm
        off = jnp.maximum(off, low - least)
    return off[..., 0, 0]
