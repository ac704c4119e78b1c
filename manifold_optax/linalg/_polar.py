"""The orthogonal polar factor: convergent by products alone, and by an SVD."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix, Schedule, Square
from manifold_optax.linalg._coefficients import POLAR_EXPRESS, RANK_ROW, TAYLOR_ROW
from manifold_optax.linalg._device import by_platform, on_cpu
from manifold_optax.linalg._float64 import in_float64
from manifold_optax.linalg._gram_polynomial import polynomial
from manifold_optax.linalg._inputs import require_matrices
from manifold_optax.linalg._reductions import (
    divisor,
    gathered_max_abs,
    gram,
    matmul,
    near_one,
    nonzero,
    symmetric,
)
from manifold_optax.linalg._scaling import widen
from manifold_optax.linalg._symmetric import commuting_product

_NEAR = 0.5
"""Frobenius distance of the Gram matrix from I within which TAYLOR_ROW converges."""


_BORDER = 100.0
"""Rounding units, relative to the largest, below which a singular value is dropped."""


def polar(x: Matrix, *, axis_name: AxisName = None) -> Matrix:
    """Orthogonal polar factor `U Vᵀ` of `x = U S Vᵀ`, convergent, by products alone.

    It is the nearest matrix with orthonormal columns (rows, when `m < n`). Singular
    values below about 100 rounding units times the largest one are taken as zero and
    dropped: a rank-deficient matrix gives the partial isometry of its range, zero
    gives zero. (Singular values within a factor of two of that border may end between
    0 and 1.) The number of steps follows from the matrix: two products of the long
    side suffice near the Stiefel manifold. Because that is a `while_loop`, JAX cannot
    differentiate it in reverse mode (`jax.grad`); forward mode (`jax.jvp`) works.

    Args:
        x: `[*batch, m, n]`, real floating; computed in at least float32.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` must have at least as many rows, in all, as columns. On a CPU,
            below float64, the number of messages is then three, whatever the matrix: an
            all-gather of one number per device and two all-reduces, of the Gram matrix
            in float64, in which all steps are taken, and of that of the result, for two
            last ones. Elsewhere, without float64, each step takes an all-reduce: two
            near the Stiefel manifold, where a retraction starts.

    Returns:
        An array like `x`; for full rank `‖QᵀQ − I‖₂` is a few rounding units.
        Non-finite input gives NaN.

    Raises:
        TypeError: for an array that is not real floating.
        ValueError: for an array of fewer than two axes.

    Cost: `4·m·n²·t` FLOPs for `m ≥ n`, where `t` is 1 to 2 near the manifold, about 10
    for a random matrix, 16 at most in float32; with split rows, of which a device has
    `m`, `8·m·n² + 8·n³·t`, a quarter of the first and all of the second in float64.

    Example:
        >>> polar(jnp.array([[0.0, 2.0], [-3.0, 0.0], [0.0, 0.0]])).round(6)
        Array([[ 0.,  1.],
               [-1.,  0.],
               [ 0.,  0.]], dtype=float32)

    Source: N. Higham, "Functions of Matrices" (SIAM, 2008), chapter 8; the first rows
    are those of `POLAR_EXPRESS`.
    """
    require_matrices(x, "polar")
    tall = axis_name is not None or x.shape[-2] >= x.shape[-1]
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if 0 in x.shape:
        return x
    y = _polar_of_stack(y, axis_name) if tall else _polar_of_stack(y.mT, None).mT
    return y.astype(x.dtype)


def _polar_of_stack(x: Array, axis_name: AxisName) -> Array:
    def of_stack(x: Array) -> Array:
        split = axis_name is not None and x.dtype != jnp.float64 and on_cpu()
        of_one = _polar_of_split if split else _polar_of_tall
        of_tall = functools.partial(of_one, axis_name=axis_name)
        return jnp.vectorize(of_tall, signature="(m,n)->(m,n)")(x)

    return of_stack(x) if axis_name is None else by_platform(of_stack, x)


def polar_svd(x: Matrix) -> Matrix:
    """Orthogonal polar factor by a singular value decomposition: slow, the reference.

    It drops what `polar` drops, and errs by the condition of `x` in rounding units.

    Args:
        x: `[*batch, m, n]`, real floating; computed in at least float32.

    Returns:
        An array like `x`; singular values below 100 rounding units times the largest
        are dropped, zero gives zero.

    Raises:
        TypeError: for an array that is not real floating.
        ValueError: for an array of fewer than two axes.

    Cost: an SVD.

    Example:
        >>> polar_svd(jnp.array([[2.0, 0.0], [0.0, 0.0]]))
        Array([[1., 0.],
               [0., 0.]], dtype=float32)
    """
    require_matrices(x, "polar_svd")
    if 0 in x.shape:
        return x
    y, _ = near_one(widen(x))
    left, values, right = jnp.linalg.svd(y, full_matrices=False)
    border = _BORDER * jnp.finfo(y.dtype).eps * values[..., :1]
    kept = (values > border) | jnp.isnan(values)
    return matmul(left * kept[..., None, :], right).astype(x.dtype)


def modulus(y: Square) -> Square:
    """`|Y|` of a symmetric matrix: the same eigenvectors, the moduli of the values.

    It errs by rounding units of `‖Y‖₂`. Eigenvalues that `polar` would drop count.
    """
    of_each = functools.partial(_polar_of_tall, axis_name=None, border=1.0)
    sign = jnp.vectorize(of_each, signature="(n,n)->(n,n)")(y)
    return symmetric(commuting_product(y, sign))


def _polar_of_tall(x: Array, axis_name: AxisName, border: float = _BORDER) -> Array:
    eps = float(jnp.finfo(x.dtype).eps)
    rows = _rows(eps, border)
    table = jnp.asarray(rows, x.dtype)

    x, _ = near_one(x, axis_name)
    square = gram(x, axis_name)
    bound = _bound(square)
    x, square = x / jnp.sqrt(bound), square / bound

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        _, square, step = state
        # One more TAYLOR_ROW takes a distance e to (5/16)·e³, below a rounding unit.
        return (step < len(rows)) & (_distance(square) > eps ** (1 / 3))

    def advance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, square, step = state
        x = matmul(x, _value(table[step], square))
        return x, gram(x, axis_name), step + 1

    start = jnp.where(_distance(square) < _NEAR, len(POLAR_EXPRESS), 0)
    x, square, _ = jax.lax.while_loop(unfinished, advance, (x, square, start))
    return matmul(x, _value(jnp.asarray(TAYLOR_ROW, x.dtype), square))


def _polar_of_split(x: Array, axis_name: AxisName) -> Array:
    """The same with the steps on the Gram matrix alone, so that no loop has a message.

    Its square of the condition is no loss in float64. What is lost is that of the
    product with the matrix, of which two rows and the border of rank make the result.
    """
    x = x / divisor(gathered_max_abs(x, axis_name))
    eps = float(jnp.finfo(x.dtype).eps)

    def factor(x: Array) -> Array:
        return _inverse_root(gram(x, axis_name), eps)

    x = matmul(x, in_float64(factor)(x))
    rows = (RANK_ROW, TAYLOR_ROW, TAYLOR_ROW)
    multiple, matrix = polynomial(rows, gram(x, axis_name), commuting_product)
    return matmul(x, multiple * jnp.eye(x.shape[-1], dtype=x.dtype) + matrix)


def _inverse_root(square: Array, eps: float) -> Array:
    """The product of the rows that take a matrix with this Gram matrix near its polar.

    `eps` is the rounding unit of the matrix.
    """
    rows = _rows(eps)
    table = jnp.asarray(rows, square.dtype)
    bound = _bound(square)
    square = square / bound

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        _, square, step = state
        return (step < len(rows)) & (_distance(square) > eps ** (1 / 3))

    def advance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        product, square, step = state
        value = _value(table[step], square)
        # All of them commute.
        following = commuting_product(commuting_product(square, value), value)
        return commuting_product(product, value), symmetric(following), step + 1

    start = jnp.where(_distance(square) < _NEAR, len(POLAR_EXPRESS), 0)
    first = jnp.eye(square.shape[-1], dtype=square.dtype) / jnp.sqrt(bound)
    return jax.lax.while_loop(unfinished, advance, (first, square, start))[0]


def _bound(square: Array) -> Array:
    """The lesser of two upper bounds of the norm; the second is close near I."""
    largest_row = jnp.max(jnp.sum(jnp.abs(square), axis=-1))
    return nonzero(jnp.minimum(jnp.linalg.norm(square), largest_row))


def _distance(square: Array) -> Array:
    return jnp.linalg.norm(square - jnp.eye(square.shape[-1], dtype=square.dtype))


def _value(row: Array, square: Array) -> Array:
    """`a·I + b·A + c·A²`, by which a row multiplies a matrix of Gram matrix `A`."""
    identity = jnp.eye(square.shape[-1], dtype=square.dtype)
    a, b, c = row
    return commuting_product(square, square, a * identity + b * square, alpha=c)


def _rows(eps: float, border: float = _BORDER) -> Schedule:
    """POLAR_EXPRESS, then as many TAYLOR_ROWs as lift the border to 1, then the cut."""
    slope = math.prod(a for a, _, _ in POLAR_EXPRESS)
    lifts = math.ceil(math.log(1 / (border * eps * slope)) / math.log(TAYLOR_ROW[0]))
    return (*POLAR_EXPRESS, *(TAYLOR_ROW,) * lifts, *(RANK_ROW,) * 2)
