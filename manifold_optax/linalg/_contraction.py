"""A clip of singular values by the smaller Gram matrix, the step of iterations.

Two ways to it: an eigendecomposition, the fast way on a CPU, and matrix products alone,
the fast way on an accelerator.
"""

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix, Square
from manifold_optax.linalg._device import chosen_by_platform
from manifold_optax.linalg._positive_part import positive_projector
from manifold_optax.linalg._reductions import gram, identity_like, matmul, symmetric
from manifold_optax.linalg._square_root import product_root

_ROOT = (1e-3, 7)
"""Condition, inverted, and rows of the root below, in float32.

The ridge is the square of the condition; seven rows reach it, six leave 1e-3. The step
after the root squares what is left of both, to rounding where the bound is above 1/50
of the largest singular value. At 1e-3 of it the squares of float32 have no digit of the
bound left, whatever is done with them.
"""

_WIDE_ROOT = (1e-5, 10)
"""The same in float64."""


def contraction(
    x: Matrix, bound: Array | float = 1.0, *, axis_name: AxisName = None
) -> Matrix:
    """`x` with its singular values clipped at `bound`, by its smaller Gram matrix.

    The step of iterations that clip often: cheaper than `spectral_clip`, whose polar
    factors are of the long side. Squaring loses small singular values only, which stay.
    It errs by some rounding units of `σ₁²/bound`, with `σ₁` the largest singular value.

    Args:
        x: `[*batch, m, n]`, at least float32, of a scale whose square is finite.
        bound: > 0, a number or `[*batch, 1, 1]`.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` must have at least as many rows, in all, as columns.

    Cost: `4·m·n·k` FLOPs for the short side `k`, and on a CPU an eigendecomposition,
    elsewhere 71 products of `k × k` matrices in float32.

    Example:
        >>> contraction(jnp.diag(jnp.array([3.0, 0.5]))).round(4)
        Array([[1. , 0. ],
               [0. , 0.5]], dtype=float32)
    """
    if axis_name is None and x.shape[-2] < x.shape[-1]:
        return contraction(x.mT, bound).mT
    factor = chosen_by_platform(clip_factor_by_eigh, clip_factor_by_products)
    return matmul(x, factor(gram(x, axis_name), bound))


def clip_factor_by_eigh(square: Square, bound: Array | float) -> Square:
    """What `x` is multiplied by, from its Gram matrix, by an eigendecomposition."""
    values, vectors = jnp.linalg.eigh(square)
    sizes = jnp.sqrt(jnp.maximum(values, 0))[..., None, :]
    factors = bound / jnp.maximum(sizes, bound)
    return matmul(vectors * factors, vectors.mT)


def clip_factor_by_products(square: Square, bound: Array | float) -> Square:
    """The same by products alone.

    With `A = xᵀx/bound²` and the projector `P` onto its eigenvalues above 1, the
    inverse root `E` of `I + P(A − I)` is the factor itself. A Newton step on the range
    of `P`, where `E A E` should be the identity, removes the errors of the root, which
    the condition of that matrix magnifies. Eigenvalues that are so near to 1 that `P`
    takes them in part are clipped in part: whatever the part is, they end near 1.
    """
    identity = identity_like(square)
    square = square / jnp.square(bound)
    excess = square - identity
    above = positive_projector(excess)
    root = jnp.vectorize(_inverse_root, signature="(n,n)->(n,n)")(
        symmetric(matmul(excess, above)) + identity
    )
    clipped = symmetric(matmul(root, matmul(square, root)))
    return identity - above + matmul(root, matmul(3 * identity - clipped, above)) / 2


def _inverse_root(square: Array) -> Array:
    epsilon, rows = _WIDE_ROOT if square.dtype == jnp.float64 else _ROOT
    return product_root(square, epsilon=epsilon, rows=rows).inverse
