"""Retractions other than the projection, each on the unit manifold.

A matrix is tall here, `[*batch, m, n]` with `m ≥ n`, in at least float32. `point` is on
the manifold up to rounding.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName
from manifold_optax.linalg._reductions import (
    dot,
    frobenius_norm,
    gram,
    matmul,
    nonzero,
    normalize,
)


def orthonormal_factor(x: Array, axis_name: AxisName) -> Array:
    """`Q` of `x = Q R` with a positive diagonal of `R`, by Householder reflections.

    The sign makes it continuous in `x`; it is 1 where the diagonal is 0.
    """
    if axis_name is not None:
        raise ValueError(
            "The retraction 'qr' needs whole matrices, but the rows are split over "
            f"{axis_name!r}; use retraction='polar', or a placement that gives each "
            "device whole matrices."
        )
    q, r = jnp.linalg.qr(x)
    diagonal = jnp.diagonal(r, axis1=-2, axis2=-1)
    return q * jnp.where(diagonal < 0, -1, 1)[..., None, :]


def cubic_step(x: Array, axis_name: AxisName) -> Array:
    """`(3x − x xᵀx)/2`: one cubic Newton–Schulz step, `s ↦ (3s − s³)/2`."""
    return (3 * x - matmul(x, gram(x, axis_name))) / 2


def isometry_step(point: Array, vector: Array, axis_name: AxisName) -> Array:
    """Polar factor of `point + vector`, for `vector` a multiple of a tangent isometry.

    With `UᵀU = η² Π`, `Π` a projection, it is `(W + U) N` with the matrix
    `N = I + Π (1/√(1 + η²) − 1)`. One cubic step on the Gram matrix of `M = W + U`,
    `N (3I − N MᵀM N)/2`, removes to first order what the point and the step lack.
    Without it errors would add up, and grow exponentially where the next step is
    computed as if there were none.
    """
    square = gram(vector, axis_name)
    # All eigenvalues of the square that are not 0 are η²; this is their mean.
    trace = jnp.trace(square, axis1=-2, axis2=-1)[..., None, None]
    length = dot(square, square) / nonzero(trace)
    # (1/√(1 + η²) − 1)/η² without the division.
    root = jnp.sqrt(1 + length)
    moved = point + vector
    identity = jnp.eye(square.shape[-1], dtype=square.dtype)
    closed = jnp.broadcast_to(identity, square.shape) - square / (root * (1 + root))
    whole = matmul(closed, matmul(gram(moved, axis_name), closed))
    return matmul(moved, (3 * closed - matmul(closed, whole)) / 2)


def geodesic_step(point: Array, vector: Array, axis_name: AxisName) -> Array:
    """Exponential map of the unit sphere along the tangent part of `vector`."""
    point = normalize(point, axis_name)
    tangent = vector - point * dot(point, vector, axis_name)
    angle = frobenius_norm(tangent, axis_name)
    moved = jnp.cos(angle) * point + jnp.sin(angle) * (tangent / nonzero(angle))
    # Rounding would make the radius drift.
    return normalize(moved, axis_name)


def short_repr(manifold: Any) -> str:
    """The size, and of the other fields those that are not at their default."""
    size, *others = dataclasses.fields(manifold)
    shown = [size, *(f for f in others if getattr(manifold, f.name) != f.default)]
    values = ", ".join(f"{f.name}={getattr(manifold, f.name)!r}" for f in shown)
    return f"{type(manifold).__name__}({values})"
