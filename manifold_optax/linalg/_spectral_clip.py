"""Functions of the singular values that hold them below a bound."""

import math
from typing import TypeGuard

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import AxisName, Matrix, PerMatrix, Square
from manifold_optax.linalg._inputs import require_matrices
from manifold_optax.linalg._polar import modulus, polar
from manifold_optax.linalg._reductions import gram, inner, matmul, symmetric

SOFT_CAP = 0.1886313457133954
"""The `a` for which `s − a·s³` and then `s + a·s³` send 1.2 to 1.

The smallest root ≥ 0 of `−k⁹a⁴ + 3k⁷a³ − 3k⁵a² + k − 1` at `k = 1.2`, the largest input
in units of the bound. The first cubic is monotone up to `1/√(3a) = 1.33`. (For `k`
above 1.3 the root would make it turn inside of `[0, k]`.)
"""


_FAR = 4.0
"""Ratio of a matrix to its bound, by root mean square, above which one clip is rough.
"""

_CLIPS = 6
"""Most clips of one matrix; each divides the ratio by some million in float32."""


def spectral_clip(
    x: Matrix,
    high: float | PerMatrix,
    low: float | PerMatrix = 0.0,
    *,
    axis_name: AxisName = None,
) -> Matrix:
    """`x` with its singular values clipped to `[low, high]`, by products alone.

    For `low = 0` it is the nearest matrix of spectral norm at most `high`, in the
    Frobenius norm. Singular values that `polar` takes as zero (below about 100 rounding
    units times the largest) have no direction: they stay near 0, whatever `low` is.

    Args:
        x: `[*batch, m, n]`, real floating; computed in at least float32.
        high: upper bound ≥ 0: a number, or one per matrix, `[*batch]`.
        low: lower bound, 0 to `high`, likewise.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` must have at least as many rows, in all, as columns.

    Returns:
        An array like `x`. Its singular values exceed `high` by some rounding units
        (1e-6 of it in float32) and err elsewhere by some rounding units of the larger
        of `‖x‖₂` and `high`. A zero matrix gives zero, non-finite input NaN.

    Raises:
        TypeError: for an array that is not real floating.
        ValueError: for numbers that are not `0 ≤ low ≤ high < ∞`.

    Cost: three polar factors, one of them of the long side (`polar`), or two if `low`
    is the number 0; and `4·m·n²` FLOPs for `m ≥ n`. Where `x` is more than four times
    the bound in root mean square, those of the short side once or twice more.

    Example:
        >>> spectral_clip(jnp.diag(jnp.array([3.0, 1.0, 0.2])), 2.0, 0.5).round(4)
        Array([[2. , 0. , 0. ],
               [0. , 1. , 0. ],
               [0. , 0. , 0.5]], dtype=float32)

    Source: the identity of two polar factors in J. Su, kexue.fm 11059 (2025), and
    L. Cesista, "Fast, numerically stable, and auto-differentiable spectral clipping via
    Newton–Schulz iteration" (2025).
    """
    require_matrices(x, "spectral_clip")
    _check_bounds(high, low)
    if 0 in x.shape:
        return x
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    tall = axis_name is not None or x.shape[-2] >= x.shape[-1]
    y = y if tall else y.mT
    factor = polar(y, axis_name=axis_name)
    # x = factor·root, and root is positive semidefinite: its eigenvalues are clipped.
    root = symmetric(inner(factor, y, axis_name))
    y = matmul(factor, _clip_values(root, high, low))
    return (y if tall else y.mT).astype(x.dtype)


