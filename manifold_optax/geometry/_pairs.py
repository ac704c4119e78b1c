"""The table of the theory: for which manifold and norm a direction is known, and how.

`PAIRS` is the only list of pairs. The directions, what they need, the table that an
error prints and the table of the README are read from it. A new norm needs no row
for `Euclidean`; a pair with a direction of its own is one row more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName
from manifold_optax.geometry._ball import Ball, Band
from manifold_optax.geometry._band_spectral import band_spectral_direction
from manifold_optax.geometry._blocks import is_finite
from manifold_optax.geometry._certified import CertifiedDirection
from manifold_optax.geometry._diagonal_gram import DiagonalGram
from manifold_optax.geometry._entry_norms import PNorm
from manifold_optax.geometry._euclidean import Euclidean
from manifold_optax.geometry._gram_spectral import gram_spectral_direction
from manifold_optax.geometry._manifold import Manifold
from manifold_optax.geometry._norm import BlockNorm, Norm
from manifold_optax.geometry._norms import Frobenius, RmsToRms, Spectral, SpectralNorm
from manifold_optax.geometry._oblique import Oblique
from manifold_optax.geometry._p_norm_sphere import p_norm_direction, PNormSphere
from manifold_optax.geometry._row_norms import ColumnRms, RowRms
from manifold_optax.geometry._spectral_sphere import SpectralSphere
from manifold_optax.geometry._sphere import Sphere
from manifold_optax.geometry._sphere_spectral import normal_spectral_direction
from manifold_optax.geometry._stiefel import Stiefel
from manifold_optax.geometry._stiefel_spectral import stiefel_spectral_direction
from manifold_optax.linalg._leading import spectral_gradient
from manifold_optax.linalg._reductions import normalize


class Request(NamedTuple):
    """What a solver is asked for, besides point and gradient."""

    certify: bool = False
    tolerance: float | None = None
    axis_name: AxisName = None


Solver: TypeAlias = Callable[
    [Any, Any, Array, Array, Request], Array | CertifiedDirection
]
"""`(manifold, norm, point, gradient, request)` → direction on the unit manifold."""


class Pair(NamedTuple):
    """One row of the table."""

    manifolds: tuple[type[Manifold], ...]
    """Classes of manifolds; `Manifold`: any."""
    norms: tuple[type[Norm], ...]
    """Classes of norms; `Norm`: any."""
    solve: Solver
    direction: str
    """What the direction is, in words."""
    optimizer: str = ""
    """The optimizers that this pair gives, in words."""
    whole: bool = False
    """Whether it wants matrices that are not split: its search would send messages."""
    certified: bool = False
    """Whether it bounds its distance from the best direction."""
    stops: bool = False
    """Whether it can stop at a tolerance."""
    where: Callable[[Any, Any], bool] | None = None
    """Which manifold of these classes goes with which norm; `None`: each with each."""
    words: tuple[str, str] = ("", "")
    """Manifold and norm as the tables show them, in place of the class names."""

    def fits(self, manifold: Manifold, norm: Norm) -> bool:
        """Whether the row is about this pair."""
        return (
            isinstance(manifold, self.manifolds)
            and isinstance(norm, self.norms)
            and (self.where is None or self.where(manifold, norm))
        )


def _of_norm(
    manifold: Manifold, norm: Norm, point: Array, gradient: Array, request: Request
) -> Array:
    del manifold, point
    return norm.steepest(gradient, axis_name=request.axis_name)


def _of_tangent_part(
    manifold: Manifold, norm: BlockNorm, point: Array, gradient: Array, request: Request
) -> Array:
    """The direction of the norm for the tangent part, where that is the solution."""
    unit, axis_name = manifold.unit(), request.axis_name
    # A block that is not finite must not spoil the others by way of their common norm.
    finite = None
    if norm.blocks != "matrix":
        finite = is_finite(gradient, norm.blocks, axis_name)
        gradient = jnp.where(finite, gradient, jnp.zeros_like(gradient))
    whole = vector = normalize(gradient, axis_name)
    # Twice: in float32 the first projection leaves rounding noise behind. Negated,
    # because the step goes against the direction: a tangent cone has two sides.
    for _ in range(2):
        vector = -unit.to_tangent(point, -vector, axis_name=axis_name)
    noise = 64 * jnp.finfo(vector.dtype).eps * norm.lengths(whole, axis_name)
    is_normal = norm.lengths(vector, axis_name) <= noise
    vector = jnp.where(is_normal, jnp.zeros_like(vector), vector)
    found = norm.steepest(vector, axis_name=axis_name)
    return found if finite is None else jnp.where(finite, found, jnp.nan)


def _p_norm(
    manifold: Sphere | PNormSphere,
    norm: PNorm,
    point: Array,
    gradient: Array,
    request: Request,
) -> Array:
    normal = manifold.normal(point) if isinstance(manifold, PNormSphere) else point
    return p_norm_direction(normal, gradient, norm.p, request.axis_name)


def _spectral(
    direction: Callable[[Any, Array, Array, Request], CertifiedDirection],
) -> Solver:
    """The solver of a direction of spectral norm 1, for all spectral norms."""

    def solve(
        manifold: Manifold,
        norm: SpectralNorm,
        point: Array,
        gradient: Array,
        request: Request,
    ) -> CertifiedDirection:
        found = direction(manifold, point, gradient, request)
        length = norm.unit_length(point, request.axis_name)
        return found._replace(direction=length * found.direction)

    return solve


def _on_stiefel(
    manifold: Stiefel, point: Array, gradient: Array, request: Request
) -> CertifiedDirection:
    del manifold
    turned = request.axis_name is None and point.shape[-2] < point.shape[-1]
    if turned:
        point, gradient = point.mT, gradient.mT
    found = stiefel_spectral_direction(
        point,
        gradient,
        tolerance=request.tolerance,
        certify=request.certify,
        axis_name=request.axis_name,
    )
    return found._replace(direction=found.direction.mT) if turned else found


def _on_sphere(
    manifold: Sphere, point: Array, gradient: Array, request: Request
) -> CertifiedDirection:
    del manifold
    return normal_spectral_direction(point, gradient, axis_name=request.axis_name)


def _on_spectral_sphere(
    manifold: SpectralSphere, point: Array, gradient: Array, request: Request
) -> CertifiedDirection:
    del manifold
    normal = spectral_gradient(point, request.axis_name)
    return normal_spectral_direction(normal, gradient, axis_name=request.axis_name)


def _at_fixed_gram(
    manifold: Oblique | DiagonalGram, point: Array, gradient: Array, request: Request
) -> CertifiedDirection:
    return gram_spectral_direction(
        manifold, point, gradient, axis_name=request.axis_name
    )


def _in_ball(
    manifold: Ball, point: Array, gradient: Array, request: Request
) -> CertifiedDirection:
    norm: Any = manifold.norm
    interval = norm.interval(point, request.axis_name)
    return band_spectral_direction(
        point, gradient, interval, axis_name=request.axis_name
    )


def _in_band(
    manifold: Band, point: Array, gradient: Array, request: Request
) -> CertifiedDirection:
    interval = manifold.interval(point, request.axis_name)
    return band_spectral_direction(
        point, gradient, interval, axis_name=request.axis_name
    )


_ADMM = "ADMM on the dual; inside the set the polar factor"
_ROOT = "root of a dual problem in one number"


def _searched(
    manifolds: tuple[type[Manifold], ...],
    direction: Callable[[Any, Array, Array, Request], CertifiedDirection],
    words: str,
    optimizer: str = "",
) -> Pair:
    """The row of the spectral norms where a search needs whole matrices."""
    norms, solve = (Spectral, RmsToRms), _spectral(direction)
    return Pair(manifolds, norms, solve, words, optimizer, whole=True, certified=True)


PAIRS: tuple[Pair, ...] = (
    Pair(
        (Euclidean,),
        (Norm,),
        _of_norm,
        "that of the norm: polar factor, sign, normalised rows, …",
        "`mo.muon`, `mo.sign_descent`, `mo.scion`, `mo.normuon`",
        words=("`Euclidean`", "any"),
    ),
    Pair(
        (Manifold,),
        (Frobenius,),
        _of_tangent_part,
        "normalised tangent part",
        "`mo.hyperspherical_descent` on `Sphere`, `mo.hyperball`",
        words=("any", "`Frobenius`"),
    ),
    Pair(
        (Stiefel,),
        (Spectral,),
        _spectral(_on_stiefel),
        "solution of a convex dual problem",
        "`mo.manifold_muon`; `mo.spel` takes a cheaper one",
        certified=True,
        stops=True,
    ),
    # Fan-out, the side that is split, may be the short one here.
    Pair(
        (Stiefel,),
        (RmsToRms,),
        _spectral(_on_stiefel),
        "the same, times √(fan_out/fan_in)",
        whole=True,
        certified=True,
        stops=True,
    ),
    _searched((Sphere,), _on_sphere, _ROOT),
    _searched((SpectralSphere,), _on_spectral_sphere, _ROOT, "`mo.spectral_sphere`"),
    _searched((Oblique, DiagonalGram), _at_fixed_gram, "Douglas–Rachford splitting"),
    _searched((Ball,), _in_ball, _ADMM)._replace(
        where=lambda ball, _: isinstance(ball.norm, SpectralNorm),
        words=("`Ball(Spectral)`, `Ball(RmsToRms)`", "`Spectral`, `RmsToRms`"),
    ),
    _searched((Band,), _in_band, _ADMM),
    Pair(
        (Ball,),
        (BlockNorm,),
        _of_tangent_part,
        "that of the norm, of the part that does not lead out",
        where=lambda ball, norm: ball.norm == norm,
        words=("`Ball(norm)`", "the same: `RowRms`, `ColumnRms`, `Max`"),
    ),
    Pair(
        (Oblique,),
        (RowRms, ColumnRms),
        _of_tangent_part,
        "normalised tangent rows, columns",
        where=lambda oblique, norm: oblique.of == norm.blocks,
        words=('`Oblique(of="rows")`, `of="columns"`', "`RowRms`, `ColumnRms`"),
    ),
    Pair((Sphere, PNormSphere), (PNorm,), _p_norm, _ROOT, whole=True),
)
"""All pairs whose direction is known; of several rows that fit the first one holds."""
