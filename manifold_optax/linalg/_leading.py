"""The largest singular value and its vectors, to rounding.

Two ways to them: an eigendecomposition, the fast way on a CPU, and a matrix power by
squaring, the fast way on an accelerator.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from manifold_optax._typing import AxisName, Matrix, Square
from manifold_optax.linalg._device import chosen_by_platform
from manifold_optax.linalg._reductions import (
    dot,
    gram,
    matmul,
    max_abs,
    near_one,
    nonzero,
    symmetric,
)


class LeadingTriple(NamedTuple):
    """Largest singular value of each matrix, and its singular vectors as columns."""

    norm: Float[Array, "*batch 1 1"]
    left: Float[Array, "*batch m 1"]
    right: Float[Array, "*batch n 1"]


def leading_triple(x: Matrix, axis_name: AxisName = None) -> LeadingTriple:
    """Largest singular value and vectors, by the Gram matrix of the short side.

    Both ways are exact to rounding also where the largest singular values nearly agree,
    which Muon's steps make common and where a power iteration needs thousands of steps
    for 1e-6. Squaring loses digits of small values only. The norm is that of the image
    of a unit vector, so it errs downwards; by products by at most `ln k` rounding units
    (`k` the short side), 8e-7 for `k = 1024` in float32, apart from rounding.

    Cost: `2·m·n·k` FLOPs, and on a CPU an eigendecomposition, elsewhere 22 products of
    `k × k` matrices in float32, 51 in float64.
    """
    if axis_name is None and x.shape[-2] < x.shape[-1]:
        turned = leading_triple(x.mT)
        return LeadingTriple(turned.norm, turned.right, turned.left)
    if 0 in x.shape:
        ends = [jnp.zeros((*x.shape[:-2], size, 1), x.dtype) for size in x.shape[-2:]]
        return LeadingTriple(jnp.zeros((*x.shape[:-2], 1, 1), x.dtype), *ends)
    scaled, scale = near_one(x, axis_name)
    right = _leading_vector(gram(scaled, axis_name))
    image = matmul(scaled, right)
    norm = jnp.sqrt(dot(image, image, axis_name))
    return LeadingTriple(scale * norm, image / nonzero(norm), right)


def leading_vector_by_eigh(square: Square) -> Float[Array, "*batch n 1"]:
    """Unit eigenvector of the largest eigenvalue, by an eigendecomposition."""
    return jnp.linalg.eigh(square).eigenvectors[..., -1:]


def leading_vector_by_products(square: Square) -> Float[Array, "*batch n 1"]:
    """Unit vector whose Rayleigh quotient is the largest eigenvalue, by squarings.

    The column of `square^K` with the largest diagonal entry, `K` some inverse rounding
    units. With the eigenvalues `λᵢ` and the weights `wᵢ` of that unit vector, the
    quotient is `Σ wᵢλᵢ^(2K+1) / Σ wᵢλᵢ^(2K)`. Means of powers rise with the power, so
    it is at least `(Σ wᵢλᵢ^K)^(1/K)`, which is the diagonal entry to `1/K`. That is at
    least a mean of the diagonal, so at least `λ₁^K/n`: the loss is the factor
    `n^(−1/K)`, whatever the gaps between the eigenvalues are.

    Args:
        square: `[*batch, n, n]`, symmetric positive semidefinite.
    """
    # One squaring doubles K; half of the loss of the eigenvalue is that of its root.
    squarings = round(-math.log2(jnp.finfo(square.dtype).eps)) - 1

    def advance(_: ArrayLike, power: Array) -> Array:
        power = symmetric(matmul(power, power))
        return power / nonzero(max_abs(power))

    power = square / nonzero(max_abs(square))
    power = jax.lax.fori_loop(0, squarings, advance, power)
    largest = jnp.argmax(jnp.diagonal(power, axis1=-2, axis2=-1), axis=-1)
    unit = jax.nn.one_hot(largest, square.shape[-1], dtype=square.dtype)[..., None]
    column = matmul(power, unit)
    length = jnp.linalg.norm(column, axis=-2, keepdims=True)
    # The zero matrix has every vector.
    return jnp.where(length == 0, unit, column / nonzero(length))


_leading_vector = chosen_by_platform(leading_vector_by_eigh, leading_vector_by_products)


def largest_eigenvalue_by_products(square: Square) -> Float[Array, "*batch 1 1"]:
    """Largest eigenvalue of positive semidefinite matrices, from below.

    The Rayleigh quotient of `leading_vector_by_products`, with its loss.
    """
    leading = leading_vector_by_products(square)
    return jnp.sum(leading * matmul(square, leading), axis=(-2, -1), keepdims=True)


def spectral_gradient(x: Matrix, axis_name: AxisName = None) -> Matrix:
    """The gradient `u vᵀ` of the spectral norm at each matrix."""
    found = leading_triple(x, axis_name)
    return matmul(found.left, found.right.mT)
