"""Whether two roles mean the same matrices."""

import jax.numpy as jnp
import numpy as np

import manifold_optax as mo
from manifold_optax.matrices import Axes
from manifold_optax.matrices._view import View, views_of


def same_matrices(
    first: Axes | None, second: Axes | None, shape: tuple[int, ...]
) -> bool:
    """Whether axes denote the same matrices of a leaf, however they are spelled.

    `None` stands for `[in, out]`, or for no matrix where the leaf has fewer than two
    axes. The order of the matrices counts for nothing, nor does that of the inputs or
    of the outputs of one matrix; which are inputs and which outputs does count.

    Example: `[3, 3, 1, 8]` as `Split((1,) * 8, -1, CONV)` is eight matrices `[9, 1]`,
    and so it is with the reduction axes (0, 1) and the output axis 2.
    """
    return _matrices(first, shape) == _matrices(second, shape)


def same_role(golden: mo.Role, read: mo.Role, shape: tuple[int, ...]) -> bool:
    """Whether the labels are equal, and for linear maps the matrices, too."""
    if golden.label != read.label:
        return False
    linear = golden.label in ("matrix", "readout", "router")
    return not linear or same_matrices(golden.axes, read.axes, shape)


def _matrices(axes: Axes | None, shape: tuple[int, ...]) -> set[tuple[bytes, ...]]:
    """Each matrix as the positions of its entries in the leaf, in a normal order."""
    if axes is None and len(shape) < 2:
        return set()
    # Views are made of floating leaves; these sizes are exact in float32.
    positions = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    if positions.size >= 2**24:
        raise ValueError(f"A leaf of shape {shape} is too large to be compared.")
    leaf = jnp.asarray(positions, jnp.float32)
    return {
        one for view in views_of(leaf, "leaf", axes) for one in _of_view(view, leaf)
    }


def _of_view(view: View, leaf: jnp.ndarray) -> list[tuple[bytes, ...]]:
    block = np.asarray(view.block(leaf))
    block = block.transpose(*view.batch_axes, *view.in_axes, *view.out_axes)
    return [
        _normal(matrix.astype(np.int64))
        for matrix in block.reshape(-1, view.fan_in, view.fan_out)
    ]


def _normal(matrix: np.ndarray) -> tuple[bytes, ...]:
    """Rows and columns by their smallest entries, and the shape."""
    rows = matrix[np.argsort(matrix.min(axis=1))]
    ordered = rows[:, np.argsort(rows.min(axis=0))]
    return (str(ordered.shape).encode(), ordered.tobytes())
