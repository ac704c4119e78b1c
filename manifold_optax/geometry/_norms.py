"""Norms of a step: Frobenius, largest entry, spectral."""

import dataclasses

import jax.numpy as jnp

from manifold_optax._typing import AxisName, Matrix, PerMatrix
from manifold_optax.geometry._base import Norm
from manifold_optax.linalg import frobenius_norm, normalize, nuclear_norm, polar


@dataclasses.dataclass(frozen=True)
class Frobenius(Norm):
    """`‖x‖_F = √Σ x²`, its own dual; steepest: the normalised gradient.

    Example:
        >>> Frobenius().steepest(jnp.array([[3.0, 4.0]]))
        Array([[0.6, 0.8]], dtype=float32)
    """

    def value(self, x: Matrix) -> PerMatrix:
        """Frobenius norm of each matrix, `[*batch]`."""
        return frobenius_norm(_widen(x))[..., 0, 0]

    def dual_value(self, gradient: Matrix) -> PerMatrix:
        """Frobenius norm of each matrix, `[*batch]`."""
        return self.value(gradient)

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """`g / ‖g‖_F`."""
        return normalize(_widen(gradient), axis_name).astype(gradient.dtype)


@dataclasses.dataclass(frozen=True)
class Max(Norm):
    """`max |x|`, dual `Σ |g|`; steepest: the sign.

    Example:
        >>> Max().steepest(jnp.array([[3.0, -4.0]]))
        Array([[ 1., -1.]], dtype=float32)
    """

    def value(self, x: Matrix) -> PerMatrix:
        """Largest modulus of each matrix, `[*batch]`."""
        return jnp.max(jnp.abs(_widen(x)), axis=(-2, -1), initial=0)

    def dual_value(self, gradient: Matrix) -> PerMatrix:
        """Sum of the moduli of each matrix, `[*batch]`."""
        return jnp.sum(jnp.abs(_widen(gradient)), axis=(-2, -1))

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """`sign(g)`, 0 where the gradient is 0."""
        del axis_name
        return jnp.sign(gradient)


@dataclasses.dataclass(frozen=True)
class Spectral(Norm):
    """`‖x‖₂`, the largest singular value; dual: the nuclear norm; steepest: polar.

    Example:
        >>> Spectral().dual_value(jnp.diag(jnp.array([3.0, 4.0])))
        Array(7., dtype=float32)
    """

    def value(self, x: Matrix) -> PerMatrix:
        """Largest singular value of each matrix, `[*batch]`; by LAPACK."""
        values = jnp.linalg.svd(_widen(x), compute_uv=False)
        return jnp.max(values, axis=-1, initial=0)

    def dual_value(self, gradient: Matrix) -> PerMatrix:
        """Nuclear norm of each matrix, `[*batch]`; by LAPACK."""
        return nuclear_norm(gradient)

    def steepest(self, gradient: Matrix, *, axis_name: AxisName = None) -> Matrix:
        """Polar factor of `g`; for rank-deficient `g` the partial isometry."""
        return polar(gradient, axis_name=axis_name)


def _widen(x: Matrix) -> Matrix:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
