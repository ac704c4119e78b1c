"""Leaves of a tree: absent ones, boxed ones, and work on each of them."""

from collections.abc import Callable
from typing import Any

import jax

from manifold_optax._checks import require_floating
from manifold_optax._typing import ArrayTree
from manifold_optax.trees._paths import is_absent, leaf_path


def bare(tree: Any) -> Any:
    """`tree` with plain arrays in place of the boxes in which frameworks keep them.

    A Flax nnx variable names the mesh axes of its own axes as metadata. An array of
    another shape in its place, such as a number per matrix, must not inherit them.
    """

    def inside(node: Any) -> Any:
        return node if is_absent(node) else jax.tree.leaves(node)[0]

    def is_box(node: Any) -> bool:
        return is_absent(node) or (hasattr(node, "shape") and hasattr(node, "dtype"))

    return jax.tree.map(inside, tree, is_leaf=is_box)


def boxed_like(tree: Any, like: Any) -> Any:
    """The arrays of `tree` in the boxes of `like`; undoes `bare`."""
    leaves = jax.tree.leaves(tree, is_leaf=is_absent)
    return jax.tree.structure(like, is_leaf=is_absent).unflatten(leaves)


def map_leaves(fn: Callable[..., Any], tree: ArrayTree, *rest: ArrayTree) -> ArrayTree:
    """`fn(path, leaf, *others)` on each floating leaf; `None` and masks pass through.

    Raises:
        TypeError: for a leaf that is not real floating, naming its path.
    """

    def of_leaf(keys: Any, leaf: Any, *others: Any) -> Any:
        if is_absent(leaf):
            return leaf
        path = leaf_path(keys)
        require_floating(leaf, path)
        return fn(path, leaf, *others)

    return jax.tree_util.tree_map_with_path(of_leaf, tree, *rest, is_leaf=is_absent)


def fill_absent(tree: ArrayTree, old: ArrayTree) -> ArrayTree:
    """`tree` with the leaves of `old` where it has `None`."""

    def choose(leaf: Any, other: Any) -> Any:
        return other if leaf is None else leaf

    return jax.tree.map(choose, tree, old, is_leaf=lambda node: node is None)
