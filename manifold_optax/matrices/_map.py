"""The one way of a transformation into the matrices of a tree, and back.

Four steps, always in this order: **view** each leaf as a batch of matrices, **stack**
the matrices of one shape, **place** the stack, **compute** with a kernel that knows one
matrix. Compile time does not grow with the depth of a model, because a stack is
compiled once.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from manifold_optax._checks import (
    require_floating,
    require_present,
    require_same_shapes,
)
from manifold_optax._typing import ArrayTree, Kernel
from manifold_optax.matrices._layout import resolved, spec_of
from manifold_optax.matrices._plan import Placement, Plan
from manifold_optax.matrices._recipes import Facts, make_plan
from manifold_optax.matrices._stack import Operands, run
from manifold_optax.matrices._view import (
    AxesLike,
    joined,
    joined_numbers,
    numbers_of,
    per_matrix_shape,
    View,
    views_of,
)
from manifold_optax.trees import bare, is_absent, leaf_path


def map_matrices(
    kernel: Kernel,
    trees: Sequence[ArrayTree],
    carried: Sequence[ArrayTree] = (),
    *,
    axes: AxesLike = None,
    transposable: bool | Literal["either"] = True,
    outputs: int = 1,
    placement: Placement | None = None,
    dtype: Any = None,
) -> tuple[tuple[ArrayTree, ...], tuple[ArrayTree, ...]]:
    """Applies `kernel` to every matrix of a tree.

    Call it under `jax.jit`, as all transformations that go through it: outside every
    call compiles its loop over the stack anew.

    Args:
        kernel: `(*matrices, *carried, axis_name=None) -> (matrices, carried)` for one
            matrix of each tree, `long × short`. It returns `outputs` matrices and as
            many carried arrays, of the same shapes, as it was given. `axis_name` names
            the mesh axes that split the rows.
        trees: input trees of one structure, e.g. `(updates,)` or `(updates, params)`.
            The first decides which leaves exist: `None`, `optax.MaskedNode` and empty
            leaves pass through.
        carried: trees of per-matrix floating arrays, leaf `[*batch, …]`,
            `[*batch, blocks, …]` for a `Split`: numbers, or vectors of the short side
            (of a square matrix: the fan-in).
        axes: how every leaf is a batch of matrices; axes that are not named are batch
            axes.
        transposable: whether `kernel(xᵀ) = kernel(x)ᵀ`. Then wide matrices are
            transposed, and both orientations of a shape share a stack. `"either"`: the
            kernel also takes them `short × long`, and gets them as the stack has them,
            which saves transpositions (where a side is split, `long × short`).
            `False`: the kernel sees `fan_out × fan_in`.
        outputs: number of matrices that the kernel returns.
        placement: which device computes what, of `mo.sharding`. `None`: read from the
            arrays on Explicit meshes, local otherwise. Inside `shard_map` and `pmap`
            everything is local.
        dtype: dtype in which the kernel computes; `None`: at least float32.

    Returns:
        `outputs` trees like the first, each leaf in its dtype, and the carried trees.

    Raises:
        TypeError: for a leaf that is not real floating.
        ValueError: for ranks, shapes or structures that do not fit, and for a sharding
            that the placement does not cover. All name the leaf.

    Example:
        >>> def normalize(x, axis_name=None):
        ...     return (x / jnp.linalg.norm(x),), ()
        >>> (tree,), _ = map_matrices(normalize, ({"w": 3 * jnp.eye(2)},))
        >>> tree["w"].round(3)
        Array([[0.707, 0.   ],
               [0.   , 0.707]], dtype=float32)
    """
    flat = _flatten(trees)
    blocks = _blocks(flat, carried, axes, dtype)
    plan = _plan(flat, blocks, transposable, placement)
    results = run(kernel, plan, [block.operands for block in blocks], outputs)
    return _unflatten(flat, blocks, results, carried, outputs)


def plan_matrices(
    tree: ArrayTree,
    *,
    axes: AxesLike = None,
    transposable: bool | Literal["either"] = True,
    placement: Placement | None = None,
) -> Plan:
    """The plan by which `map_matrices` would go over `tree`; print it to read it.

    One line per stack: which matrices share it, by which recipe they are computed, and
    what that costs each device, in FLOPs and in bytes sent: those of five steps of
    Newton–Schulz on one tree, as the measure for all transformations. A transformation
    that sends parameters along sends half as much again. The last line is about the
    device with the most to do. `tree` may hold arrays or `jax.ShapeDtypeStruct`s.

    Example:
        >>> print(plan_matrices({"a": jnp.ones((4, 2)), "b": jnp.ones((3, 2, 4))}))
        stack          matrices  recipe  FLOPs  bytes sent  leaves
        4 × 2 float32  4         local   1.41k  0           a, b
        busiest device: 1.41k FLOPs, 0 bytes sent
    """
    flat = _flatten((tree,))
    return _plan(flat, _blocks(flat, (), axes, None), transposable, placement)


def per_matrix(
    tree: ArrayTree, fill: float, *, axes: AxesLike = None, tail: tuple[int, ...] = ()
) -> ArrayTree:
    """Tree of float32 arrays `[*batch, *tail]`, one entry per matrix; for `init`.

    Example:
        >>> per_matrix({"w": jnp.ones((3, 4, 2))}, 0.0)
        {'w': Array([0., 0., 0.], dtype=float32)}
    """

    def of_leaf(keys: Any, leaf: Any) -> Array:
        path = leaf_path(keys)
        require_floating(leaf, path)
        if not math.prod(leaf.shape):
            return jnp.full((0,), fill, jnp.float32)
        shape = per_matrix_shape(leaf, path, axes)
        numbers = jnp.full((*shape, *tail), fill, jnp.float32)
        return _like_batch(numbers, leaf, views_of(leaf, path, axes)[0])

    return jax.tree_util.tree_map_with_path(of_leaf, bare(tree))


def _like_batch(numbers: Array, leaf: Any, view: View) -> Array:
    """`numbers` laid out as the batch axes of `leaf`, where its type says how."""
    sharding = jax.typeof(leaf).sharding
    batch = [sharding.spec[axis] for axis in view.leaf_batch_axes]
    if all(entry is None for entry in batch):
        return numbers
    spec = PartitionSpec(*batch)
    if isinstance(leaf, Tracer):
        return jax.sharding.reshard(numbers, NamedSharding(sharding.mesh, spec))
    # Outside of a trace only the array itself knows its devices.
    return jax.device_put(numbers, NamedSharding(leaf.sharding.mesh, spec))


class _Flat(NamedTuple):
    """Leaves of the first tree, and for those that hold matrices all trees' arrays."""

    leaves: list[Any]
    treedef: Any
    bare: Any
    """The same without the boxes of a framework: the structure of what is carried."""
    arrays: dict[int, tuple[Array, ...]]
    paths: dict[int, str]


