"""A clip of singular values by an eigendecomposition."""

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.linalg._reductions import gram, matmul


def contraction(
    x: Matrix, bound: Array | float = 1.0, *, axis_name: AxisName = None
) -> Matrix:
    """`x` with its singular values clipped at `bound`, by its smaller Gram matrix.

    The step of iterations that clip often: cheaper than `spectral_clip` where
    eigendecompositions are. Squaring loses small singular values only, which stay.

    Args:
        x: `[*batch, m, n]`, at least float32, of a scale whose square is finite.
        bound: > 0, a number or `[*batch, 1, 1]`.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` must have at least as many rows, in all, as columns.

    Cost: an eigendecomposition of the short side `k` and `4·m·n·k` FLOPs.

    Example:
        >>> contraction(jnp.diag(jnp.array([3.0, 0.5]))).round(4)
        Array([[1. , 0. ],
               [0. , 0.5]], dtype=float32)
    """
    if axis_name is None and x.shape[-2] < x.shape[-1]:
        return contraction(x.mT, bound).mT
    values, vectors = jnp.linalg.eigh(gram(x, axis_name))
    sizes = jnp.sqrt(jnp.maximum(values, 0))[..., None, :]
    factors = bound / jnp.maximum(sizes, bound)
    return matmul(x, matmul(vectors * factors, vectors.mT))
