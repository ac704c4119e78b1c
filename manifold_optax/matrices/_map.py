"""The one way of a transformation into the matrices of a tree, and back.

Four steps, always in this order: **view** each leaf as a batch of matrices, **stack**
the matrices of one shape, **place** the stack, **compute** with a kernel that knows one
matrix. Compile time does not grow with the depth of a model, because a stack is
compiled once.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax

from manifold_optax._checks import require_compute_dtype, require_one_of
from manifold_optax._typing import ArrayTree, Kernel
from manifold_optax.matrices._axes import AxesLike, check_axes_like
from manifold_optax.matrices._blocks import (
    Block,
    blocks_of,
    Flat,
    flatten,
    leaves_of,
    unflatten,
    view_leaves,
)
from manifold_optax.matrices._kernel import Call, check_returns, Result
from manifold_optax.matrices._layout import resolved, spec_of
from manifold_optax.matrices._plan import (
    check_placement,
    NO_NUMBERS,
    Numbers,
    Orientation,
    Placement,
    Plan,
)
from manifold_optax.matrices._recipes import Facts, make_plan
from manifold_optax.matrices._recut import (
    as_shapes,
    moved,
    moved_back,
    moves_of,
    placed_for,
    with_moves,
)
from manifold_optax.matrices._stack import run


def map_matrices(
    kernel: Kernel,
    trees: Sequence[ArrayTree],
    numbers_in: Sequence[ArrayTree] = (),
    *,
    returns: Sequence[Result] = ("matrix",),
    axes: AxesLike = None,
    orientation: Orientation = "tall",
    placement: Placement | None = None,
    dtype: Any = None,
) -> Any:
    """Applies `kernel` to every matrix of a tree.

    Call it, and every transformation built on it, under `jax.jit`. Outside, each call
    recompiles the loop over the stack.

    Args:
        kernel: `(*matrices, *numbers_in, axis_name=None) -> results` for one matrix of
            each tree. A kernel with one result returns that array, one with several
            returns a tuple of arrays. `axis_name` names the mesh axes that split the
            rows; the shapes of the results must not depend on it.
        trees: input trees of one structure, e.g. `(updates,)` or `(updates, params)`.
            The first decides which leaves exist: `None`, `optax.MaskedNode` and empty
            leaves pass through.
        numbers_in: trees of arrays that the kernel reads, one entry per matrix: leaf
            `[*batch, …]`, `[*batch, blocks, …]` for a `Split`, of any real floating
            dtype. An entry is a number or a vector of the short side (of a square
            matrix: the fan-in).
        returns: what each result of the kernel is: `"matrix"`, of the shape that the
            kernel was given, or `"number"`, an entry like those of `numbers_in`. To
            learn the shapes of numbers before it computes any, the kernel is traced
            once more for each shape of matrix.
        axes: how every leaf is a batch of matrices; axes that are not named are batch
            axes.
        orientation: how the kernel sees a matrix. `"tall"`: with at least as many rows
            as columns; wide matrices are transposed, and both orientations of a shape
            share a stack, which needs `kernel(xᵀ) = kernel(x)ᵀ`. `"either"`: the same,
            but the kernel gets matrices as they lie in memory, which saves
            transpositions (where the rows are split: tall). `"fixed"`: always
            `fan_out × fan_in`.
        placement: which device computes what, of `mo.sharding`. `None`: read from the
            arrays on Explicit meshes, local otherwise. Inside `shard_map` and `pmap`
            everything is local.
        dtype: dtype in which the kernel computes; `None`: at least float32.

    Returns:
        What the kernel returns, as trees: one tree, or a tuple of trees. A tree of
        matrices is like the first of `trees`, each leaf in its dtype. A tree of numbers
        is float32, with leaves `[*batch, …]` laid out as the batch axes of the matrices
        are, as `per_matrix` makes them; it has `None` where the first tree has none.

    Raises:
        TypeError: for a leaf that is not real floating.
        ValueError: for ranks, shapes or structures that do not fit, for a kernel that
            does not return what `returns` says, and for a sharding that the placement
            does not cover. The first and the last name the leaf.

    Example:
        >>> def normalize(x, axis_name=None):
        ...     norm = jnp.linalg.norm(x)
        ...     return x / norm, norm
        >>> tree, norms = map_matrices(
        ...     normalize, ({"w": 3 * jnp.eye(2)},), returns=("matrix", "number")
        ... )
        >>> tree["w"].round(3)
        Array([[0.707, 0.   ],
               [0.   , 0.707]], dtype=float32)
        >>> norms["w"].round(3)
        Array(4.243, dtype=float32)
    """
    if not callable(kernel):
        raise TypeError(f"kernel must be a function of one matrix, got {kernel!r}.")
    if isinstance(trees, str) or not isinstance(trees, Sequence) or not trees:
        raise TypeError(
            "trees must be a tuple of trees, for one of them (tree,); got "
            f"{type(trees).__name__}."
        )
    check_axes_like(axes)
    check_placement(placement)
    require_compute_dtype("dtype", dtype)
    return map_views(
        Call(kernel, check_returns(returns)),
        trees,
        numbers_in,
        views=view_leaves(trees[0], axes),
        orientation=orientation,
        placement=placement,
        dtype=dtype,
    )


def map_views(
    call: Call,
    trees: Sequence[ArrayTree],
    numbers_in: Sequence[ArrayTree] = (),
    *,
    views: ArrayTree,
    orientation: Orientation = "tall",
    placement: Placement | None = None,
    dtype: Any = None,
) -> Any:
    """`map_matrices` where the views of the first tree are known, by `view_leaves`."""
    flat = flatten(trees)
    placement = _resolved(flat, placement)
    moves = moves_of(flat, views, placement)
    near = moved(flat, moves)
    blocks = blocks_of(near, views, numbers_in, dtype)
    plan = _plan(blocks, call, orientation, placed_for(placement, moves))
    results = run(call, plan, [block.operands for block in blocks])
    leaves = leaves_of(call, flat, blocks, results)
    matrices = [tree | moved_back(tree, moves) for tree in leaves.matrices]
    return unflatten(call, flat, leaves._replace(matrices=matrices))


def plan_matrices(
    tree: ArrayTree,
    *,
    axes: AxesLike = None,
    orientation: Orientation = "tall",
    placement: Placement | None = None,
) -> Plan:
    """Returns the plan by which `map_matrices` goes over `tree`; print it to read it.

    It has one line per stack: which matrices share it, by which recipe they are
    computed, and what that costs each device in FLOPs and in bytes sent. The last line
    is about the device with the most to do. The costs are those of five steps of
    Newton–Schulz on one tree, a common measure for all transformations; one that sends
    parameters along sends half as much again.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s.
        axes: as for `map_matrices`.
        orientation: as for `map_matrices`.
        placement: as for `map_matrices`.

    Raises:
        TypeError, ValueError: as `map_matrices`, for what does not fit.

    Example:
        >>> params = {"a": jnp.ones((4, 2)), "b": jnp.ones((3, 2, 4))}
        >>> print(plan_matrices(params, axes=STACKED))
        stack          matrices  recipe  FLOPs  bytes sent  leaves
        4 × 2 float32  4         local   1.41k  0           a, b
        busiest device: 1.41k FLOPs, 0 bytes sent
    """
    check_axes_like(axes)
    check_placement(placement)
    flat, views = flatten((tree,)), view_leaves(tree, axes)
    placement = _resolved(flat, placement)
    moves = moves_of(flat, views, placement)
    blocks = blocks_of(moved(as_shapes(flat), moves), views, (), None)
    plan = _plan(blocks, None, orientation, placed_for(placement, moves))
    return with_moves(plan, flat, moves)


def _resolved(flat: Flat, placement: Placement | None) -> Placement | None:
    return resolved(placement, [arrays[0] for arrays in flat.arrays.values()])


def _plan(
    blocks: Sequence[Block],
    call: Call | None,
    orientation: Orientation,
    placement: Placement | None,
) -> Plan:
    """The plan; without a `call` for a kernel of matrices alone."""
    require_one_of("orientation", orientation, ("tall", "either", "fixed"))
    fixed = orientation == "fixed"
    numbers_of = functools.cache(functools.partial(_numbers, call))
    facts = [
        Facts(
            block.view,
            block.dtypes,
            spec_of(block.view, block.operands.matrices, placement),
            numbers_of(_shape(block, fixed), block.dtypes, _read(block)),
        )
        for block in blocks
    ]
    flops = None if call is None else call.flops
    return make_plan(facts, orientation=orientation, placement=placement, flops=flops)


def _numbers(
    call: Call | None,
    shape: tuple[int, int],
    dtypes: tuple[str, ...],
    read: tuple[tuple[tuple[int, ...], str], ...],
) -> Numbers:
    if call is None:
        return NO_NUMBERS
    matrix = jax.ShapeDtypeStruct(shape, dtypes[-1])
    own = [jax.ShapeDtypeStruct(*number) for number in read]
    return Numbers(read, call.numbers_of([matrix] * (len(dtypes) - 1), own))


def _shape(block: Block, fixed: bool) -> tuple[int, int]:
    """A matrix of the block as the kernel sees it."""
    shape = (block.view.fan_out, block.view.fan_in)
    return shape if fixed else (max(shape), min(shape))


def _read(block: Block) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Shape and dtype of the numbers of one matrix of the block."""
    batch = len(block.view.batch_axes)
    return tuple(
        (tuple(number.shape[batch:]), str(number.dtype))
        for number in block.operands.numbers
    )
