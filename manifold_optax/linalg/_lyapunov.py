"""The Lyapunov equation with a symmetric positive semidefinite coefficient."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from manifold_optax._typing import Square
from manifold_optax.linalg._reductions import matmul


def solve_lyapunov(a: Square, b: Square) -> Square:
    """Solution `x` of `a x + x a = b` for a symmetric positive semidefinite `a`.

    Args:
        a: `[*batch, n, n]`, symmetric, no negative eigenvalues.
        b: `[*batch, n, n]`.

    Returns:
        `x` like `b`; symmetric (skew) where `b` is. Where two eigenvalues of `a` sum
        to zero the equation does not determine `x`, and the component there is 0.

    Cost: one symmetric eigendecomposition and four `n × n` products.

    Example:
        >>> solve_lyapunov(jnp.diag(jnp.array([1.0, 3.0])), jnp.ones((2, 2)))
        Array([[0.5       , 0.25      ],
               [0.25      , 0.16666667]], dtype=float32)
    """
    values, vectors = jnp.linalg.eigh(a)
    # Eigenvalues below this are rounding noise of `a`, of either sign.
    noise = 8 * a.shape[-1] * jnp.finfo(values.dtype).eps
    floor = noise * jnp.max(jnp.abs(values), axis=-1, keepdims=True, initial=0)
    cleaned = jnp.where(jnp.abs(values) > floor, values, 0)
    return solve_lyapunov_in_basis(cleaned, vectors, b)


def solve_lyapunov_in_basis(
    values: Float[Array, "*batch n"], vectors: Square, b: Square
) -> Square:
    """`solve_lyapunov` for `a = V diag(values) Vᵀ`, when the decomposition is known."""
    sums = values[..., :, None] + values[..., None, :]
    rotated = matmul(vectors.mT, matmul(b, vectors))
    x = jnp.where(sums > 0, rotated / jnp.where(sums > 0, sums, 1), 0)
    return matmul(vectors, matmul(x, vectors.mT))
