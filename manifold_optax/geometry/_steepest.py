"""The table of the theory: (manifold, norm) → steepest unit tangent direction."""

from collections.abc import Callable

import jax.numpy as jnp

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._ball import Ball, Band, block_lengths
from manifold_optax.geometry._band_spectral import band_spectral_direction
from manifold_optax.geometry._base import Manifold, Norm
from manifold_optax.geometry._diagonal_gram import DiagonalGram
from manifold_optax.geometry._entry_norms import Max, PNorm
from manifold_optax.geometry._euclidean import Euclidean
from manifold_optax.geometry._gram_spectral import gram_spectral_direction
from manifold_optax.geometry._norms import Frobenius, rms_gain, RmsToRms, Spectral
from manifold_optax.geometry._oblique import Oblique
from manifold_optax.geometry._p_norm_sphere import p_norm_direction, PNormSphere
from manifold_optax.geometry._row_norms import ColumnRms, RowRms
from manifold_optax.geometry._spectral_sphere import leading_triple, SpectralSphere
from manifold_optax.geometry._sphere import Sphere
from manifold_optax.geometry._sphere_spectral import normal_spectral_direction
from manifold_optax.geometry._stiefel import Stiefel
from manifold_optax.geometry._stiefel_spectral import stiefel_spectral_direction
from manifold_optax.linalg import normalize

TABLE = """\
manifold            norm         direction                       optimizer
any                 Frobenius    normalised tangent projection   hyperspherical descent
Euclidean           any          that of the norm                sign descent (Max),
                                                                 Muon (Spectral)
Sphere              Spectral*    root of a dual in one number    Muon on the sphere
SpectralSphere      Spectral*    root of a dual in one number    spectral sphere (SSO)
Stiefel             Spectral*    solution of the dual problem    manifold Muon
Oblique             Spectral*    Douglas–Rachford splitting
DiagonalGram        Spectral*    Douglas–Rachford splitting
Ball(Spectral*)     Spectral*    ADMM; inside: polar factor      Muon, norm capped
Band                Spectral*    ADMM; inside: polar factor
Ball(norm)          the same     that of the norm, of the part   Frobenius, RowRms,
                                 that does not lead out          ColumnRms, Max
Oblique("rows")     RowRms       normalised tangent rows
Oblique("columns")  ColumnRms    normalised tangent columns
Sphere              PNorm        root of a dual in one number
PNormSphere         PNorm        root of a dual in one number
Spectral* is Spectral or RmsToRms."""


def steepest_direction(manifold: Manifold, norm: Norm) -> Callable[..., Matrix]:
    """Steepest unit tangent direction as a function of point and gradient.

    On a set with a boundary (Ball, Band) a direction is allowed if its negative, along
    which the step goes, does not lead out.

    Args:
        manifold: the constraint; its size is left to the caller: the function returned
            is for the unit manifold.
        norm: the norm in which the direction has length 1.

    Returns:
        `(point, gradient, axis_name=None) -> direction` for one matrix `[m, n]` in at
        least float32: `m ≥ n` where manifold and norm are `transposable`, else
        `fan_out × fan_in`. The inner product with the gradient is ≥ 0. A gradient
        without a tangent part gives zero.

    Raises:
        ValueError: for a pair that is not in the table; the message prints the table.

    Example:
        >>> direction = steepest_direction(Euclidean(), Max())
        >>> direction(jnp.zeros((2, 1)), jnp.array([[0.5], [-2.0]]))
        Array([[ 1.],
               [-1.]], dtype=float32)

    Source: the table of J. Bernstein, "Modular Manifolds", Thinking Machines Lab
    (2025), extended.
    """
    match manifold, norm:
        case Euclidean(), _:
            return _ignore_point(norm)
        case _, Frobenius():
            return _project_first(manifold, norm)
        case (
            (Oblique(of="rows"), RowRms())
            | (Oblique(of="columns"), ColumnRms())
            | (Ball(norm=RowRms()), RowRms())
            | (Ball(norm=ColumnRms()), ColumnRms())
            | (Ball(norm=Max()), Max())
        ):
            return _project_first(manifold, norm)
        case Sphere() | PNormSphere(), PNorm():
            return _solve_p_norm(manifold, norm.p)
        case _, Spectral() | RmsToRms() if _has_spectral_solver(manifold):
            return _solve_spectral(manifold, norm)
        case _:
            raise ValueError(
                f"No direction is known for {manifold} with {norm}. The pairs that "
                f"are:\n{TABLE}"
            )


