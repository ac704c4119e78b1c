"""The table of the theory: (manifold, norm) → steepest unit tangent direction."""

from collections.abc import Callable

import jax.numpy as jnp

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._base import Manifold, Norm
from manifold_optax.geometry._euclidean import Euclidean
from manifold_optax.geometry._norms import Frobenius, Max, Spectral
from manifold_optax.geometry._stiefel import Stiefel
from manifold_optax.geometry._stiefel_spectral import stiefel_spectral_direction
from manifold_optax.linalg import frobenius_norm, normalize

TABLE = """\
manifold    norm        direction                        optimizer
any         Frobenius   normalised tangent projection    hyperspherical descent (Sphere)
Euclidean   Max         sign                             sign descent
Euclidean   Spectral    polar factor                     Muon
Stiefel     Spectral    solution of the dual problem     manifold Muon"""


def steepest_direction(manifold: Manifold, norm: Norm) -> Callable[..., Matrix]:
    """Steepest unit tangent direction as a function of point and gradient.

    Args:
        manifold: the constraint; its size is left to the caller: the function returned
            is for the unit manifold.
        norm: the norm in which the direction has length 1.

    Returns:
        `(point, gradient, axis_name=None) -> direction` for one matrix `[m, n]` in at
        least float32, `m ≥ n` (all pairs of the table commute with transposition). The
        inner product with the gradient is ≥ 0. A gradient without a tangent part gives
        zero.

    Raises:
        ValueError: for a pair that is not in the table; the message prints the table.

    Example:
        >>> direction = steepest_direction(Euclidean(), Max())
        >>> direction(jnp.zeros((2, 1)), jnp.array([[0.5], [-2.0]]))
        Array([[ 1.],
               [-1.]], dtype=float32)

    Source: the table of J. Bernstein, "Modular Manifolds", Thinking Machines Lab
    (2025).
    """

    def project_and_normalize(
        point: Matrix, gradient: Matrix, axis_name: AxisName = None
    ) -> Matrix:
        unit = manifold.unit()
        vector = normalize(gradient, axis_name)
        # Twice: in float32 the first projection leaves rounding noise behind.
        for _ in range(2):
            vector = unit.to_tangent(point, vector, axis_name=axis_name)
        noise = 64 * jnp.finfo(vector.dtype).eps
        is_normal = frobenius_norm(vector, axis_name) <= noise
        direction = normalize(vector, axis_name)
        return jnp.where(is_normal, jnp.zeros_like(direction), direction)

    def ignore_point(
        point: Matrix, gradient: Matrix, axis_name: AxisName = None
    ) -> Matrix:
        del point
        return norm.steepest(gradient, axis_name=axis_name)

    def solve_dual(
        point: Matrix, gradient: Matrix, axis_name: AxisName = None
    ) -> Matrix:
        return stiefel_spectral_direction(
            point, gradient, axis_name=axis_name
        ).direction

    match manifold, norm:
        case _, Frobenius():
            return project_and_normalize
        case Euclidean(), Max() | Spectral():
            return ignore_point
        case Stiefel(), Spectral():
            return solve_dual
        case _:
            raise ValueError(
                f"No direction is known for {manifold} with {norm}. The pairs that "
                f"are:\n{TABLE}"
            )
