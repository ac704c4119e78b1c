"""Products, norms and maxima over the long side of a matrix.

Every reduction that crosses the rows of a matrix stands here, so that a matrix whose
rows are split over mesh axes is handled in one place: each function takes `axis_name`
and adds (or maximises) over those axes. What comes out is small: `n × n` or a number.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from manifold_optax._typing import AxisName, Matrix, Square
from manifold_optax.linalg._symmetric import gram_product

_HIGHEST = jax.lax.Precision.HIGHEST


def matmul(x: Array, y: Array) -> Array:
    """Returns `x y` at full precision, whatever the default matmul precision is."""
    return jnp.matmul(x, y, precision=_HIGHEST)


def inner(
    x: Matrix, y: Float[Array, "*batch m k"], axis_name: AxisName = None
) -> Float[Array, "*batch n k"]:
    """Returns `xᵀ y`, `[*batch, n, k]`, at full precision; the rows may be split."""
    return _sum(matmul(x.mT, y), axis_name)


def gram(x: Matrix, axis_name: AxisName = None) -> Square:
    """Gram matrix `xᵀ x`, exactly symmetric, at full precision."""
    return symmetric(_sum(gram_product(x, -2), axis_name))


def symmetric(x: Square) -> Square:
    """Symmetric part `(x + xᵀ)/2`."""
    return (x + x.mT) / 2


def skew(x: Square) -> Square:
    """Skew-symmetric part `(x − xᵀ)/2`."""
    return (x - x.mT) / 2


def identity_like(x: Square) -> Square:
    """Identity matrices in the shape and dtype of `x`."""
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)


def dot(x: Matrix, y: Matrix, axis_name: AxisName = None) -> Float[Array, "*batch 1 1"]:
    """Inner product `⟨x, y⟩` of each pair of matrices, with the axes kept."""
    return _sum(jnp.sum(x * y, axis=(-2, -1), keepdims=True), axis_name)


def max_abs(x: Matrix, axis_name: AxisName = None) -> Float[Array, "*batch 1 1"]:
    """Largest modulus of each matrix, with the axes kept; 0 for an empty one."""
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0)
    return largest if axis_name is None else jax.lax.pmax(largest, axis_name)


def gathered_max_abs(
    x: Matrix, axis_name: AxisName = None
) -> Float[Array, "*batch 1 1"]:
    """Like `max_abs`, but gathers one number per device, in half the steps.

    `shard_map` cannot prove that the result is replicated; use it only to scale an
    array that is itself split.
    """
    largest = max_abs(x)
    if axis_name is None:
        return largest
    return jnp.max(jax.lax.all_gather(largest, axis_name), axis=0)


def frobenius_norm(x: Matrix, axis_name: AxisName = None) -> Float[Array, "*batch 1 1"]:
    """Frobenius norm of each matrix, with the axes kept.

    The entries are divided by the largest one before they are squared, so that
    neither 1e-30 underflows nor 1e30 overflows in float32.
    """
    x, scale = near_one(x, axis_name)
    return scale * jnp.sqrt(dot(x, x, axis_name))


def normalize(x: Matrix, axis_name: AxisName = None) -> Matrix:
    """Returns `x / ‖x‖_F` for entries of any scale.

    Zero stays zero; a matrix with a non-finite entry becomes NaN everywhere.
    """
    x, _ = near_one(x, axis_name)
    norm = jnp.sqrt(dot(x, x, axis_name))
    return x / jnp.where(norm == 0, 1, norm)


def nonzero(scale: Array) -> Array:
    """Returns `scale` with 1 in place of 0 and of NaN, which the numerator has too."""
    return jnp.where(scale > 0, scale, jnp.ones_like(scale))


def divisor(largest: Array) -> Array:
    """Returns `largest` entries as a divisor that brings a matrix near 1.

    It is 1 in place of 0 and of NaN, as `nonzero` is. From `1/tiny` on (8.5e37 in
    float32) it stays there: XLA multiplies by the inverse of a number, which would be
    subnormal, and CPUs flush that to 0. Infinity stays, so that it remains visible.
    """
    limit = 1 / float(jnp.finfo(largest.dtype).tiny)
    return nonzero(jnp.where(jnp.isinf(largest), largest, jnp.minimum(largest, limit)))


def near_one(
    x: Matrix, axis_name: AxisName = None
) -> tuple[Matrix, Float[Array, "*batch 1 1"]]:
    """Returns `x / scale` and `scale`, the `divisor` of the largest entry.

    The largest modulus of each matrix becomes 1 where `divisor` can make it so: squares
    then neither underflow nor overflow.
    """
    scale = divisor(max_abs(x, axis_name))
    return x / scale, scale


def row_count(x: Matrix, axis_name: AxisName = None) -> int:
    """Returns the number of rows of the whole matrix, of which `x` may be a part."""
    parts = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    return x.shape[-2] * parts


def _sum(x: Array, axis_name: AxisName) -> Array:
    return x if axis_name is None else jax.lax.psum(x, axis_name)