def needs_whole(manifold: Manifold, norm: Norm) -> bool:
    """Whether the direction of a pair wants matrices that are not split.

    Most directions that are searched for sum over the long side at every trial, so
    that a split one would cost messages each time. And for `RmsToRms` on `Stiefel`
    fan-out, which is then the side that is split, may be the short one.

    Example:
        >>> needs_whole(Sphere(), Spectral()), needs_whole(Stiefel(), Spectral())
        (True, False)
    """
    match manifold, norm:
        case Euclidean(), _:
            return False
        case Stiefel(), _:
            return isinstance(norm, RmsToRms)
        case _:
            return isinstance(norm, Spectral | RmsToRms | PNorm)


def _ignore_point(norm: Norm) -> Callable[..., Matrix]:
    def direction(
        point: Matrix, gradient: Matrix, axis_name: AxisName = None
    ) -> Matrix:
        del point
        return norm.steepest(gradient, axis_name=axis_name)

    return direction


def _project_first(manifold: Manifold, norm: Norm) -> Callable[..., Matrix]:
    """The direction of the norm for the tangent part, where that is the solution."""
    unit = manifold.unit()

    def direction(
        point: Matrix, gradient: Matrix, axis_name: AxisName = None
    ) -> Matrix:
        whole = vector = normalize(gradient, axis_name)
        # Twice: in float32 the first projection leaves rounding noise behind. Negated,
        # because the step goes against the direction: a tangent cone has two sides.
        for _ in range(2):
            vector = -unit.to_tangent(point, -vector, axis_name=axis_name)
        noise = 64 * jnp.finfo(vector.dtype).eps * block_lengths(norm, whole, axis_name)
        is_normal = block_lengths(norm, vector, axis_name) <= noise
        vector = jnp.where(is_normal, jnp.zeros_like(vector), vector)
        return norm.steepest(vector, axis_name=axis_name)

    return direction


def _solve_p_norm(manifold: Manifold, p: float) -> Callable[..., Matrix]:
    def direction(
        point: Matrix, gradient: Matrix, axis_name: AxisName = None
    ) -> Matrix:
        normal = manifold.normal(point) if isinstance(manifold, PNormSphere) else point
        return p_norm_direction(normal, gradient, p, axis_name)

    return direction


def _has_spectral_solver(manifold: Manifold) -> bool:
    if isinstance(manifold, Ball):
        return isinstance(manifold.norm, Spectral | RmsToRms)
    known = (Sphere, SpectralSphere, Stiefel, Oblique, DiagonalGram, Band)
    return isinstance(manifold, known)


def _solve_spectral(manifold: Manifold, norm: Norm) -> Callable[..., Matrix]:
    def direction(
        point: Matrix, gradient: Matrix, axis_name: AxisName = None
    ) -> Matrix:
        found = _spectral_direction(manifold, point, gradient, axis_name)
        if isinstance(norm, RmsToRms):
            return rms_gain(point, axis_name) * found
        return found

    return direction


def _spectral_direction(
    manifold: Manifold, point: Matrix, gradient: Matrix, axis_name: AxisName
) -> Matrix:
    """Direction of spectral norm 1 on the unit manifold."""
    match manifold:
        case Stiefel():
            turned = axis_name is None and point.shape[-2] < point.shape[-1]
            pair = (point.mT, gradient.mT) if turned else (point, gradient)
            found = stiefel_spectral_direction(*pair, axis_name=axis_name)
            return found.direction.mT if turned else found.direction
        case Oblique() | DiagonalGram():
            found = gram_spectral_direction(
                manifold, point, gradient, axis_name=axis_name
            )
        case Ball() | Band():
            interval = manifold.interval(point, axis_name)
            found = band_spectral_direction(
                point, gradient, interval, axis_name=axis_name
            )
        case SpectralSphere():
            normal = leading_triple(point, axis_name).outer
            found = normal_spectral_direction(normal, gradient, axis_name=axis_name)
        case _:
            found = normal_spectral_direction(point, gradient, axis_name=axis_name)
    return found.direction
