"""Measures of one matrix, or of two: what a step was like, as numbers without units.

Every function takes `[*batch, m, n]` and returns one number per matrix, `[*batch]`, in
at least float32. None depends on which of the two axes is the input, and none on the
scale of the entries, which may be anything from 1e-30 to 1e30. `axis_name` names the
mesh axes over which the rows are split, inside `jax.shard_map`.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from manifold_optax._typing import ArrayTree, AxisName, Matrix, PerMatrix
from manifold_optax.linalg import spectral_norm
from manifold_optax.linalg._inputs import require_matrices
from manifold_optax.linalg._reductions import (
    frobenius_norm,
    gram,
    near_one,
    nonzero,
    normalize,
    row_count,
)
from manifold_optax.linalg._scaling import widen


class MonitorInfo(NamedTuple):
    """What `mo.monitor` measures, one field for each name; `None`: not measured.

    A field is a tree like the parameters with one number per matrix, float32 `[*batch]`
    (`[*batch, blocks]` for a `Split`); with groups a dict of groups, each with its
    `"mean"` and its `"worst"`, and for counts its `"total"`.
    """

    residual: ArrayTree = None
    """Relative distance of the weights from the manifold, of `Manifold.residual`."""
    update_spectral_norm: ArrayTree = None
    """Largest singular value of the update, an estimate from below (16 power
    iterations on `UᵀU`: within 5 % of it for Gaussian matrices)."""
    update_rms: ArrayTree = None
    """Root mean square of the entries of the update."""
    weight_spectral_norm: ArrayTree = None
    """Largest singular value of the weights, an estimate from below (8 iterations:
    within 15 % for Gaussian matrices of 16 rows and columns or more, closer where the
    largest value stands apart)."""
    weight_rms: ArrayTree = None
    """Root mean square of the entries of the weights."""
    orthogonality_error: ArrayTree = None
    """`diagnostics.orthogonality_error` of the update."""
    stable_rank: ArrayTree = None
    """`‖U‖_F² / ‖U‖₂²` of the update, from 1 to its short side; an estimate from
    above."""
    angle: ArrayTree = None
    """Degrees between the negative of the update and the gradient."""
    applied: ArrayTree = None
    """How many updates were finite and not zero, since `init`."""
    skipped: ArrayTree = None
    """How many updates were exactly zero, since `init`."""
    nonfinite: ArrayTree = None
    """How many gradients had an entry that is not finite, since `init`."""


MEASURES = MonitorInfo._fields
"""Names of all that `mo.monitor` measures."""

COUNTS = ("applied", "skipped", "nonfinite")
"""Measures that are counted at every update; all others are taken now and then."""

OF_WEIGHTS = ("residual", "weight_spectral_norm", "weight_rms")
"""Measures that need the parameters."""


def rms(x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
    """Root mean square of the entries of each matrix, `‖x‖_F / √(m·n)`.

    Example:
        >>> rms(jnp.array([[3.0, -3.0]]))
        Array(3., dtype=float32)
    """
    require_matrices(x, "rms")
    entries = row_count(x, axis_name) * x.shape[-1]
    norm = frobenius_norm(widen(x), axis_name)[..., 0, 0]
    return norm / math.sqrt(max(entries, 1))


def stable_rank(x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
    """Stable rank `‖x‖_F² / ‖x‖₂²`: how many singular values are large.

    It is 1 for a matrix of rank 1, and the short side for one whose singular values are
    all equal.

    Args:
        x: `[*batch, m, n]`, real floating.
        axis_name: mesh axes over which the rows are split.

    Returns:
        `[*batch]`; 0 for a zero matrix. The norm is that of `linalg.spectral_norm`,
        whose error is from below, so that of the stable rank is from above.

    Cost: 34 products with a vector, `68·m·n` FLOPs.

    Example:
        >>> stable_rank(jnp.diag(jnp.array([2.0, 2.0, 1.0]))).round(4)
        Array(2.25, dtype=float32)
    """
    require_matrices(x, "stable_rank")
    wide = widen(x)
    norm = spectral_norm(wide, axis_name=axis_name).norm
    return jnp.square(frobenius_norm(wide, axis_name)[..., 0, 0] / nonzero(norm))


def orthogonality_error(x: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
    """Spread of the squared singular values: `‖xᵀx/s² − I‖_F / √k` on the short side.

    With `k` the short side and `s² = ‖x‖_F²/k` the mean of the squared singular values,
    this is the root mean square of `σ²/s² − 1`. A matrix whose singular values are all
    equal has 0 at any scale, a Gaussian matrix about `√(k / long side)` (1 if square),
    a matrix of rank 1 has `√(k − 1)`.

    Args:
        x: `[*batch, m, n]`, real floating. With split rows it must have at least as
            many rows, in all, as columns.
        axis_name: mesh axes over which the rows are split.

    Returns:
        `[*batch]`; 1 for a zero matrix, which has no direction.

    Cost: a Gram matrix, `2·m·n·k` FLOPs.

    Example:
        >>> x = jnp.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> orthogonality_error(jnp.stack([x, x.at[1, 1].set(0.0)])).round(4)
        Array([0., 1.], dtype=float32)
    """
    require_matrices(x, "orthogonality_error")
    tall = axis_name is not None or x.shape[-2] >= x.shape[-1]
    y, _ = near_one(widen(x), axis_name)
    square = gram(y if tall else y.mT, axis_name)
    short = square.shape[-1]
    if not short:
        return jnp.zeros(square.shape[:-2], square.dtype)
    mean = jnp.trace(square, axis1=-2, axis2=-1)[..., None, None] / short
    identity = jnp.broadcast_to(jnp.eye(short, dtype=square.dtype), square.shape)
    difference = square / nonzero(mean) - identity
    return jnp.sqrt(jnp.mean(jnp.square(difference), axis=(-2, -1)) * short)


def angle(x: Matrix, y: Matrix, *, axis_name: AxisName = None) -> PerMatrix:
    """Angle between two matrices in degrees, `arccos(⟨x, y⟩ / (‖x‖_F ‖y‖_F))`.

    By the lengths of the sum and the difference of the unit matrices, which lose no
    digits where the angle is near 0 or 180 and its cosine hardly changes.

    Returns:
        `[*batch]` in [0, 180]; 90 where one of the two is zero. In float32 accurate to
        1e-4 degrees.

    Example:
        >>> angle(jnp.array([[1.0, 1.0]]), jnp.array([[0.0, -5.0]])).round(3)
        Array(135., dtype=float32)
    """
    require_matrices(x, "angle")
    require_matrices(y, "angle")
    one, other = normalize(widen(x), axis_name), normalize(widen(y), axis_name)
    apart = frobenius_norm(one - other, axis_name)
    together = frobenius_norm(one + other, axis_name)
    # Of two zeros both are 0.
    none = (apart == 0) & (together == 0)
    apart, together = (jnp.where(none, 1, x) for x in (apart, together))
    return jnp.degrees(2 * jnp.arctan2(apart, together))[..., 0, 0]
