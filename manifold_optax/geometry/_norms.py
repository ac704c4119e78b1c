"""Norms of a whole matrix: Frobenius, spectral, RMS→RMS."""

import abc
import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix, PerMatrix
from manifold_optax.geometry._blocks import Blocks
from manifold_optax.geometry._norm import BallNorm, BlockNorm
from manifold_optax.geometry._spectral_faces import project_onto_cone
from manifold_optax.geometry._spectral_shrinkage import spectral_shrinkage
from manifold_optax.linalg import nuclear_norm, polar, spectral_clip
from manifold_optax.linalg._device import chosen_by_platform
from manifold_optax.linalg._float64 import in_float64
from manifold_optax.linalg._leading import leading_triple
from manifold_optax.linalg._nuclear_norm import nuclear_norm_by_products
from manifold_optax.linalg._reductions import (
    gram,
    near_one,
    normalize,
    row_count,
)
from manifold_optax.linalg._scaling import widen


@dataclasses.dataclass(frozen=True)
class Frobenius(BlockNorm):
    """`‖x‖_F = √Σ x²`, its own dual; steepest: the normalised gradient.

    Example:
        >>> Frobenius().steepest(jnp.array([[3.0, 4.0]]))
        Array([[0.6, 0.8]], dtype=float32)
    """

    blocks: ClassVar[Blocks] = "matrix"

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """`g / ‖g‖_F`."""
        return normalize(widen(gradient), axis_name).astype(gradient.dtype)

    def shrinkage(self, x: Matrix, rate: Array, *, axis_name: AxisName = None) -> Array:
        """`−rate·x`, exact however small the rate is."""
        del axis_name
        return -rate * x


class SpectralNorm(BallNorm):
    """The largest singular value, divided by a number of the shape."""

    @abc.abstractmethod
    def unit_length(self, x: Array, axis_name: AxisName = None) -> float:
        """Largest singular value of a matrix `m × n` of norm 1."""

    def interval(self, x: Array, axis_name: AxisName = None) -> tuple[float, float]:
        """Least and largest singular value in the unit ball."""
        return 0.0, self.unit_length(x, axis_name)

    def value(self, x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """Largest singular value over `unit_length`, `[*batch]`.

        On a CPU by LAPACK; with split rows, and elsewhere, by the Gram matrix of the
        short side.
        """
        return _spectral(widen(x), axis_name) / self.unit_length(x, axis_name)

    def dual_value(self, gradient: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """Nuclear norm times `unit_length`, `[*batch]`.

        On a CPU by LAPACK, with split rows by the Gram matrix of the columns in
        float64; elsewhere by the polar factor.
        """
        return self.unit_length(gradient, axis_name) * _nuclear(gradient, axis_name)

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """Polar factor of `g` times `unit_length`; of low rank: partial isometry."""
        factor = polar(widen(gradient), axis_name=axis_name)
        direction = self.unit_length(gradient, axis_name) * factor
        return direction.astype(gradient.dtype)

    def project_ball(self, x: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """Singular values clipped at `unit_length`."""
        bound = self.unit_length(x, axis_name)
        return spectral_clip(x, bound, axis_name=axis_name)

    def to_cone(
        self, point: Matrix, vector: Matrix, *, axis_name: AxisName = None
    ) -> Matrix:
        """`vector` without what raises singular values that are at the bound."""
        interval = self.interval(point, axis_name)
        return project_onto_cone(point, vector, interval, axis_name)

    def excess(self, x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
        """How far the largest singular value exceeds, over `unit_length`."""
        norm = leading_triple(x, axis_name).norm / self.unit_length(x, axis_name)
        return jnp.maximum(norm - 1, 0)[..., 0, 0]

    def shrinkage(self, x: Matrix, rate: Array, *, axis_name: AxisName = None) -> Array:
        """What the singular values have above `(1 − rate)` times the largest."""
        return spectral_shrinkage(x, rate, axis_name)


@dataclasses.dataclass(frozen=True)
class Spectral(SpectralNorm):
    """`‖x‖₂`, the largest singular value; dual: the nuclear norm; steepest: polar.

    Example:
        >>> Spectral().dual_value(jnp.diag(jnp.array([3.0, 4.0])))
        Array(7., dtype=float32)
    """

    def unit_length(self, x: Array, axis_name: AxisName = None) -> float:
        """Always 1."""
        del x, axis_name
        return 1.0


@dataclasses.dataclass(frozen=True)
class RmsToRms(SpectralNorm):
    """`√(n/m)·‖x‖₂` for `m × n`; dual `√(m/n)·‖g‖_*`; steepest: `√(m/n)·polar(g)`.

    The largest gain of the linear map `fan_in → fan_out` where input and output are
    measured by their root mean square. A wide matrix is not the transpose of a tall one
    here: rows are fan-out.

    Example:
        >>> RmsToRms().value(jnp.array([[3.0], [4.0], [0.0], [0.0]]))
        Array(2.5, dtype=float32)

    Source: G. Yang, J. Simon, J. Bernstein, "A Spectral Condition for Feature Learning"
    (arXiv 2310.17813, 2023).
    """

    @property
    def transposable(self) -> bool:
        """False: the norms of `x` and `xᵀ` differ by the factor `m/n`."""
        return False

    @property
    def free_of_shape(self) -> Spectral:
        """The spectral norm."""
        return Spectral()

    def unit_length(self, x: Array, axis_name: AxisName = None) -> float:
        """`√(m/n)`, for a matrix without rows or columns 1."""
        rows, columns = row_count(x, axis_name), x.shape[-1]
        return (rows / columns) ** 0.5 if rows and columns else 1.0


def _spectral(x: Array, axis_name: AxisName) -> Array:
    def by_svd(x: Array) -> Array:
        return jnp.max(jnp.linalg.svd(x, compute_uv=False), axis=-1, initial=0)

    def by_gram(x: Array) -> Array:
        return leading_triple(x, axis_name).norm[..., 0, 0]

    split = axis_name is not None
    return by_gram(x) if split else chosen_by_platform(by_svd, by_gram)(x)


def _nuclear(x: Array, axis_name: AxisName) -> Array:
    if axis_name is None:
        return nuclear_norm(x)

    def sum_of_roots(x: Array) -> Array:
        # In float64, where the square of a float32 matrix loses no digits of it.
        values = jnp.linalg.eigvalsh(gram(x, axis_name))
        return jnp.sum(jnp.sqrt(jnp.maximum(values, 0)), axis=-1)

    def by_eigh(x: Array) -> Array:
        scaled, scale = near_one(x, axis_name)
        return scale[..., 0, 0] * in_float64(sum_of_roots)(scaled)

    def by_products(x: Array) -> Array:
        return nuclear_norm_by_products(x, axis_name)[..., 0, 0]

    return chosen_by_platform(by_eigh, by_products)(widen(x))
