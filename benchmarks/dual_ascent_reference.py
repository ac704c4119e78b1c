"""Baseline: manifold Muon's published solver, dual ascent with a matrix sign each step.

Written from the formulas. At a point W [m, n] with orthonormal columns and for
multipliers L, symmetric [n, n],

    A = msign(G + 2 W L),  H = W^T A + A^T W,  L <- L - alpha (1 - k/steps) H,

from L = -(W^T G + G^T W) / 4 until the root mean square of H is below the tolerance.
The defaults are the published ones: 100 steps, alpha 0.01, tolerance 1e-6, ten rows of
Polar Express in bfloat16, no scaling of G.

Source: J. Bernstein, "Modular Manifolds", Thinking Machines Lab (2025), and its
repository thinking-machines-lab/manifolds.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from manifold_optax import linalg

# The published list, its last row repeated to ten steps.
MSIGN_SCHEDULE = (*linalg.POLAR_EXPRESS, *linalg.POLAR_EXPRESS[-1:] * 2)
# Divides the input besides ||X||_F: rounding must not put a singular value above 1.
MSIGN_SAFETY = 1.01


class DualAscent(NamedTuple):
    """What the ascent ended with."""

    direction: jax.Array
    """A [m, n], of ascent: a step moves against it. Only nearly tangent."""
    multiplier: jax.Array
    """L [n, n] that gave `direction`."""
    residual: jax.Array
    """Root mean square of H."""
    steps: jax.Array
    """Matrix signs computed."""


def msign(x: jax.Array, dtype: DTypeLike = jnp.bfloat16) -> jax.Array:
    """Approximate polar factor of x [m, n], m >= n, iterated in `dtype`; 0 for 0."""
    y = (x / (MSIGN_SAFETY * jnp.linalg.norm(x))).astype(dtype)
    for a, b, c in MSIGN_SCHEDULE:
        square = _product(y.T, y)
        y = a * y + _product(y, b * square + c * _product(square, square))
    # 0/0 of a zero input; the published code does the same.
    return jnp.nan_to_num(y).astype(x.dtype)


def dual_ascent(
    point: jax.Array,
    gradient: jax.Array,
    *,
    steps: int = 100,
    step_size: float = 0.01,
    tolerance: float | None = 1e-6,
    dtype: DTypeLike = jnp.bfloat16,
    normalise: bool = False,
) -> DualAscent:
    """Direction of the published solver.

    Args:
        point: W [m, n], m >= n, with orthonormal columns, float32.
        gradient: G [m, n], float32.
        steps: Matrix signs at most, >= 1.
        step_size: alpha of the first step; it falls linearly to alpha / steps.
        tolerance: Of the residual. None: always `steps` steps, in a loop of known
            length, so that its operations can be counted.
        dtype: Of the iterations of the matrix sign.
        normalise: Divide G by its Frobenius norm first, which the published code does
            not: its step size is good within a decade of ||G||_F = 1 only.
    """
    if point.shape[0] < point.shape[1]:
        raise ValueError(f"The point must be tall; got {point.shape}. Transpose both.")
    if normalise:
        norm = jnp.linalg.norm(gradient)
        gradient = gradient / jnp.where(norm > 0, norm, 1)

    def step(index: jax.Array | int, state: _State) -> _State:
        # The multiplier moves first, by H of the step before: so the end result is the
        # pair (A, L) of one step. Step 0 has no step before it, and H is zero.
        rate = step_size * (1 - (index - 1) / steps)
        multiplier = state.multiplier - rate * state.violation
        direction = msign(gradient + 2 * _product(point, multiplier), dtype)
        overlap = _product(point.T, direction)
        return _State(direction, multiplier, overlap + overlap.T, state.steps + 1)

    overlap = _product(point.T, gradient)
    state = _State(
        direction=jnp.zeros_like(gradient),
        multiplier=-(overlap + overlap.T) / 4,
        violation=jnp.zeros_like(overlap),
        steps=jnp.zeros((), jnp.int32),
    )
    if tolerance is None:
        state = jax.lax.fori_loop(0, steps, step, state)
    else:
        state = jax.lax.while_loop(
            lambda state: (
                (state.steps < steps)
                & ((state.steps == 0) | (_rms(state.violation) >= tolerance))
            ),
            lambda state: step(state.steps, state),
            state,
        )
    return DualAscent(
        state.direction, state.multiplier, _rms(state.violation), state.steps
    )


class _State(NamedTuple):
    """Loop variables; `violation` is H."""

    direction: jax.Array
    multiplier: jax.Array
    violation: jax.Array
    steps: jax.Array


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(x**2))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Product in the dtype of the operands, without TF32."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