def soft_cap(
    x: Matrix, bound: float | PerMatrix, *, axis_name: AxisName = None
) -> Matrix:
    """`x` with its singular values gently bent below `bound`, by two cubics.

    Each singular value up to `1.2·bound` goes to one in `[0, bound]`, larger ones to
    larger ones: `s ↦ s − a·s³ ↦ s + a·s³` in units of the bound, with the `a = 0.189`
    that sends 1.2 to 1. Values near 0 hardly move (by `−3a²s⁵`); `bound` itself goes to
    0.91 times the bound. **The input must not exceed 1.2 times the bound**: this is not
    checked, and beyond it nothing is bounded. So it bends a matrix back that was below
    the bound before a step of at most a fifth of it; any matrix is clipped by
    `spectral_clip`.

    Args:
        x: `[*batch, m, n]` with `‖x‖₂ ≤ 1.2·bound`, real floating; computed in at least
            float32.
        bound: a number > 0, or one per matrix, `[*batch]`.
        axis_name: mesh axes over which the rows of `x` are split, inside `shard_map`;
            then `x` should have at least as many rows, in all, as columns.

    Returns:
        An array like `x`. A zero matrix gives zero, NaN gives NaN.

    Raises:
        ValueError: for a number that is not above 0 and finite.

    Cost: `8·m·n·k` FLOPs with `k = min(m, n)`.

    Example:
        >>> soft_cap(jnp.diag(jnp.array([2.4, 0.0])), 2.0).round(4)
        Array([[2., 0.],
               [0., 0.]], dtype=float32)

    Source: L. Newhouse et al., "Training Transformers with enforced Lipschitz
    constants" (arXiv 2507.13338, 2025), section 3, with the coefficient for a fixed
    largest input.
    """
    require_matrices(x, "soft_cap")
    if _is_number(bound) and not 0 < bound < math.inf:
        raise ValueError(f"bound must be above 0 and finite, got {bound!r}.")
    tall = axis_name is not None or x.shape[-2] >= x.shape[-1]
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = _of_each(bound, y)
    y = (y if tall else y.mT) / scale
    for sign in (-1, 1):
        y = y + sign * SOFT_CAP * matmul(y, gram(y, axis_name))
    return (scale * (y if tall else y.mT)).astype(x.dtype)


def _clip_values(
    root: Square, high: float | PerMatrix, low: float | PerMatrix
) -> Square:
    """Clips the eigenvalues, by clip(h) = (low + high + |h − low| − |h − high|)/2."""
    identity = jnp.broadcast_to(jnp.eye(root.shape[-1], dtype=root.dtype), root.shape)
    bound = _of_each(high, root)
    above, below = bound * identity, _of_each(low, root) * identity
    positive = _is_number(low) and low == 0

    def clip(h: Array, from_low: Array) -> Array:
        return (above + below + from_low - modulus(h - above)) / 2

    def rough(state: tuple[Array, Array, Array]) -> Array:
        source, _, step = state
        size = jnp.linalg.norm(source, axis=(-2, -1), keepdims=True)
        far = size > _FAR * root.shape[-1] ** 0.5 * bound
        return (step < _CLIPS) & jnp.any(far)

    def again(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, clipped, step = state
        return clipped, clip(clipped, modulus(clipped - below)), step + 1

    # What is far above the bound leaves its rounding, which is far above that of the
    # bound: then the result is clipped again, from both sides.
    first = clip(root, root if positive else modulus(root - below))
    state = (root, first, jnp.asarray(1))
    return jax.lax.while_loop(rough, again, state)[1]


def _of_each(bound: float | PerMatrix, x: Array) -> Array:
    """The bound in the dtype of `x`: a number, or one per matrix with its axes kept."""
    value = jnp.asarray(bound, x.dtype)
    return value[..., None, None] if value.ndim else value


def _is_number(bound: object) -> TypeGuard[float]:
    return isinstance(bound, int | float)


def _check_bounds(high: float | PerMatrix, low: float | PerMatrix) -> None:
    numbers = [bound for bound in (low, high) if _is_number(bound)]
    ordered = numbers == sorted(numbers)
    if not ordered or not all(0 <= bound < math.inf for bound in numbers):
        raise ValueError(
            "The bounds of the singular values must be 0 ≤ low ≤ high < ∞, got "
            f"low={low!r} and high={high!r}."
        )
