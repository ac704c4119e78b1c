"""The faces of `_spectral_faces` by matrix products alone.

With the polar factor `Q` of a point and its root `H = QᵀW`, whose eigenvalues are the
singular values, the singular vectors at an end of the interval enter by the projector
`P = VVᵀ` onto the right ones and by `Q P = UVᵀ` alone. Matrices on a face are written
in the basis of the columns, as `V Y Vᵀ` in place of `Y`.
"""

from typing import NamedTuple

from jaxtyping import Array

from manifold_optax._typing import AxisName
from manifold_optax.geometry._norm import ACTIVE
from manifold_optax.linalg import polar
from manifold_optax.linalg._positive_part import (
    positive_part_by_products,
    positive_projector,
)
from manifold_optax.linalg._reductions import identity_like, inner, matmul, symmetric


class ProductFaces(NamedTuple):
    """Projectors onto the right singular vectors at both ends, and the isometry."""

    isometry: Array
    """`UVᵀ` of the singular vectors at the ends, `[*batch, m, n]`."""
    upper: Array
    """`VVᵀ` of those at the upper end, `[*batch, n, n]`."""
    lower: Array | None
    """The same at the lower end; `None` where the lower end is 0, no constraint."""

    def overlap(self, x: Array, axis_name: AxisName) -> Array:
        """`V sym(UᵀxV) Vᵀ`."""
        return symmetric(inner(self.isometry, x, axis_name))

    def adjoint(self, y: Array) -> Array:
        """`U Y Vᵀ` for `y = V Y Vᵀ`."""
        return matmul(self.isometry, y)

    def outward(self, y: Array) -> Array:
        """Part of a symmetric `y` that leads out: its projection on the polar cone."""
        rises = positive_part_by_products(_within(self.upper, y))
        if self.lower is None:
            return rises
        return rises - positive_part_by_products(_within(self.lower, -y))


def faces_by_products(
    point: Array, low: float, high: float, axis_name: AxisName = None
) -> ProductFaces:
    """Faces of `{low ≤ σ ≤ high}` at a tall `point`.

    A singular value is at an end within `ACTIVE` of it, as in `active_faces`; where its
    distance from that border is below some rounding units of the norm of the point, it
    is there in part, and what leads out at it is removed in part.

    Cost: a polar factor, `4·m·n²` FLOPs, and 41 products of `n × n` matrices for each
    end; `outward` takes 44 for each.
    """
    factor = polar(point, axis_name=axis_name)
    root = symmetric(inner(factor, point, axis_name))
    identity = identity_like(root)
    upper = positive_projector(root - (1 - ACTIVE) * high * identity)
    if low <= 0:
        return ProductFaces(matmul(factor, upper), upper, None)
    lower = positive_projector((low + ACTIVE * high) * identity - root)
    return ProductFaces(matmul(factor, upper + lower), upper, lower)


def _within(projector: Array, y: Array) -> Array:
    return symmetric(matmul(projector, matmul(y, projector)))
