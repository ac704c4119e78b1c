"""The sum of the singular values and an upper bound of it, by products alone."""

import math

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix, Square
from manifold_optax.linalg._polar import polar
from manifold_optax.linalg._reductions import (
    dot,
    frobenius_norm,
    gram,
    inner,
    matmul,
    near_one,
    symmetric,
)
from manifold_optax.linalg._square_root import product_root

_ROOT = (3e-3, 6)
"""Condition, inverted, and rows of the root of `H` below, in float32: the ridge 1e-5 is
above the rounding of `H`, which must not have a negative eigenvalue."""

_WIDE_ROOT = (1e-4, 9)
"""The same in float64."""


def nuclear_norm_by_products(x: Matrix, axis_name: AxisName = None) -> Array:
    """`‖x‖_* = ⟨Q, x⟩` with the polar factor `Q`, `[*batch, 1, 1]`.

    It errs by rounding, and by the singular values that `polar` drops, below 100
    rounding units of the largest. Cost: a polar factor.
    """
    scaled, scale = near_one(x, axis_name)
    return scale * dot(polar(scaled, axis_name=axis_name), scaled, axis_name)


def nuclear_norm_bound(x: Matrix, axis_name: AxisName = None) -> Array:
    """A number that `‖x‖_*` does not exceed, and nearly reaches, `[*batch, 1, 1]`.

    For all `A` and `B` it is at most `‖A‖_F·‖B‖_F + √k·‖x − A B‖_F`, and it is equal
    to that for `A = Q B` and the root `B` of `H`, with the polar decomposition
    `x = Q H`. So whatever is found for `Q` and `B`, this is a bound. The rounding of
    the product `A B` is allowed for: `√k` rounding units of `‖A‖_F·‖B‖_F`, which the
    length of independent errors exceeds with no probability to speak of.

    Args:
        x: `[*batch, m, n]` of any scale, in at least float32.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` must have at least as many rows, in all, as columns.

    Returns:
        The bound. In float32 it exceeds `‖x‖_*` by `k` rounding units and 1e-6 to 3e-5
        of it, or 7e-4 where all singular values but one are near 1e-5 of that one.

    Cost: a polar factor, `8·m·n·k` FLOPs for the short side `k`, and 27 products of
    `k × k` matrices in float32.

    Example:
        >>> nuclear_norm_bound(jnp.diag(jnp.array([3.0, -1.0]))).round(3)
        Array([[4.]], dtype=float32)

    Source: of the allowance, N. Higham, T. Mary, "A new approach to probabilistic
    rounding error analysis" (SIAM J. Sci. Comput. 41, 2019), theorem 3.1.
    """
    if axis_name is None and x.shape[-2] < x.shape[-1]:
        return nuclear_norm_bound(x.mT)
    scaled, scale = near_one(x, axis_name)
    factor = polar(scaled, axis_name=axis_name)
    middle, right = _factors(symmetric(inner(factor, scaled, axis_name)))
    # Where `factor` vanishes both may: without the ridge of the root, and its rounding.
    projector = gram(factor, axis_name)
    left = matmul(factor, matmul(middle, projector))
    right = matmul(right, projector)
    rest = frobenius_norm(scaled - matmul(left, right), axis_name)
    product = frobenius_norm(left, axis_name) * frobenius_norm(right)
    short, eps = x.shape[-1], float(jnp.finfo(x.dtype).eps)
    return scale * (product * (1 + short * eps) + math.sqrt(short) * rest)


def _factors(square: Square) -> tuple[Square, Square]:
    """`H R⁻¹` and the root `R` of `H + δI`, of which `H` is the product."""
    epsilon, rows = _WIDE_ROOT if square.dtype == jnp.float64 else _ROOT

    def of_one(square: Array) -> tuple[Array, Array]:
        found = product_root(square, epsilon=epsilon, rows=rows)
        return found.matrix, found.inverse

    root, inverse = jnp.vectorize(of_one, signature="(n,n)->(n,n),(n,n)")(square)
    quotient = matmul(square, inverse)
    # A second step: rounding leaves of the inverse 3e-5 in float32.
    rest = square - matmul(quotient, root)
    return quotient + matmul(rest, inverse), root
