"""What singular values have above a share of the largest one.

Two ways to it: an eigendecomposition, the fast way on a CPU, and matrix products alone,
the fast way on an accelerator.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName
from manifold_optax.linalg import polar
from manifold_optax.linalg._device import chosen_by_platform
from manifold_optax.linalg._leading import largest_eigenvalue_by_products
from manifold_optax.linalg._positive_part import positive_part_by_products
from manifold_optax.linalg._reductions import (
    gram,
    identity_like,
    inner,
    matmul,
    near_one,
    nonzero,
    symmetric,
)


def spectral_shrinkage(x: Array, rate: Array, axis_name: AxisName = None) -> Array:
    """What leads from `x` to the nearest matrix of norm `(1 − rate)·‖x‖₂`.

    Args:
        x: `[*batch, m, n]` of any scale, in at least float32.
        rate: number in [0, 1), of the dtype of `x`.
        axis_name: mesh axes over which the rows are split, inside `jax.shard_map`.
    """
    if axis_name is None and x.shape[-2] < x.shape[-1]:
        return spectral_shrinkage(x.mT, rate).mT
    scaled, scale = near_one(x, axis_name)
    excess = chosen_by_platform(
        functools.partial(excess_by_eigh, axis_name=axis_name),
        functools.partial(excess_by_products, axis_name=axis_name),
    )
    return -(scale * excess(scaled, rate))


def excess_by_eigh(x: Array, rate: Array, axis_name: AxisName = None) -> Array:
    """What is above the bound, `U max(S − (1 − rate)·σ₁, 0) Vᵀ`, of a tall matrix.

    In closed form, where a difference would lose small rates to rounding. Cost: an
    eigendecomposition and `4·m·n²` FLOPs.
    """
    values, vectors = jnp.linalg.eigh(gram(x, axis_name))
    sizes = jnp.sqrt(jnp.maximum(values, 0))
    relative = sizes / nonzero(sizes[..., -1:])
    shares = jnp.maximum(rate - (1 - relative), 0) / nonzero(relative)
    return matmul(x, matmul(vectors * shares[..., None, :], vectors.mT))


def excess_by_products(x: Array, rate: Array, axis_name: AxisName = None) -> Array:
    """The same by products alone, of the root `H` in `x = QH`.

    It errs by some rounding units of the largest singular value, as that way does, and
    leaves 1e-12 where nothing is taken. Cost: a polar factor, `4·m·n²` FLOPs and 65
    products of `n × n` matrices in float32.
    """
    factor = polar(x, axis_name=axis_name)
    root = symmetric(inner(factor, x, axis_name))
    # The root is positive semidefinite. Its own largest eigenvalue, not that of the
    # Gram matrix: what rounding changed in the root then cancels.
    largest = largest_eigenvalue_by_products(root)
    identity = identity_like(root)
    # In this order: `1 − rate` would round a small rate.
    above = (root - largest * identity) + rate * largest * identity
    return matmul(factor, positive_part_by_products(above))
