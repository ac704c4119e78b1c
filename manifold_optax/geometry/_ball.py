"""Sets with a boundary: the ball of a norm, and the band of singular values."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._base import check_size, Manifold, Norm
from manifold_optax.geometry._entry_norms import Max
from manifold_optax.geometry._lines import line_dot, line_norm
from manifold_optax.geometry._norms import Frobenius, rms_gain, RmsToRms, Spectral
from manifold_optax.geometry._row_norms import ColumnRms, RowRms
from manifold_optax.geometry._spectral_faces import ACTIVE, project_onto_cone
from manifold_optax.geometry._spectral_sphere import leading_triple
from manifold_optax.linalg import (
    dot,
    frobenius_norm,
    gram,
    nonzero,
    row_count,
    spectral_clip,
)

_KNOWN = (Frobenius, Spectral, RmsToRms, RowRms, ColumnRms, Max)


@dataclasses.dataclass(frozen=True)
class Ball(Manifold):
    """Matrices of `norm` at most `radius`: a set with a boundary.

    `project` is the nearest point: it scales (Frobenius), clips the singular values
    (Spectral, RmsToRms), scales the rows or columns that exceed (RowRms, ColumnRms) or
    clips the entries (Max). `to_tangent` takes a displacement to the nearest one that
    does not lead out: inside the ball the vector itself, on the boundary without its
    outward part. `residual` is the relative excess, 0 inside.

    Args:
        norm: one of the norms named above.
        radius: a number > 0.

    Raises:
        ValueError: for another norm, or a radius that is not a positive number.

    Example:
        >>> Ball(Max(), 2.0).project(jnp.array([[3.0, -1.0]]))
        Array([[ 2., -1.]], dtype=float32)

    Source: T. Pethick et al., "Training Deep Learning Models with Norm-Constrained
    LMOs" (arXiv 2502.07529, 2025); F. Cesista's posts on spectral balls (2025).
    """

    norm: Norm
    radius: float = 1.0

    def __post_init__(self) -> None:
        """Checks the norm and the radius."""
        if not isinstance(self.norm, _KNOWN):
            names = ", ".join(kind.__name__ for kind in _KNOWN)
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

    def random_point(
        self, key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32
    ) -> Matrix:
        """Gaussian matrix, scaled to the boundary; drawn in float32, then cast."""
        x = jax.random.normal(key, shape, jnp.float32)
        length = nonzero(self.norm.value(x))[..., None, None]
        return self.project(self.radius * x / length).astype(dtype)

    def interval(self, x: Array, axis_name: AxisName = None) -> tuple[float, float]:
        """Bounds of the singular values on the unit ball of a spectral norm."""
        return 0.0, _bound(self.norm, x, axis_name)

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        bound = _bound(self.norm, x, axis_name)
        if isinstance(self.norm, Spectral | RmsToRms):
            return spectral_clip(x, bound, axis_name=axis_name)
        return x * (bound / jnp.maximum(block_lengths(self.norm, x, axis_name), bound))

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        if isinstance(self.norm, Spectral | RmsToRms):
            interval = self.interval(point, axis_name)
            return project_onto_cone(point, vector, interval, axis_name)
        lengths = block_lengths(self.norm, point, axis_name)
        normal = point / nonzero(lengths)
        outward = jnp.maximum(_products(self.norm, normal, vector, axis_name), 0)
        active = lengths >= (1 - ACTIVE) * _bound(self.norm, point, axis_name)
        return vector - jnp.where(active, normal * outward, jnp.zeros_like(vector))

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        excess = (
            block_lengths(self.norm, x, axis_name) / _bound(self.norm, x, axis_name) - 1
        )
        largest = jnp.max(jnp.maximum(excess, 0), axis=(-2, -1), initial=0)
        return largest if axis_name is None else jax.lax.pmax(largest, axis_name)


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

    def random_point(
        self, key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32
    ) -> Matrix:
        """Gaussian matrix of spectral norm `high`, projected onto the band."""
        x = jax.random.normal(key, shape, jnp.float32)
        scaled = self.high * x / nonzero(leading_triple(x).norm)
        return self.project(scaled).astype(dtype)

    def interval(self, x: Array, axis_name: AxisName = None) -> tuple[float, float]:
        """Bounds of the singular values on the unit band."""
        del x, axis_name
        return self.low / self.high, 1.0

    def _project(self, x: Array, axis_name: AxisName) -> Array:
        low, high = self.interval(x)
        return spectral_clip(x, high, low, axis_name=axis_name)

    def _to_tangent(self, point: Array, vector: Array, axis_name: AxisName) -> Array:
        return project_onto_cone(point, vector, self.interval(point), axis_name)

    def _residual(self, x: Array, axis_name: AxisName) -> Array:
        if axis_name is None and x.shape[-2] < x.shape[-1]:
            return self._residual(x.mT, None)
        low, high = self.interval(x)
        squares = jnp.linalg.eigvalsh(gram(x, axis_name))
        values = jnp.sqrt(jnp.maximum(squares, 0))
        off = jnp.maximum(values - high, low - values)
        return jnp.max(jnp.maximum(off, 0), axis=-1, initial=0)


def _bound(norm: Norm, x: Array, axis_name: AxisName) -> float:
    """Length of a block at the boundary of the unit ball."""
    match norm:
        case RmsToRms():
            return rms_gain(x, axis_name)
        case RowRms():
            return max(x.shape[-1], 1) ** 0.5
        case ColumnRms():
            return max(row_count(x, axis_name), 1) ** 0.5
        case _:
            return 1.0


def block_lengths(norm: Norm, x: Array, axis_name: AxisName) -> Array:
    """Lengths of the blocks of which the norm takes the largest, with axes kept."""
    match norm:
        case Spectral() | RmsToRms():
            return leading_triple(x, axis_name).norm
        case RowRms():
            return line_norm(x, "rows", axis_name)
        case ColumnRms():
            return line_norm(x, "columns", axis_name)
        case Max():
            return jnp.abs(x)
        case _:
            return frobenius_norm(x, axis_name)


def _products(norm: Norm, x: Array, y: Array, axis_name: AxisName) -> Array:
    """Inner products of the blocks, with axes kept."""
    match norm:
        case RowRms():
            return line_dot(x, y, "rows", axis_name)
        case ColumnRms():
            return line_dot(x, y, "columns", axis_name)
        case Max():
            return x * y
        case _:
            return dot(x, y, axis_name)
