"""The tangent cone of the matrices whose singular values lie in an interval.

Where singular values sit at an end of the interval, a displacement `A` may not push
them out: with `U`, `V` the singular vectors at the upper end `sym(UᵀAV)` has no
positive eigenvalue, with those at the lower end no negative one. All other parts of `A`
are free. The map `A ↦ sym(UᵀAV)` and its adjoint `Y ↦ UYVᵀ` compose to the identity on
symmetric matrices, which makes the projection onto the cone explicit.

The vectors come from an eigendecomposition, the fast way on a CPU. Products alone, the
fast way on an accelerator, give the same spaces by their projectors: see
`_spectral_faces_by_products`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName
from manifold_optax.geometry._blocks import block_dot
from manifold_optax.geometry._norm import ACTIVE
from manifold_optax.geometry._spectral_faces_by_products import (
    faces_by_products,
    ProductFaces,
)
from manifold_optax.linalg._device import by_platform, on_cpu
from manifold_optax.linalg._positive_part import positive_part_by_eigh
from manifold_optax.linalg._reductions import (
    gram,
    inner,
    matmul,
    nonzero,
    symmetric,
)


class Faces(NamedTuple):
    """Singular vectors at the two ends; those between have zero left vectors."""

    left: Array
    right: Array
    upper: Array
    """`[*batch, n, n]`, 1 where both singular values are at the upper end, else 0."""
    lower: Array

    def overlap(self, x: Array, axis_name: AxisName) -> Array:
        """`sym(UᵀxV)`."""
        return symmetric(inner(self.left, matmul(x, self.right), axis_name))

    def adjoint(self, y: Array) -> Array:
        """`U y Vᵀ`."""
        return matmul(self.left, matmul(y, self.right.mT))

    def outward(self, y: Array) -> Array:
        """Part of a symmetric `y` that leads out: its projection on the polar cone."""
        rises = positive_part_by_eigh(y * self.upper)
        return rises - positive_part_by_eigh(-y * self.lower)


def active_faces(
    point: Array, low: float, high: float, axis_name: AxisName = None
) -> Faces | ProductFaces:
    """Faces of `{low ≤ σ ≤ high}` at a tall `point`; for use inside `by_platform`."""
    faces = faces_by_eigh if on_cpu() else faces_by_products
    return faces(point, low, high, axis_name)


def faces_by_eigh(
    point: Array, low: float, high: float, axis_name: AxisName = None
) -> Faces:
    """`active_faces` by an eigendecomposition; `outward` takes two more."""
    values, right = jnp.linalg.eigh(gram(point, axis_name))
    left = matmul(point, right)
    # As lengths, not as roots of the eigenvalues, in which small ones are rounding.
    sigma = jnp.sqrt(block_dot(left, left, "columns", axis_name))
    above = sigma >= (1 - ACTIVE) * high
    # A lower end of 0 is no constraint: singular values are not negative.
    below = (sigma <= low + ACTIVE * high) & (low > 0)
    left = left / nonzero(sigma)
    left = jnp.where(above | below, left, jnp.zeros_like(left))
    return Faces(left, right, _mask(above, values), _mask(below, values))


def project_onto_cone(
    point: Array, vector: Array, interval: tuple[float, float], axis_name: AxisName
) -> Array:
    """Nearest displacement to `vector` that stays in the set, to first order."""
    if axis_name is None and point.shape[-2] < point.shape[-1]:
        return project_onto_cone(point.mT, vector.mT, interval, None).mT
    if 0 in point.shape:
        return vector

    def project(point: Array, vector: Array) -> Array:
        faces = active_faces(point, *interval, axis_name)
        return vector - faces.adjoint(faces.outward(faces.overlap(vector, axis_name)))

    return by_platform(project, point, vector)


def _mask(active: Array, like: Array) -> Array:
    pairs = active & active.mT
    return pairs.astype(like.dtype)
