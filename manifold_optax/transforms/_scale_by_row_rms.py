"""NorMuon's normalisation: every neuron moves by the same amount in the long run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from manifold_optax._checks import require_in_range, require_present
from manifold_optax._typing import ArrayTree, Scalar
from manifold_optax.linalg._exact_norms import exact_norm
from manifold_optax.linalg._reductions import nonzero
from manifold_optax.matrices import AxesLike
from manifold_optax.matrices._blocks import view_leaves, Views
from manifold_optax.matrices._view import joined, View, views_of
from manifold_optax.transforms._start import start
from manifold_optax.trees import bare, boxed_like, fill_absent, map_leaves


class RowRmsState(NamedTuple):
    """State of `scale_by_row_rms`."""

    mean_square: ArrayTree
    """Average of each row's mean square, float32; shaped like the parameter, with size
    1 along the input axes (the number of blocks along a split one)."""


def scale_by_row_rms(
    decay: Scalar = 0.95,
    *,
    eps: Scalar = 1e-8,
    axes: AxesLike = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides each row by its root mean square over time; keeps the matrix's norm.

    With `O` the update and one row per output neuron (per fan-out index, whatever the
    array order):

        V ← decay·V + (1 − decay)·mean over the row of O²
        Ô = O / (√V + eps)
        update = Ô · ‖O‖_F / ‖Ô‖_F

    After orthogonalization the rows of a tall map have unequal norms, so that some
    neurons hardly learn; this evens them out, as Adam does for entries. `V` starts at 0
    without a correction: the factor would be the same for all rows, and the last line
    takes it away.

    Args:
        decay: of the average, in [0, 1); may be traced.
        eps: > 0, absolute; may be traced. It is meant for updates with entries of order
            `1/√fan`, which is what the link has after orthogonalization.
        axes: which axes of a leaf are fan-in and fan-out; all others are batch axes.

    Returns:
        A transformation with state `RowRmsState`. Updates leave in the dtype in which
        they came; computed in at least float32. A zero row stays zero, a zero matrix
        too. Entries must be below 1e18, whose square overflows.

    Raises:
        ValueError: for numbers out of range; at init and update, for a leaf that is not
            a batch of matrices.

    Example:
        >>> tx = scale_by_row_rms()
        >>> updates = {"w": jnp.array([[3.0, 0.1], [4.0, 0.0]])}  # [fan_in, fan_out]
        >>> found, _ = tx.update(updates, tx.init(updates))
        >>> jnp.linalg.norm(found["w"], axis=0).round(2)
        Array([3.54, 3.54], dtype=float32)

    Source: Z. Li et al., "NorMuon: Making Muon more efficient and scalable"
    (arXiv 2510.05491, 2025), algorithm 1; the paper fixes the norm at
    `0.2·√(fan_in·fan_out)`, which is `scale_by_shape("rms")` after this link.
    """
    require_in_range("decay", decay, "[0, 1)")
    require_in_range("eps", eps, "(0, inf)")

    init_fn = start(
        "scale_by_row_rms",
        axes,
        planned=False,
        state=lambda params: RowRmsState(_zero_rows(params, axes)),
    )

    def advance(path: str, update: Array, average: Any, of_leaf: Views) -> Array:
        require_present(average, path)
        if not update.size:
            return average
        parts = []
        views = of_leaf.blocks
        for position, view in enumerate(views):
            square = jnp.square(view.block(update).astype(average.dtype))
            mean = jnp.mean(square, axis=view.in_axes, keepdims=True)
            old = _rows_of(average, view, position)
            parts.append((decay * old + (1 - decay) * mean).astype(average.dtype))
        return joined(views, parts)

    def read(path: str, update: Array, average: Array, of_leaf: Views) -> Array:
        del path
        if not update.size:
            return update
        views = of_leaf.blocks
        parts = []
        for position, view in enumerate(views):
            block = view.block(update).astype(average.dtype)
            even = block / (jnp.sqrt(_rows_of(average, view, position)) + eps)
            length = _norm(block, view) / nonzero(_norm(even, view))
            parts.append((even * length).astype(update.dtype))
        return joined(views, parts)

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, RowRmsState]:
        del params, extra_args
        plain = bare(updates)
        views = view_leaves(plain, axes)
        moved = map_leaves(advance, plain, state.mean_square, views)
        average = fill_absent(moved, state.mean_square)
        even = map_leaves(read, plain, average, views)
        return boxed_like(even, updates), RowRmsState(average)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _norm(block: Array, view: View) -> Array:
    """Frobenius norm of each matrix, with the axes kept; scale-safe."""
    return exact_norm(block, view.matrix_axes)


def _rows_of(average: Array, view: View, position: int) -> Array:
    """The part of the state that belongs to the block at `position`."""
    if view.window is None:
        return average
    axis, start, stop = view.window
    if axis in view.in_axes:
        start, stop = position, position + 1
    return jax.lax.slice_in_dim(view.folded(average), start, stop, axis=axis)


def _zero_rows(params: ArrayTree, axes: AxesLike) -> ArrayTree:
    """Zeros for each row of each matrix, in at least float32."""

    def of_leaf(path: str, leaf: Array) -> Array:
        views = views_of(leaf, path, axes)
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        blank = [jnp.zeros_like(view.block(leaf), wide) for view in views]
        # Sums, not zeros of the right shape: so they are sharded as the rows are.
        rows = [
            jnp.sum(x, axis=view.in_axes, keepdims=True)
            for x, view in zip(blank, views, strict=True)
        ]
        return joined(views, rows)

    return map_leaves(of_leaf, bare(params))
