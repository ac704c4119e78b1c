"""The sum of the singular values and an upper bound of it, by products alone."""

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.linalg._polar import polar
from manifold_optax.linalg._reductions import (
    dot,
    frobenius_norm,
    inner,
    matmul,
    near_one,
    symmetric,
)


def nuclear_norm_by_products(x: Matrix, axis_name: AxisName = None) -> Array:
    """`‖x‖_* = ⟨Q, x⟩` with the polar factor `Q`, `[*batch, 1, 1]`.

    It errs by rounding, and by the singular values that `polar` drops, below 100
    rounding units of the largest. Cost: a polar factor.
    """
    scaled, scale = near_one(x, axis_name)
    return scale * dot(polar(scaled, axis_name=axis_name), scaled, axis_name)


def nuclear_norm_bound(x: Matrix, axis_name: AxisName = None) -> Array:
    """A number that `‖x‖_*` does not exceed, and nearly reaches, `[*batch, 1, 1]`.

    With the polar factor `Q` and `H = sym(Qᵀx)` the matrix is `QH + E`, and `‖x‖_*` is
    at most `‖Q‖₂·tr H + ‖E‖_*`, and `‖E‖_* ≤ √k·‖E‖_F`. The last term is taken twice:
    for negative eigenvalues of `H`, and for the excess of `‖Q‖₂` over 1, both rounding.
    Together these two were at most a quarter of that term for gradients of rank one, of
    low rank, dense and of eight decades, from 24 × 16 to 300 × 100. What `polar` drops
    is part of `E`.

    Args:
        x: `[*batch, m, n]` of any scale, in at least float32.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` must have at least as many rows, in all, as columns.

    Returns:
        The bound: in float32 it exceeds `‖x‖_*` by 1e-6 to 3e-5 of it.

    Cost: a polar factor and `4·m·n·k` FLOPs for the short side `k`.

    Example:
        >>> nuclear_norm_bound(jnp.diag(jnp.array([3.0, -1.0]))).round(3)
        Array([[4.]], dtype=float32)
    """
    if axis_name is None and x.shape[-2] < x.shape[-1]:
        return nuclear_norm_bound(x.mT)
    scaled, scale = near_one(x, axis_name)
    factor = polar(scaled, axis_name=axis_name)
    root = symmetric(inner(factor, scaled, axis_name))
    rest = frobenius_norm(scaled - matmul(factor, root), axis_name)
    total = jnp.trace(root, axis1=-2, axis2=-1)[..., None, None]
    return scale * (total + 2 * x.shape[-1] ** 0.5 * rest)
