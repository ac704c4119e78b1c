"""Steepest direction of spectral norm 1 where parts of the Gram matrix are fixed.

At a point `W` whose rows (or columns) have fixed lengths, or whose columns are mutually
orthogonal, it solves

    maximise ⟨A, G⟩   over   A tangent,  ‖A‖₂ ≤ 1

through its dual: minimise `‖X‖_*` over `X = G + N`, `N` normal: `ΛW` or `WΛ` with a
diagonal `Λ` (Oblique), `WS` with a symmetric `S` of zero diagonal (DiagonalGram). With
`Q = (XᵀX + ε²)^{1/2}` the nuclear norm is at most `(tr(X Q⁻¹ Xᵀ) + tr Q)/2`, with
equality at ε = 0. Each step minimises this bound over `N`: reweighted least squares.
Its normal equation says that `X Q⁻¹`, with the new `X` and the old `Q`, is tangent;
near the optimum it is a polar factor. So the iteration ends with a tangent matrix,
wherever it stops.

Source: the Gram-space table of the Tilde group (2026) for the constraints; the
iteration generalises J. Su, kexue.fm 11221 (2025).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._base import Manifold
from manifold_optax.geometry._certified import (
    CertifiedDirection,
    certify,
    has_nothing,
)
from manifold_optax.geometry._diagonal_gram import DiagonalGram, off_diagonal
from manifold_optax.geometry._lines import line_dot, Lines
from manifold_optax.geometry._oblique import Oblique
from manifold_optax.linalg import (
    dot,
    gram,
    inner,
    matmul,
    nonzero,
    normalize,
    polar,
    symmetric,
)

_STEPS = 24
"""Reweighted least squares steps. Gaps measured from 8 × 5 to 64 × 32 on six kinds of
gradients: 1e-3 typically; at worst, on square matrices and on low rank with noise, 8e-2
on Oblique and 1e-1 on DiagonalGram."""

_RELAXATION = 1.6
"""Over-relaxation of all steps but the last: best of 1, 1.3, 1.6; below 2 is stable."""

_CONJUGATE_GRADIENTS = 12
"""Steps of the inner solver of DiagonalGram; what they leave is projected away."""


def gram_spectral_direction(
    manifold: Oblique | DiagonalGram,
    point: Matrix,
    gradient: Matrix,
    *,
    steps: int = _STEPS,
    axis_name: AxisName = None,
) -> CertifiedDirection:
    """Tangent `A` with `‖A‖₂ = 1` that has the largest `⟨A, gradient⟩` there.

    Args:
        manifold: `Oblique` or `DiagonalGram`; its size is taken as 1.
        point: `[*batch, m, n]` on the unit manifold, at least float32.
        gradient: like `point`, any scale.
        steps: reweighted least squares steps, ≥ 1.
        axis_name: mesh axes over which the rows are split, inside `jax.shard_map`.

    Returns:
        The direction and its gap. A normal gradient gives zero, a non-finite one NaN.

    Example:
        >>> point, gradient = jnp.eye(2), jnp.array([[5.0, 1.0], [2.0, 5.0]])
        >>> gram_spectral_direction(Oblique(), point, gradient).direction.round(3)
        Array([[0., 1.],
               [1., 0.]], dtype=float32)

    Cost: per step an eigendecomposition and, for lines along the long side of the
    matrix, a linear solve of the short side `k`, and `4·m·n·k` FLOPs; a polar factor at
    the end.
    """
    unit = manifold.unit()
    free = normalize(gradient, axis_name)
    # Twice, against what float32 leaves of the first time.
    for _ in range(2):
        free = unit.to_tangent(point, free, axis_name=axis_name)
    nothing = has_nothing(free, axis_name)
    free = normalize(free, axis_name)
    # The weights stand on the short side.
    turned = axis_name is None and point.shape[-2] < point.shape[-1]
    base, start = (point.mT, free.mT) if turned else (point, free)
    correction = _correction(unit, base, turned, axis_name)

    def root(x: Array) -> tuple[Array, Array]:
        values, vectors = jnp.linalg.eigh(gram(x, axis_name))
        # ε trades the noise of a squared matrix in this dtype for bias.
        epsilon = 1e-3 if x.dtype == jnp.float32 else 1e-6
        ridge = epsilon**2 * jnp.maximum(values[..., -1:], 1e-30)
        weights = jnp.sqrt(jnp.maximum(values, 0) + ridge)
        inverse = matmul(vectors / weights[..., None, :], vectors.mT)
        return inverse, jnp.sum(weights, axis=-1)[..., None, None]

    def improve(_: Any, x: Array) -> Array:
        return x + _RELAXATION * correction(x, root(x)[0])

    x = jax.lax.fori_loop(0, steps - 1, improve, start)
    inverse, trace = root(x)
    x = x + correction(x, inverse)
    weighted = matmul(x, inverse)
    upper = jnp.minimum(
        (dot(x, weighted, axis_name) + trace) / 2,
        dot(x, polar(x, axis_name=axis_name), axis_name),
    )
    found = weighted.mT if turned else weighted
    found = unit.to_tangent(point, found, axis_name=axis_name)
    return certify(found, free, upper, nothing, axis_name)


def _correction(
    manifold: Manifold, base: Array, turned: bool, axis_name: AxisName
) -> Callable[[Array, Array], Array]:
    """`(x, Q⁻¹) ↦ N`, the normal matrix that minimises `tr((x + N) Q⁻¹ (x + N)ᵀ)`."""
    if isinstance(manifold, Oblique):
        flipped: Lines = "columns" if manifold.of == "rows" else "rows"
        of = flipped if turned else manifold.of
        solve = _rows_solution if of == "rows" else _columns_solution
        return lambda x, inverse: solve(base, x, inverse, axis_name)
    return lambda x, inverse: _off_diagonal_solution(base, x, inverse, axis_name)


def _rows_solution(base: Array, x: Array, inverse: Array, axis_name: AxisName) -> Array:
    """`N = ΛW`: one number per row."""
    del axis_name
    weighted = matmul(base, inverse)
    return (
        -base
        * line_dot(weighted, x, "rows")
        / nonzero(line_dot(weighted, base, "rows"))
    )


def _columns_solution(
    base: Array, x: Array, inverse: Array, axis_name: AxisName
) -> Array:
    """`N = WΛ`: the linear system `((WᵀW) ∘ Q⁻¹) λ = −diag(WᵀX Q⁻¹)`."""
    square = gram(base, axis_name)
    identity = jnp.broadcast_to(jnp.eye(base.shape[-1], dtype=x.dtype), square.shape)
    # A zero column has no constraint, and λ = 0.
    empty = identity * (line_dot(identity, square, "rows") == 0)
    cross = matmul(inner(base, x, axis_name), inverse)
    multiplier = jnp.linalg.solve(
        square * inverse + empty, -line_dot(identity, cross, "rows")
    )
    return base * multiplier.mT


def _off_diagonal_solution(
    base: Array, x: Array, inverse: Array, axis_name: AxisName
) -> Array:
    """`N = WS`: conjugate gradients for `off(DSQ⁻¹ + Q⁻¹SD) = −off(…)`, `D = WᵀW`."""
    squares = line_dot(base, base, "columns", axis_name)
    identity = jnp.broadcast_to(jnp.eye(base.shape[-1], dtype=x.dtype), inverse.shape)
    diagonal = line_dot(identity, inverse, "columns")
    scale = nonzero(squares.mT * diagonal + diagonal.mT * squares)

    def apply(s: Array) -> Array:
        return off_diagonal(2 * symmetric(squares.mT * matmul(s, inverse)))

    def advance(_: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        s, rest, search, square = state
        image = apply(search)
        # Converged to rounding, it stands still: no noise divided by noise.
        length = square / nonzero(dot(search, image)) * (square > enough)
        s, rest = s + length * search, rest - length * image
        conditioned = rest / scale
        new = dot(rest, conditioned)
        return s, rest, conditioned + new / nonzero(square) * search, new

    cross = matmul(inner(base, x, axis_name), inverse)
    rest = -off_diagonal(2 * symmetric(cross))
    search = rest / scale
    first = dot(rest, search)
    enough = jnp.finfo(x.dtype).eps ** 2 * first
    state = (jnp.zeros_like(rest), rest, search, first)
    multiplier = jax.lax.fori_loop(0, _CONJUGATE_GRADIENTS, advance, state)[0]
    return matmul(base, multiplier)
