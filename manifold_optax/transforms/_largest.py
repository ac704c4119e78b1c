"""The largest entry of every matrix of a tree, in one pass over each leaf."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import ArrayTree
from manifold_optax.matrices import AxesLike
from manifold_optax.matrices._blocks import view_leaves, Views
from manifold_optax.matrices._view import joined_numbers, View
from manifold_optax.trees import bare, map_leaves


def largest(tree: ArrayTree, axes: AxesLike) -> ArrayTree:
    """Largest modulus in each matrix, in its dtype; not finite if an entry is not.

    No matrix is copied or moved: what is split over devices costs one number each.

    Args:
        tree: tree of matrices; `None` and `optax.MaskedNode` pass through.
        axes: how every leaf is a batch of matrices.

    Returns:
        A tree like `tree`, of the shapes and layouts of `matrices.per_matrix`.
    """

    def of_leaf(path: str, leaf: Array, of_leaf: Views) -> Array:
        del path
        views = of_leaf.blocks
        if not views:
            return jnp.zeros(0, leaf.dtype)
        return joined_numbers(views, [_of_view(view, leaf) for view in views])

    plain = bare(tree)
    return map_leaves(of_leaf, plain, view_leaves(plain, axes))


def _of_view(view: View, leaf: Array) -> Array:
    """`[*batch]`, in the order of the batch axes of the view."""
    # NaN is the maximum of all that it is among.
    found = jnp.max(jnp.abs(view.block(leaf)), axis=view.matrix_axes)
    kept = sorted(view.batch_axes)
    order = [kept.index(axis) for axis in view.batch_axes]
    return jax.lax.transpose(found, order)
