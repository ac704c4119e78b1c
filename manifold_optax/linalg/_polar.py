"""The orthogonal polar factor: convergent by products alone, and by an SVD."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix, Schedule
from manifold_optax.linalg._coefficients import POLAR_EXPRESS, RANK_ROW, TAYLOR_ROW
from manifold_optax.linalg._reductions import gram, matmul, max_abs, nonzero

_NEAR = 0.5
"""Frobenius distance of the Gram matrix from I within which TAYLOR_ROW converges."""


def polar(x: Matrix, *, axis_name: AxisName = None) -> Matrix:
    """Orthogonal polar factor `U Vᵀ` of `x = U S Vᵀ`, convergent, by products alone.

    It is the nearest matrix with orthonormal columns (rows, when `m < n`). Singular
    values below about 100 rounding units times the largest one are taken as zero and
    dropped: a rank-deficient matrix gives the partial isometry of its range, zero
    gives zero. (Singular values within a factor of two of that border may end between
    0 and 1.) The number of steps follows from the matrix: two products of the long
    side suffice near the Stiefel manifold.

    Args:
        x: `[*batch, m, n]`, real floating; computed in at least float32.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` must have at least as many rows, in all, as columns.

    Returns:
        An array like `x`; for full rank `‖QᵀQ − I‖₂` is a few rounding units.
        Non-finite input gives NaN.

    Cost: `4·m·n²·t` FLOPs for `m ≥ n`, where `t` is 1 to 2 near the manifold, about 10
    for a random matrix, 16 at most in float32.

    Example:
        >>> polar(jnp.array([[0.0, 2.0], [-3.0, 0.0], [0.0, 0.0]])).round(6)
        Array([[ 0.,  1.],
               [-1.,  0.],
               [ 0.,  0.]], dtype=float32)

    Source: N. Higham, "Functions of Matrices" (SIAM, 2008), chapter 8; the first rows
    are those of `POLAR_EXPRESS`.
    """
    tall = axis_name is not None or x.shape[-2] >= x.shape[-1]
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    of_each = jnp.vectorize(
        functools.partial(_polar_of_tall, axis_name=axis_name), signature="(m,n)->(m,n)"
    )
    if 0 in x.shape:
        return x
    y = of_each(y) if tall else of_each(y.mT).mT
    return y.astype(x.dtype)


def polar_svd(x: Matrix) -> Matrix:
    """Orthogonal polar factor by a singular value decomposition: slow, the reference.

    Args:
        x: `[*batch, m, n]`, real floating; computed in at least float32.

    Returns:
        An array like `x`; singular values below `8·max(m, n)` rounding units times the
        largest are dropped, zero gives zero.

    Cost: an SVD, 40 to 70 times a Newton–Schulz iteration on a CPU.

    Example:
        >>> polar_svd(jnp.array([[2.0, 0.0], [0.0, 0.0]]))
        Array([[1., 0.],
               [0., 0.]], dtype=float32)
    """
    if 0 in x.shape:
        return x
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = y / nonzero(max_abs(y))
    left, values, right = jnp.linalg.svd(y, full_matrices=False)
    border = 8 * max(x.shape[-2:]) * jnp.finfo(y.dtype).eps * values[..., :1]
    kept = (values > border) | jnp.isnan(values)
    return matmul(left * kept[..., None, :], right).astype(x.dtype)


def _polar_of_tall(x: Array, axis_name: AxisName) -> Array:
    eps = float(jnp.finfo(x.dtype).eps)
    rows = _rows(eps)
    table = jnp.asarray(rows, x.dtype)
    identity = jnp.eye(x.shape[-1], dtype=x.dtype)

    x = x / nonzero(max_abs(x, axis_name))
    square = gram(x, axis_name)
    # Two upper bounds of ‖x‖₂²; the second is close to 1 near the manifold.
    largest_row = jnp.max(jnp.sum(jnp.abs(square), axis=-1))
    bound = nonzero(jnp.minimum(jnp.linalg.norm(square), largest_row))
    x, square = x / jnp.sqrt(bound), square / bound

    def distance(square: Array) -> Array:
        return jnp.linalg.norm(square - identity)

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        _, square, step = state
        # One more TAYLOR_ROW takes a distance e to (5/16)·e³, below a rounding unit.
        return (step < len(rows)) & (distance(square) > eps ** (1 / 3))

    def advance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, square, step = state
        x = _apply(table[step], x, square)
        return x, gram(x, axis_name), step + 1

    start = jnp.where(distance(square) < _NEAR, len(POLAR_EXPRESS), 0)
    x, square, _ = jax.lax.while_loop(unfinished, advance, (x, square, start))
    return _apply(jnp.asarray(TAYLOR_ROW, x.dtype), x, square)


def _apply(row: Array, x: Array, square: Array) -> Array:
    """`x · (a·I + b·A + c·A²)` for `A = xᵀx`."""
    identity = jnp.eye(x.shape[-1], dtype=x.dtype)
    a, b, c = row
    return matmul(x, a * identity + b * square + c * matmul(square, square))


def _rows(eps: float) -> Schedule:
    """POLAR_EXPRESS, then as many TAYLOR_ROWs as lift `100·eps` to 1, then the cut."""
    slope = math.prod(a for a, _, _ in POLAR_EXPRESS)
    lifts = math.ceil(math.log(1 / (100 * eps * slope)) / math.log(TAYLOR_ROW[0]))
    return (*POLAR_EXPRESS, *(TAYLOR_ROW,) * lifts, *(RANK_ROW,) * 2)
