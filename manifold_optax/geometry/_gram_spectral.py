"""Steepest direction of spectral norm 1 where parts of the Gram matrix are fixed.

At a point `W` whose rows (or columns) have fixed lengths, or whose columns are mutually
orthogonal, it solves

    maximise ⟨A, G⟩   over   A tangent,  ‖A‖₂ ≤ 1

The dual is: minimise `‖G + N‖_*` over normal matrices `N`: `ΛW` or `WΛ` with a diagonal
`Λ` (Oblique), `WS` with a symmetric `S` of zero diagonal (DiagonalGram). Both have an
orthogonal projection `T` to the tangent space in closed form, so that the problem is
solved by Douglas–Rachford splitting. With a tangent `A`, a normal `N` and a step size
τ (the threshold) it repeats

    B ← A + (G + N)/τ with its singular values clipped at 1
    A ← A + r(T(B) − A),   N ← N − rτ(B − T(B))

At the fixed points `A = B` is optimal, and so is `N`. Wherever it stops, `T(B)` divided
by its norm is feasible, and `‖G + N‖_*` is an upper bound.

Source: the Gram-space table of the Tilde group (2026) for the constraints; J. Eckstein,
D. Bertsekas, "On the Douglas–Rachford splitting method and the proximal point algorithm
for maximal monotone operators" (1992) for the iteration and its relaxation; B. He,
H. Yang, S. Wang, "Alternating direction method with self-adaptive penalty parameters
for monotone variational inequalities" (2000) for the threshold that adapts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix
from manifold_optax.geometry._certified import (
    CertifiedDirection,
    certify,
    has_nothing,
)
from manifold_optax.geometry._diagonal_gram import DiagonalGram
from manifold_optax.geometry._oblique import Oblique
from manifold_optax.linalg import polar
from manifold_optax.linalg._contraction import contraction
from manifold_optax.linalg._reductions import dot, frobenius_norm, nonzero, normalize

_STEPS = 40
"""Steps of the splitting. The largest gaps measured from 8 × 5 to 64 × 32 on six kinds
of gradients are 7e-3 on DiagonalGram (rank one, low rank with noise) and 4e-3 on
Oblique (low rank with noise); most are 2e-5, the rounding of the bound."""

_RELAXATION = 1.6
"""`r`: 1.5 to 1.8 do equally well, and better than 1; below 2 it converges."""

_THRESHOLD = 2.0
"""First τ in units of the mean singular value of the tangent part of the gradient: best
of 0.25, 0.5, 1, 2, 4 where τ is constant."""

_RANGE = 4.0
"""Largest factor, either way, by which τ adapts: 3, 4, 6 do equally well, 16 is worse.
A constant τ leaves twice as many gaps above 3e-3."""


class _State(NamedTuple):
    tangent: Array
    """`A`."""
    normal: Array
    """`N`."""
    threshold: Array
    """τ, `[*batch, 1, 1]`."""
    found: Array
    """`T(B)` of the last step."""


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
        steps: steps of the splitting, ≥ 0.
        axis_name: mesh axes over which the rows are split, inside `jax.shard_map`.

    Returns:
        The direction and its gap. A normal gradient gives zero, a non-finite one NaN.

    Example:
        >>> point, gradient = jnp.eye(2), jnp.array([[5.0, 1.0], [2.0, 5.0]])
        >>> gram_spectral_direction(Oblique(), point, gradient).direction.round(3)
        Array([[0., 1.],
               [1., 0.]], dtype=float32)

    Cost: per step `4·m·n·k` FLOPs for the short side `k`, on DiagonalGram `8·m·n·k`,
    and on a CPU an eigendecomposition, elsewhere 71 products of `k × k` matrices. Once
    two polar factors, and one more eigendecomposition, elsewhere 22 products.
    """
    unit = manifold.unit()

    def to_tangent(vector: Array) -> Array:
        return unit.to_tangent(point, vector, axis_name=axis_name)

    # Twice, against what float32 leaves of the first time.
    free = to_tangent(to_tangent(normalize(gradient, axis_name)))
    nothing = has_nothing(free, axis_name)
    free = normalize(free, axis_name)
    first = polar(free, axis_name=axis_name)
    length = dot(free, first, axis_name)
    # ‖first‖_F² is the rank, so that this is the mean of the singular values.
    threshold = _THRESHOLD * length / nonzero(dot(first, first, axis_name))

    def advance(step: Array, state: _State) -> _State:
        rising = state.tangent + (free + state.normal) / nonzero(state.threshold)
        clipped = contraction(rising, axis_name=axis_name)
        found = to_tangent(clipped)
        change, outside = found - state.tangent, clipped - found
        factor = _balance(outside, change, step, axis_name)
        return _State(
            state.tangent + _RELAXATION * change,
            state.normal - _RELAXATION * state.threshold * outside,
            jnp.clip(state.threshold * factor, threshold / _RANGE, threshold * _RANGE),
            found,
        )

    start = to_tangent(first)
    state = _State(start, jnp.zeros_like(free), threshold, start)
    state = jax.lax.fori_loop(0, steps, advance, state)
    shifted = free + state.normal
    last = polar(shifted, axis_name=axis_name)
    upper = jnp.minimum(dot(shifted, last, axis_name), length)
    return certify(state.found, free, upper, nothing, axis_name)


def _balance(outside: Array, change: Array, step: Array, axis_name: AxisName) -> Array:
    """Factor of τ that brings both residuals together, `[*batch, 1, 1]`.

    A large τ makes large steps of `N`, a small one of `A`. The exponent falls with the
    steps, so that τ settles: 1/2 throughout can end in a cycle.
    """
    # What is below rounding has no say.
    noise = jnp.finfo(change.dtype).eps
    above = frobenius_norm(outside, axis_name) + noise
    below = frobenius_norm(change, axis_name) + noise
    exponent = 4 / (step + 8)
    return (above / below) ** exponent.astype(change.dtype)
