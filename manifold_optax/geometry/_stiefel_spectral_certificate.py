"""Bounds for a direction of `_stiefel_spectral`: of what is possible, of its length.

Two ways to each: eigendecompositions, partly in float64, the fast way on a CPU, and
products alone in the dtype of the point, the fast way on an accelerator.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from manifold_optax._typing import AxisName
from manifold_optax.geometry._stiefel_spectral_dual import dual_value
from manifold_optax.linalg._float64 import in_float64
from manifold_optax.linalg._leading import largest_eigenvalue_by_products
from manifold_optax.linalg._nuclear_norm import nuclear_norm_bound
from manifold_optax.linalg._reductions import gram, matmul


class Bounds(NamedTuple):
    """One way to the bounds."""

    tangent: Callable[[Array, Array, Array, Array, AxisName], Array]
    """`(W, K, G⊥, S, axis_name)` to a bound of `⟨A, G⟩` over all directions `A`."""
    square: Callable[[Array], Array]
    """`K` to the same bound for a square point."""
    length: Callable[[Array, AxisName], Array]
    """`A` to `‖A‖₂`."""


def tangent_bound_by_eigh(
    point: Float[Array, "m n"],
    rotation: Float[Array, "n n"],
    normal_free: Float[Array, "m n"],
    shift: Float[Array, "n n"],
    axis_name: AxisName,
) -> Array:
    """Dual value in float64: in float32 the root of a null direction is 1e-4, not 0."""
    del point

    def bound(rotation: Array, normal_free: Array, shift: Array) -> Array:
        return dual_value(rotation, gram(normal_free, axis_name), shift)

    return in_float64(bound)(rotation, normal_free, shift)


def tangent_bound_by_products(
    point: Float[Array, "m n"],
    rotation: Float[Array, "n n"],
    normal_free: Float[Array, "m n"],
    shift: Float[Array, "n n"],
    axis_name: AxisName,
) -> Array:
    """The same value without the square, as the nuclear norm of the dual matrix.

    That matrix is `W(K + S) + G⊥`, which is `G + W·Λ` with a symmetric `Λ`. A tangent
    `A` is orthogonal to every `W·Λ`, so the nuclear norm bounds `⟨A, G⟩` for
    `‖A‖₂ ≤ 1`, also at a point that is on the manifold to 1e-6 only.
    """
    dual = matmul(point, rotation + shift) + normal_free
    return nuclear_norm_bound(dual, axis_name)[0, 0]


def square_bound_by_svd(rotation: Float[Array, "n n"]) -> Array:
    """Bound for square matrices, `‖K‖_*`, by singular values."""
    return jnp.linalg.svd(rotation, compute_uv=False).sum()


def square_bound_by_products(rotation: Float[Array, "n n"]) -> Array:
    """The same by products alone."""
    return nuclear_norm_bound(rotation)[0, 0]


def length_by_eigh(direction: Float[Array, "m n"], axis_name: AxisName) -> Array:
    """`‖A‖₂` by the eigenvalues of the Gram matrix."""
    return jnp.sqrt(jnp.max(jnp.linalg.eigvalsh(gram(direction, axis_name))))


def length_by_products(direction: Float[Array, "m n"], axis_name: AxisName) -> Array:
    """An upper bound of `‖A‖₂` that exceeds it by `ln n` rounding units.

    The value from a power of the Gram matrix is below it by no more than that.
    """
    square = gram(direction, axis_name)
    loss = math.log(len(square)) * float(jnp.finfo(square.dtype).eps)
    return (1 + loss) * jnp.sqrt(largest_eigenvalue_by_products(square))[0, 0]


BY_EIGH = Bounds(tangent_bound_by_eigh, square_bound_by_svd, length_by_eigh)
BY_PRODUCTS = Bounds(
    tangent_bound_by_products, square_bound_by_products, length_by_products
)
