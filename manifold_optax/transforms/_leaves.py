"""Matrices in units of the size of a manifold: divide, map, multiply back."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._checks import require_floating, require_present
from manifold_optax._typing import ArrayTree, Flops, Kernel
from manifold_optax.geometry import Manifold
from manifold_optax.linalg._scaling import divide
from manifold_optax.matrices import AxesLike, Orientation, Placement, Result
from manifold_optax.matrices._axes import axes_at
from manifold_optax.matrices._blocks import view_leaves, Views
from manifold_optax.matrices._map import Call, map_views
from manifold_optax.matrices._plan import check_placement
from manifold_optax.matrices._view import joined, per_matrix_shape, View
from manifold_optax.trees import is_absent, leaf_path, map_leaves

UnitMap: TypeAlias = Callable[..., Any]
"""`(plain, scaled, *, like, factor=None, shared=()) -> results`; see `unit_map`."""


def unit_map(
    kernel: Kernel,
    manifold: Manifold,
    *,
    axes: AxesLike,
    placement: Placement | None,
    orientation: Orientation | None = None,
    returns: tuple[Result, ...] = ("matrix",),
    flops: Flops | None = None,
) -> UnitMap:
    """Maps a kernel for the manifold of size 1 over matrices near one of any size.

    Args:
        kernel: `(*plain, *scaled, *shared, axis_name=None) -> results` for one matrix
            of each tree; the first result is a matrix.
        manifold: the constraint of every leaf, whose size is divided by.
        axes: how every leaf is a batch of matrices.
        placement: which device computes which matrix.
        orientation: how the kernel sees a matrix; `None`: `"tall"` where the manifold
            is transposable.
        returns: what each result of the kernel is.
        flops: what the kernel costs; `None`: as five steps of Newton–Schulz.

    Returns:
        A function `(plain, scaled, *, like, factor, shared)`. It divides the trees
        `scaled`, of which the last holds the points, by the sizes of the manifold
        (times `factor`), maps the kernel over the trees `plain` and those, and
        multiplies the first result by the sizes again, in the dtypes of the tree
        `like`; `None` leaves it in units of the size. The first of all trees decides
        which leaves exist. The kernel of every matrix is given the numbers `shared`.
    """
    check_placement(placement)
    if orientation is None:
        orientation = orientation_of(manifold.transposable)

    def run(
        plain: Sequence[ArrayTree],
        scaled: Sequence[ArrayTree],
        *,
        like: ArrayTree | None,
        factor: Any = None,
        shared: Sequence[Array] = (),
    ) -> Any:
        first = (*plain, *scaled)[0]
        views = view_leaves(first, axes)
        sizes = sizes_at(manifold, first, scaled[-1], views)
        if factor is not None:
            sizes = jax.tree.map(lambda size: size * factor, sizes)
        results = map_views(
            Call(kernel, returns, flops),
            (*plain, *(divide_leaves(tree, sizes) for tree in scaled)),
            [_for_every_matrix(number, first, views) for number in shared],
            views=views,
            orientation=orientation,
            placement=placement,
        )
        if like is None:
            return results
        if len(returns) == 1:
            return multiply_leaves(results, sizes, like=like)
        matrices, *rest = results
        return (multiply_leaves(matrices, sizes, like=like), *rest)

    return run


def _for_every_matrix(number: Array, tree: ArrayTree, views: ArrayTree) -> ArrayTree:
    """The same number for each matrix, a tree as `map_views` reads it."""

    def of_leaf(path: str, leaf: Array, of_leaf: Views) -> Array:
        del path
        if not of_leaf.blocks:
            return number
        return jnp.broadcast_to(number, per_matrix_shape(leaf, of_leaf.blocks))

    return map_leaves(of_leaf, tree, views)


def orientation_of(transposable: bool) -> Orientation:
    """How a kernel must see a matrix, by whether it commutes with transposition."""
    return "tall" if transposable else "fixed"


def sizes_at(
    manifold: Manifold, updates: ArrayTree, points: ArrayTree, views: ArrayTree
) -> ArrayTree:
    """Size of the manifold at each point that has an update.

    A size is a number, or an array to broadcast with its leaf.
    """

    def size(path: str, update: Array, point: Array, of_leaf: Views) -> float | Array:
        del update
        require_present(point, path)
        require_floating(point, path)
        if point.size == 0:
            return 1.0

        def of_view(view: View) -> float | Array:
            block = view.block(point)
            return manifold.scale_of(block, view.fan_out, view.fan_in, view.matrix_axes)

        return per_block(point, of_leaf.blocks, of_view)

    return map_leaves(size, updates, points, views)


def per_block(
    leaf: Array, views: Sequence[View], value: Callable[[View], float | Array]
) -> float | Array:
    """`value(view)` of a leaf, laid out along the split axis where there are blocks."""
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


def matrices_of(tree: ArrayTree, axes: AxesLike) -> ArrayTree:
    """The leaves that are matrices, `None` in place of those that are not by `axes`."""

    def keep(keys: Any, leaf: Any) -> Any:
        if is_absent(leaf):
            return leaf
        own = axes_at(axes, leaf_path(keys), tuple(getattr(leaf, "shape", ())))
        return None if own is None else leaf

    return jax.tree_util.tree_map_with_path(keep, tree, is_leaf=is_absent)
