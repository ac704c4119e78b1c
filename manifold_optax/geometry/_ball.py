"""Sets with a boundary: the ball of a norm, and the band of singular values."""

import dataclasses

from jaxtyping import Array

from manifold_optax._typing import AxisName
from manifold_optax.geometry._manifold import check_size, Manifold
from manifold_optax.geometry._norm import BallNorm
from manifold_optax.geometry._spectral_faces import project_onto_cone
from manifold_optax.geometry._spectral_interval import distance_from_interval
from manifold_optax.linalg import spectral_clip
from manifold_optax.linalg._leading import leading_triple
from manifold_optax.linalg._reductions import nonzero


@dataclasses.dataclass(frozen=True)
class Ball(Manifold):
    """Matrices of `norm` at most `radius`: a set with a boundary.

    `project` is the nearest point: it scales (Frobenius), clips the singular values
    (Spectral, RmsToRms), scales the rows or columns that exceed (RowRms, ColumnRms) or
    clips the entries (Max). `to_tangent` takes a displacement to the nearest one that
    does not lead out: inside the ball the vector itself, on the boundary without its
    outward part. `residual` is the relative excess, 0 inside.

    Args:
        norm: one of the norms named above, or a `BallNorm` of your own.
        radius: a number > 0.

    Raises:
        ValueError: for another norm, or a radius that is not a positive number.

    Example:
        >>> Ball(Max(), 2.0).project(jnp.array([[3.0, -1.0]]))
        Array([[ 2., -1.]], dtype=float32)

    Source: T. Pethick et al., "Training Deep Learning Models with Norm-Constrained
    LMOs" (arXiv 2502.07529, 2025); F. Cesista's posts on spectral balls (2025).
    """

    norm: BallNorm
    radius: float = 1.0

    def __post_init__(self) -> None:
        """Checks the norm and the radius."""
        if not isinstance(self.norm, BallNorm):
            names = ", ".join(_names(BallNorm))
            raise ValueError(f"norm must be one of {names}, got {self.norm!r}.")
        check_size("radius", self.radius, ())

    @property
    def size(self) -> float:
        """The radius."""
        return self.radius

    @property
    def transposable(self) -> bool:
        """That of the norm."""
        return self.norm.transposable

    def unit(self) -> "Ball":
        """The unit ball of the norm."""
        return Ball(self.norm)

    def _place(self, x: Array) -> Array:
        return self.radius * x / nonzero(self.norm.value(x))[..., None, None]

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        return self.norm.project_ball(x, axis_name=axis_name)

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        return self.norm.to_cone(point, vector, axis_name=axis_name)

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        return self.norm.excess(x, axis_name=axis_name)


@dataclasses.dataclass(frozen=True)
class Band(Manifold):
    """Matrices with all singular values in `[low, high]`: a set with two boundaries.

    Between the ball of the spectral norm (`low = 0`) and the Stiefel manifold
    (`low = high`). `project` clips the singular values from both sides; `to_tangent`
    removes what leads out.

    Args:
        low: a number with 0 ≤ low ≤ 0.99·high. Closer is the Stiefel manifold.
        high: a number > 0.

    Raises:
        ValueError: for bounds out of range.

    Example:
        >>> Band(0.5, 2.0).project(jnp.diag(jnp.array([3.0, 0.1]))).round(5)
        Array([[2. , 0. ],
               [0. , 0.5]], dtype=float32)

    Source: F. Cesista's posts on spectral bands (2025).
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Checks the bounds."""
        check_size("high", self.high, ())
        if not 0 <= self.low <= 0.99 * self.high:
            raise ValueError(
                f"low must be from 0 to 0.99·high, got low={self.low!r} and high="
                f"{self.high!r}; singular values all equal are Stiefel({self.high!r})."
            )

    @property
    def size(self) -> float:
        """The upper bound."""
        return self.high

    def unit(self) -> "Band":
        """The band with the same ratio of bounds and the upper bound 1."""
        return Band(self.low / self.high, 1.0)

    def interval(self, x: Array, axis_name: AxisName = None) -> tuple[float, float]:
        """Least and largest singular value in the unit band."""
        del x, axis_name
        return self.low / self.high, 1.0

    def _place(self, x: Array) -> Array:
        return self.high * x / nonzero(leading_triple(x).norm)

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        low, high = self.interval(x)
        return spectral_clip(x, high, low, axis_name=axis_name)

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        return project_onto_cone(point, vector, self.interval(point), axis_name)

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        return distance_from_interval(x, *self.interval(x), axis_name)


def _names(base: type) -> list[str]:
    """Names of the classes below `base` that can be made, in order of definition."""
    below = [name for kind in base.__subclasses__() for name in _names(kind)]
    own = base.__name__
    return below or ([] if own.startswith("_") else [own])
