"""Tight upper bounds of a spectral and a nuclear norm, by matrix products alone.

A certificate needs numbers that are certainly too large, but hardly so. On a CPU an
eigendecomposition in float64 gives them; on an accelerator, where that is slow or not
to be had, these functions do.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from manifold_optax._typing import AxisName
from manifold_optax.linalg._polar import polar
from manifold_optax.linalg._reductions import (
    dot,
    inner,
    matmul,
    nonzero,
    symmetric,
)
from manifold_optax.linalg._square_root import product_root

_SQUARINGS = 19
"""Squarings of a matrix of norm 1: the bound of the largest eigenvalue is then at most
`n^(2⁻²⁰)` times too large, 1 + 7e-6 for n = 1024."""


def eigenvalue_bound(square: Float[Array, "n n"]) -> Float[Array, ""]:
    """Returns a bound of the largest eigenvalue of a positive semidefinite matrix.

    The Frobenius norm of a power bounds the power of the largest eigenvalue. The bound
    is `n^(2⁻²⁰)` times it at most, up to a few rounding units.

    Cost: 19 products of `n × n` matrices.
    """
    length = nonzero(jnp.linalg.norm(square))

    def advance(step: ArrayLike, state: tuple[Array, Array]) -> tuple[Array, Array]:
        power, exponent = state
        power = symmetric(matmul(power, power))
        length = nonzero(jnp.linalg.norm(power))
        return power / length, exponent + jnp.log(length) * 0.5**step

    start = (square / length, jnp.log(length))
    _, exponent = jax.lax.fori_loop(1, _SQUARINGS + 1, advance, start)
    return jnp.where(jnp.trace(square) > 0, jnp.exp(exponent), jnp.trace(square))


def nuclear_norm_bound(
    x: Float[Array, "m n"], axis_name: AxisName = None
) -> Float[Array, ""]:
    """Returns a bound of the sum of all singular values of a matrix with `m ≥ n`.

    For all `A` and symmetric `Y` the sum is at most `‖A‖·‖Y‖ + √n·‖x − A Y‖` in
    Frobenius norms, and equal to it for the root `Y` of `H`, where `x = U H` is the
    polar decomposition, and `A = U Y`. So a rough root gives a bound that errs by the
    square of its error. What is left of `x` counts twice, once for its own rounding.

    Args:
        x: in float32 or float64, of any scale.
        axis_name: mesh axes over which the rows are split, inside `shard_map`.

    Returns:
        A bound that is 1e-5 of the norm too large or so in float32, where singular
        values vanish, and less otherwise.

    Cost: `polar`, and ten more products of its size.
    """
    wide = x.dtype == jnp.float64
    overlap = symmetric(inner(polar(x, axis_name=axis_name), x, axis_name))
    # The ridge is above the rounding of `overlap`, as its root must exist: 1e-5 of the
    # largest singular value in float32, 1e-8 in float64.
    epsilon, rows = (1e-4, 9) if wide else (3e-3, 6)
    root = product_root(overlap, epsilon=epsilon, rows=rows)
    factor = matmul(x, root.inverse)
    # A second step: rounding makes of the inverse one to 3e-5 only, in float32.
    factor += matmul(x - matmul(factor, root.matrix), root.inverse)
    left = x - matmul(factor, root.matrix)
    squares = jnp.stack([_square(factor, axis_name), _square(left, axis_name)])
    lengths = jnp.sqrt(squares)
    size = jnp.linalg.norm(root.matrix)
    return lengths[0] * size + 2 * jnp.sqrt(1.0 * x.shape[1]) * lengths[1]


def _square(x: Array, axis_name: AxisName) -> Array:
    return dot(x, x, axis_name)[0, 0]
