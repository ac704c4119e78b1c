"""The Lyapunov equation with a symmetric positive semidefinite coefficient."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from manifold_optax._typing import Square
from manifold_optax.linalg._inputs import require_matrices
from manifold_optax.linalg._reductions import matmul, symmetric
from manifold_optax.linalg._symmetric import commuting_product


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
    require_matrices(a, "solve_lyapunov")
    require_matrices(b, "solve_lyapunov")
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


def lyapunov_by_products(a: Square, b: Square, *, rough: bool = False) -> Square:
    """Solution `x` of `a x + x a = b` by matrix products alone.

    `x = ∫ exp(−ta) b exp(−ta) dt` over `t > 0`, by the trapezoid rule in `log t`; the
    exponentials come from one another by squaring. The rule converges exponentially in
    the ratio of neighbouring nodes: 1e-5 for 2, 4e-3 for 4 (`|Γ(1 + 2πi/log ratio)|`).

    Args:
        a: `[*batch, n, n]`, symmetric positive definite, eigenvalues in [δ, 1].
        b: `[*batch, n, n]`, symmetric.
        rough: whether the ratio is 4 and the range of `t` shorter; enough where `x` is
            the step of an iteration that corrects itself.

    Returns:
        `x` like `b`, symmetric. The last node is `t = 2⁵` (2⁴ if rough; 2¹⁵ and 2¹⁴ in
        float64): components of two eigenvalues that sum to less than its inverse come
        out too small, with the right sign.

    Cost: 37 products of `n × n` matrices in float32 (rough: 21), 67 (41) in float64.

    Example:
        >>> a = jnp.diag(jnp.array([0.25, 0.75]))
        >>> jnp.rint(60 * lyapunov_by_products(a, jnp.ones((2, 2))))
        Array([[120.,  60.],
               [ 60.,  40.]], dtype=float32)
    """
    last = 15 if b.dtype == jnp.float64 else 5
    squarings, exponent = (2, -4) if rough else (1, -6)
    terms = (last - exponent) // squarings + 1
    first, weight = 2.0**exponent, squarings * math.log(2)
    step = first * a
    # Two terms of the exponential: exact to 6e-7 at t = 2⁻⁶, to 4e-5 at 2⁻⁴.
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)
    decay = commuting_product(step, step, identity - step, alpha=0.5)

    def add_term(_: ArrayLike, state: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        total, decay, time = state
        total = total + weight * time * matmul(decay, matmul(b, decay))
        for _ in range(squarings):
            decay = commuting_product(decay, decay)
        return total, decay, time * 2**squarings

    # What lies before the first node is its tail, ∫ b dt, as the rule sums it.
    tail = first / (2**squarings - 1) * weight
    state = (tail * b, decay, jnp.asarray(first, b.dtype))
    total, *_ = jax.lax.fori_loop(0, terms, add_term, state)
    return symmetric(total)
