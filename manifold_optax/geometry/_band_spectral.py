"""Steepest direction of spectral norm 1 where singular values have bounds.

At a point `W` of the set `{low ≤ σ ≤ high}` it solves

    maximise ⟨A, G⟩   over   −A in the tangent cone at W,  ‖A‖₂ ≤ 1

(a step goes against the direction). With `L(A) = sym(UᵀAV)` on the singular vectors at
the ends of the interval the dual is: minimise `‖G + L*(Y)‖_*` over `Y` in a cone of
matrices that are positive semidefinite on the upper face and negative on the lower one.
Inside the set `Y = 0`, and the direction is the polar factor.

It is solved by alternating directions (ADMM): with `M = G + L*(Y) + D`, in units where
the penalty is 1/τ,

    D ← M with its singular values clipped at τ,   Y ← P(Y + L(D_old − 2D)).

`D/τ` has norm ≤ 1 throughout; what leads out of the cone is removed at the end.

The cone constraints: F. Cesista's posts on spectral balls and bands (2025). ADMM for
this kind of dual: S. Buchanan's notes on manifold Muon (2025).
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._certified import (
    CertifiedDirection,
    certify,
    has_nothing,
)
from manifold_optax.geometry._spectral_faces import active_faces
from manifold_optax.linalg import polar
from manifold_optax.linalg._contraction import contraction
from manifold_optax.linalg._device import by_platform
from manifold_optax.linalg._reductions import dot, nonzero, normalize

_STEPS = 16
"""Steps of ADMM. The largest gap measured at 16 × 10 on six kinds of gradients is 5e-3
(low rank with noise), on Gaussian ones 2e-4."""

_PENALTY = 1.0
"""τ in units of the mean singular value of the allowed part of the gradient."""


def band_spectral_direction(
    point: Matrix,
    gradient: Matrix,
    interval: tuple[float, float],
    *,
    steps: int = _STEPS,
    axis_name: AxisName = None,
) -> CertifiedDirection:
    """Best `A` with `‖A‖₂ = 1` for a step `−A` that crosses no bound.

    Args:
        point: `[*batch, m, n]` with singular values in the interval, at least float32.
        gradient: like `point`, any scale.
        interval: least and largest singular value allowed; a least value of 0 is none.
        steps: steps of ADMM, ≥ 0.
        axis_name: mesh axes over which the rows are split, inside `jax.shard_map`.

    Returns:
        The direction and its gap. A gradient that leads out alone gives zero, a
        non-finite one NaN.

    Example:
        >>> edge, gradient = jnp.eye(2), jnp.diag(jnp.array([-2.0, 1.0]))
        >>> solve = jax.jit(band_spectral_direction, static_argnums=2)
        >>> solve(edge, gradient, (0.0, 1.0)).direction.round(3)
        Array([[0., 0.],
               [0., 1.]], dtype=float32)

    Cost: per step `8·m·n·k` FLOPs for the short side `k`, and on a CPU three
    eigendecompositions, elsewhere 115 products of `k × k` matrices, or 159 with a lower
    bound. Once two polar factors, elsewhere three.
    """
    if axis_name is None and point.shape[-2] < point.shape[-1]:
        turned = band_spectral_direction(point.mT, gradient.mT, interval, steps=steps)
        return turned._replace(direction=turned.direction.mT)
    search = functools.partial(
        _search, interval=interval, steps=steps, axis_name=axis_name
    )
    return by_platform(search, point, gradient)


def _search(
    point: Array,
    gradient: Array,
    *,
    interval: tuple[float, float],
    steps: int,
    axis_name: AxisName,
) -> CertifiedDirection:
    faces = active_faces(point, *interval, axis_name)
    unit = normalize(gradient, axis_name)

    def allowed(a: Array) -> Array:
        """Nearest `A` to `a` with `−A` in the tangent cone."""
        return a + faces.adjoint(faces.outward(-faces.overlap(a, axis_name)))

    nothing = has_nothing(allowed(unit), axis_name)
    start = faces.outward(-faces.overlap(unit, axis_name))
    first = polar(unit + faces.adjoint(start), axis_name=axis_name)
    length = dot(unit + faces.adjoint(start), first, axis_name)
    # ‖first‖_F² is the rank, so that this is the mean of the singular values.
    threshold = _PENALTY * length / nonzero(dot(first, first, axis_name))

    def advance(_: ArrayLike, state: tuple[Array, Array]) -> tuple[Array, Array]:
        y, old = state
        new = contraction(
            unit + faces.adjoint(y) + old, nonzero(threshold), axis_name=axis_name
        )
        return faces.outward(y + faces.overlap(old - 2 * new, axis_name)), new

    y, found = jax.lax.fori_loop(0, steps, advance, (start, threshold * first))
    shifted = unit + faces.adjoint(y)
    last = polar(shifted, axis_name=axis_name)
    upper = jnp.minimum(dot(shifted, last, axis_name), length)
    return certify(allowed(found), unit, upper, nothing, axis_name)