class _Block(NamedTuple):
    """One block of the leaf at position `leaf`."""

    leaf: int
    view: View
    operands: Operands
    dtypes: tuple[str, ...]
    """Of the leaf in each tree, then that in which the kernel computes."""


def _flatten(trees: Sequence[ArrayTree]) -> _Flat:
    paired, treedef = jax.tree_util.tree_flatten_with_path(trees[0], is_leaf=is_absent)
    others = [_like(treedef, tree) for tree in trees[1:]]
    bare_treedef = jax.tree.structure(bare(trees[0]), is_leaf=is_absent)
    flat = _Flat([leaf for _, leaf in paired], treedef, bare_treedef, {}, {})
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
            f"have {treedef}. JAX says: {error}"
        ) from error


def _blocks(
    flat: _Flat, carried: Sequence[ArrayTree], axes: AxesLike, dtype: Any
) -> list[_Block]:
    columns = [_like(flat.bare, bare(tree)) for tree in carried]
    blocks = []
    for index, arrays in flat.arrays.items():
        batch = per_matrix_shape(arrays[0], flat.paths[index], axes)
        for column in columns:
            _check_carried(column[index], batch, flat.paths[index])
        wide = jnp.result_type(jnp.float32, *arrays) if dtype is None else dtype
        views = views_of(arrays[0], flat.paths[index], axes)
        for position, view in enumerate(views):
            operands = Operands(
                tuple(view.block(array) for array in arrays),
                tuple(
                    numbers_of(view, position, len(views), column[index])
                    for column in columns
                ),
            )
            dtypes = (*(str(array.dtype) for array in arrays), str(jnp.dtype(wide)))
            blocks.append(_Block(index, view, operands, dtypes))
    return blocks


def _check_carried(carried: Any, batch: tuple[int, ...], path: str) -> None:
    if tuple(carried.shape[: len(batch)]) != batch:
        raise ValueError(
            f"What is carried at {path!r} has the shape {tuple(carried.shape)}, but "
            f"there must be one entry for each of the matrices, {batch}; make the "
            "state with the parameters that are updated."
        )
    require_floating(carried, path)


def _plan(
    flat: _Flat,
    blocks: Sequence[_Block],
    transposable: bool | Literal["either"],
    placement: Placement | None,
) -> Plan:
    placement = resolved(placement, [arrays[0] for arrays in flat.arrays.values()])
    facts = [
        Facts(b.view, b.dtypes, spec_of(b.view, b.operands.matrices, placement))
        for b in blocks
    ]
    numbers_only = all(
        array.ndim == len(block.view.batch_axes)
        for block in blocks
        for array in block.operands.carried
    )
    return make_plan(
        facts,
        transposable=transposable,
        turn_squares=numbers_only,
        placement=placement,
    )


def _unflatten(
    flat: _Flat,
    blocks: Sequence[_Block],
    results: Sequence[Operands],
    carried: Sequence[ArrayTree],
    outputs: int,
) -> tuple[tuple[ArrayTree, ...], tuple[ArrayTree, ...]]:
    parts: dict[int, list[tuple[View, Operands]]] = {}
    for block, result in zip(blocks, results, strict=True):
        parts.setdefault(block.leaf, []).append((block.view, result))
    trees = [list(flat.leaves) for _ in range(outputs)]
    numbers = [_like(flat.bare, bare(tree)) for tree in carried]
    for index, pieces in parts.items():
        views = [view for view, _ in pieces]
        dtype = flat.leaves[index].dtype
        for which, tree in enumerate(trees):
            blocks_of = [result.matrices[which] for _, result in pieces]
            tree[index] = joined(views, blocks_of).astype(dtype)
        for which, column in enumerate(numbers):
            numbers_there = [result.carried[which] for _, result in pieces]
            column[index] = joined_numbers(views, numbers_there)
    return (
        tuple(flat.treedef.unflatten(tree) for tree in trees),
        tuple(flat.bare.unflatten(column) for column in numbers),
    )
