"""Trees as blocks of matrices: the way there and back."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._checks import (
    require_floating,
    require_present,
    require_same_shapes,
)
from manifold_optax._typing import ArrayTree
from manifold_optax.matrices._axes import AxesLike
from manifold_optax.matrices._kernel import Call
from manifold_optax.matrices._stack import Operands
from manifold_optax.matrices._view import (
    joined,
    joined_numbers,
    numbers_of,
    per_matrix_shape,
    View,
    views_of,
)
from manifold_optax.trees import bare, is_absent, leaf_path, map_leaves


@dataclasses.dataclass(frozen=True)
class Views:
    """The blocks of one leaf; itself a leaf, of a tree like the one of the leaf."""

    blocks: tuple[View, ...]
    """One view each; empty for a leaf without entries."""


def view_leaves(tree: ArrayTree, axes: AxesLike) -> ArrayTree:
    """The views of all leaves, a tree like `tree`; `None` and masks pass through.

    Raises:
        TypeError: for a leaf that is not a real floating array.
        ValueError: for a leaf whose rank or sizes do not fit `axes`.
    """

    def of_leaf(path: str, leaf: Any) -> Views:
        return Views(views_of(leaf, path, axes) if math.prod(leaf.shape) else ())

    return map_leaves(of_leaf, tree)


class Flat(NamedTuple):
    """Leaves of the first tree, and for those that hold matrices all trees' arrays."""

    leaves: list[Any]
    treedef: Any
    bare: Any
    """The same without the boxes of a framework: the structure of trees of numbers."""
    arrays: dict[int, tuple[Array, ...]]
    paths: dict[int, str]


class Block(NamedTuple):
    """One block of the leaf at position `leaf`."""

    leaf: int
    view: View
    operands: Operands
    dtypes: tuple[str, ...]
    """Those of the leaf in each tree, then that of the computation."""


def flatten(trees: Sequence[ArrayTree]) -> Flat:
    """The leaves of all trees, checked against those of the first."""
    paired, treedef = jax.tree_util.tree_flatten_with_path(trees[0], is_leaf=is_absent)
    others = [_like(treedef, tree) for tree in trees[1:]]
    bare_treedef = jax.tree.structure(bare(trees[0]), is_leaf=is_absent)
    flat = Flat([leaf for _, leaf in paired], treedef, bare_treedef, {}, {})
    for index, (keys, first) in enumerate(paired):
        if is_absent(first):
            continue
        path, arrays = leaf_path(keys), (first, *(other[index] for other in others))
        for array in arrays:
            require_present(array, path)
            require_floating(array, path)
        require_same_shapes(arrays, path)
        if math.prod(first.shape):
            flat.arrays[index], flat.paths[index] = arrays, path
    return flat


def _like(treedef: Any, tree: ArrayTree) -> list[Any]:
    try:
        return treedef.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(
            "Updates, parameters and state must have one tree structure; the updates "
            f"have {treedef}. JAX reports: {error}"
        ) from error


def blocks_of(
    flat: Flat, views: ArrayTree, numbers: Sequence[ArrayTree], dtype: Any
) -> list[Block]:
    """The blocks of all leaves, with the numbers of their matrices."""
    columns = [_like(flat.bare, bare(tree)) for tree in numbers]
    viewed = flat.treedef.flatten_up_to(views)
    blocks = []
    for index, arrays in flat.arrays.items():
        of_leaf = viewed[index].blocks
        batch = per_matrix_shape(arrays[0], of_leaf)
        for column in columns:
            _check_numbers(column[index], batch, flat.paths[index])
        wide = jnp.result_type(jnp.float32, *arrays) if dtype is None else dtype
        dtypes = (*(str(array.dtype) for array in arrays), str(jnp.dtype(wide)))
        for position, view in enumerate(of_leaf):
            operands = Operands(
                tuple(view.block(array) for array in arrays),
                tuple(
                    numbers_of(view, position, len(of_leaf), column[index])
                    for column in columns
                ),
            )
            blocks.append(Block(index, view, operands, dtypes))
    return blocks


def _check_numbers(numbers: Any, batch: tuple[int, ...], path: str) -> None:
    require_floating(numbers, path)
    if tuple(numbers.shape[: len(batch)]) != batch:
        raise ValueError(
            f"The numbers at {path!r} have the shape {tuple(numbers.shape)}, but there "
            f"must be one entry for each of the matrices, {batch}; make the state with "
            "the parameters that are updated."
        )


class Leaves(NamedTuple):
    """Results by the positions of their leaves, for each tree that the kernel makes."""

    matrices: list[dict[int, Array]]
    numbers: list[dict[int, Array]]


def leaves_of(
    call: Call, flat: Flat, blocks: Sequence[Block], results: Sequence[Operands]
) -> Leaves:
    """The leaves of the trees that the kernel makes, from the results of all blocks."""
    parts: dict[int, list[tuple[View, Operands]]] = {}
    for block, result in zip(blocks, results, strict=True):
        parts.setdefault(block.leaf, []).append((block.view, result))
    found = Leaves(
        [{} for _ in range(call.count_of("matrix"))],
        [{} for _ in range(call.count_of("number"))],
    )
    for index, pieces in parts.items():
        views, like = [view for view, _ in pieces], flat.leaves[index]
        for which, tree in enumerate(found.matrices):
            matrices = [result.matrices[which] for _, result in pieces]
            tree[index] = joined(views, matrices).astype(like.dtype)
        for which, column in enumerate(found.numbers):
            own = [result.numbers[which] for _, result in pieces]
            numbers = joined_numbers(views, own)
            column[index] = _laid_out(numbers, views[0], flat.arrays[index][0])
    return found


def _laid_out(numbers: Array, view: View, leaf: Array) -> Array:
    """Numbers of the blocks of a leaf, laid out as its batch axes on Explicit meshes.

    There a layout is a part of the type, which must not change from `init` on.
    """
    sharding = jax.typeof(leaf).sharding
    explicit = jax.sharding.AxisType.Explicit in sharding.mesh.axis_types
    if view.window is None or not explicit:
        return numbers
    batch = (sharding.spec[axis] for axis in view.leaf_batch_axes)
    where = jax.sharding.NamedSharding(sharding.mesh, jax.P(*batch))
    return jax.sharding.reshard(numbers, where)


def unflatten(call: Call, flat: Flat, found: Leaves) -> Any:
    """The trees of what the kernel returns."""
    # What has no matrices has no numbers: as `per_matrix` makes it.
    empty = [x if is_absent(x) else jnp.zeros(0, jnp.float32) for x in flat.leaves]

    def filled(leaves: Sequence[Any], own: dict[int, Array]) -> list[Any]:
        return [own.get(index, leaf) for index, leaf in enumerate(leaves)]

    return call.together(
        [flat.treedef.unflatten(filled(flat.leaves, tree)) for tree in found.matrices],
        [flat.bare.unflatten(filled(empty, column)) for column in found.numbers],
    )
