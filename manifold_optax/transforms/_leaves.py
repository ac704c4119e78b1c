"""Elementwise work on the leaves of a tree, and the sizes of a manifold at each."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._checks import require_floating, require_present
from manifold_optax._typing import ArrayTree
from manifold_optax.geometry import Manifold
from manifold_optax.linalg._scaling import divide
from manifold_optax.matrices import Axes, is_absent, joined, leaf_path, View, views_of


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


def sizes_at(
    manifold: Manifold, updates: ArrayTree, points: ArrayTree, axes: Axes
) -> ArrayTree:
    """Size of the manifold at each point that has an update.

    A size is a number, or an array to broadcast with its leaf.
    """

    def size(path: str, update: Array, point: Array) -> float | Array:
        del update
        require_present(point, path)
        require_floating(point, path)
        if point.size == 0:
            return 1.0

        def of_view(view: View) -> float | Array:
            block = view.block(point)
            return manifold.scale_of(block, view.fan_out, view.fan_in, view.matrix_axes)

        return per_block(point, path, axes, of_view)

    return map_leaves(size, updates, points)


def per_block(
    leaf: Array, path: str, axes: Axes, value: Callable[[View], float | Array]
) -> float | Array:
    """`value(view)` of a leaf, laid out along the split axis where there are blocks."""
    views = views_of(leaf, path, axes)
    if views[0].window is None:
        return value(views[0])
    split_axis = views[0].window[0]
    parts = []
    for view in views:
        part = jnp.asarray(value(view), jnp.promote_types(leaf.dtype, jnp.float32))
        part = part.reshape(part.shape or (1,) * len(view.shape))
        part = jnp.repeat(part, view.shape[split_axis], axis=split_axis)
        if view.repeats > part.shape[split_axis - 1]:
            part = jnp.repeat(part, view.repeats, axis=split_axis - 1)
        parts.append(part)
    return joined(views, parts)


def divide_leaves(tree: ArrayTree, sizes: ArrayTree) -> ArrayTree:
    """Each leaf by its size, in at least float32; by 1 where the size is 0."""

    def quotient(size: Any, leaf: Any) -> Any:
        return leaf if is_absent(size) else divide(leaf, size)

    return jax.tree.map(quotient, sizes, tree, is_leaf=is_absent)


def multiply_leaves(tree: ArrayTree, sizes: ArrayTree, like: ArrayTree) -> ArrayTree:
    """Each leaf times its size, in the dtype of its counterpart in `like`."""

    def multiply(path: str, leaf: Array, size: float | Array, other: Array) -> Array:
        del path
        return (leaf * size).astype(other.dtype)

    return map_leaves(multiply, tree, sizes, like)
