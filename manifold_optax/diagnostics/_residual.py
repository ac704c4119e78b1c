"""How far the matrices of a tree are from a manifold."""

import math
from typing import Any

import jax
from jaxtyping import Array

from manifold_optax._checks import require_instance
from manifold_optax._typing import ArrayTree
from manifold_optax.geometry import Manifold
from manifold_optax.matrices import AxesLike
from manifold_optax.matrices._axes import axes_at, check_axes_like
from manifold_optax.matrices._view import joined_numbers, View, views_of
from manifold_optax.trees import bare, is_absent, leaf_path


def residual(
    params: ArrayTree, manifold: Manifold, *, axes: AxesLike = None
) -> ArrayTree:
    """Relative distance of every matrix of a tree from `manifold`.

    On `Stiefel` it is ‖XᵀX/s² − I‖₂ on the short side, on spheres |‖X‖/r − 1|; see the
    manifold. It may run in the jitted step, or on the parameters outside of it.

    Args:
        params: tree of matrices.
        manifold: the constraint.
        axes: which axes of a leaf are the matrix, or `mo.Roles`: what is no matrix by
            its role is `None` in the result.

    Returns:
        A tree like `params`, one number ≥ 0 per matrix: `[*batch]`, and `[*batch,
        blocks]` for a `Split`; in at least float32.

    Raises:
        TypeError: if `manifold` or `axes` is of another kind, or a leaf is not a real
            floating array.
        ValueError: for a leaf that `axes` do not fit. Both name the leaf.

    Cost: that of the manifold's residual; on `Stiefel` a Gram matrix and its
    eigenvalues, `m·n² + O(n³)` FLOPs.

    Example:
        >>> params = {"up": {"kernel": 2 * jnp.eye(4), "bias": jnp.ones(4)}}
        >>> found = diagnostics.residual(params, Stiefel(), axes=roles())
        >>> print(found["up"]["kernel"], found["up"]["bias"])
        3.0 None
    """
    require_instance("manifold of residual", manifold, Manifold)
    check_axes_like(axes)

    def of_leaf(keys: Any, leaf: Any) -> Any:
        path = leaf_path(keys)
        if is_absent(leaf) or not math.prod(leaf.shape):
            return None
        if axes_at(axes, path, tuple(leaf.shape)) is None:
            return None
        views = views_of(leaf, path, axes)
        numbers = [manifold.residual(_matrices(view, leaf)) for view in views]
        return joined_numbers(views, numbers)

    return jax.tree_util.tree_map_with_path(of_leaf, bare(params), is_leaf=is_absent)


def _matrices(view: View, leaf: Array) -> Array:
    """The matrices of a view as `[*batch, fan_out, fan_in]`."""
    block = view.block(leaf)
    order = (*view.batch_axes, *view.out_axes, *view.in_axes)
    return block.transpose(order).reshape(*view.batch_shape, view.fan_out, view.fan_in)
