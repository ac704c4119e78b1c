"""Norms of a whole matrix: Frobenius, spectral, RMS→RMS."""

import dataclasses

import jax.numpy as jnp

from manifold_optax._typing import AxisName, Matrix, PerMatrix
from manifold_optax.geometry._base import Norm, widen
from manifold_optax.linalg import (
    frobenius_norm,
    normalize,
    nuclear_norm,
    polar,
    row_count,
)


@dataclasses.dataclass(frozen=True)
class Frobenius(Norm):
    """`‖x‖_F = √Σ x²`, its own dual; steepest: the normalised gradient.

    Example:
        >>> Frobenius().steepest(jnp.array([[3.0, 4.0]]))
        Array([[0.6, 0.8]], dtype=float32)
    """

    def value(self, x: Matrix) -> PerMatrix:
        """Frobenius norm of each matrix, `[*batch]`."""
        return frobenius_norm(widen(x))[..., 0, 0]

    def dual_value(self, gradient: Matrix) -> PerMatrix:
        """Frobenius norm of each matrix, `[*batch]`."""
        return self.value(gradient)

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """`g / ‖g‖_F`."""
        return normalize(widen(gradient), axis_name).astype(gradient.dtype)


@dataclasses.dataclass(frozen=True)
class Spectral(Norm):
    """`‖x‖₂`, the largest singular value; dual: the nuclear norm; steepest: polar.

    Example:
        >>> Spectral().dual_value(jnp.diag(jnp.array([3.0, 4.0])))
        Array(7., dtype=float32)
    """

    def value(self, x: Matrix) -> PerMatrix:
        """Largest singular value of each matrix, `[*batch]`; by LAPACK."""
        values = jnp.linalg.svd(widen(x), compute_uv=False)
        return jnp.max(values, axis=-1, initial=0)

    def dual_value(self, gradient: Matrix) -> PerMatrix:
        """Nuclear norm of each matrix, `[*batch]`; by LAPACK."""
        return nuclear_norm(gradient)

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """Polar factor of `g`; for rank-deficient `g` the partial isometry."""
        return polar(gradient, axis_name=axis_name)


@dataclasses.dataclass(frozen=True)
class RmsToRms(Norm):
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

    def value(self, x: Matrix) -> PerMatrix:
        """Spectral norm times `√(n/m)`, `[*batch]`; by LAPACK."""
        return Spectral().value(x) / rms_gain(x)

    def dual_value(self, gradient: Matrix) -> PerMatrix:
        """Nuclear norm times `√(m/n)`, `[*batch]`; by LAPACK."""
        return rms_gain(gradient) * nuclear_norm(gradient)

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """Polar factor of `g` times `√(m/n)`."""
        wide = widen(gradient)
        direction = rms_gain(gradient, axis_name) * polar(wide, axis_name=axis_name)
        return direction.astype(gradient.dtype)


def rms_gain(x: Matrix, axis_name: AxisName = None) -> float:
    """`√(m/n)`: the spectral norm of a matrix whose RMS→RMS norm is 1."""
    rows, columns = row_count(x, axis_name), x.shape[-1]
    return (rows / columns) ** 0.5 if rows and columns else 1.0
