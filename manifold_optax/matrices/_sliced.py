"""Matrices whose rows stay cut: the kernel sums over them by all-reduces.

Where mesh axes cut the columns, an all-to-all over them first moves the cut to the
rows, and another moves it back. The kernel is batched over the stack, never looped
over it, so that the sums of all matrices are one all-reduce.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax.matrices._kernel import apply_kernel, Call
from manifold_optax.matrices._pieces import Pieces
from manifold_optax.matrices._plan import Group, Member, Placement
from manifold_optax.matrices._wire import all_to_all


def apply_sliced(
    call: Call,
    group: Group,
    placement: Placement,
    stacks: tuple[Array, ...],
    numbers: tuple[Array, ...],
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Applies the kernel to stacks `[count, columns, rows]` of parts of matrices."""
    cut = _cut_of_columns(group.members[0], placement)

    def one(arguments: Any) -> Any:
        matrices, own = arguments
        return apply_kernel(
            call,
            matrices,
            own,
            group.numbers.written,
            group.dtypes,
            axis_name=group.shard_axes,
        )

    parts = tuple(_gather_columns(x, cut, group.columns, placement) for x in stacks)
    ys, new = jax.vmap(one)((parts, numbers))
    return tuple(_scatter_columns(y, cut, placement) for y in ys), new


def _cut_of_columns(member: Member, placement: Placement) -> Pieces:
    """How the columns are cut; the rows count as one whole axis."""
    shape = placement.mesh.shape
    columns = member.columns
    names = tuple(n for n in placement.mesh.axis_names if n in columns.names)
    local = tuple(
        member.view.shape[axis] // math.prod(shape[name] for name in cuts)
        for axis, cuts in zip(columns.axes, columns.mesh_axes, strict=True)
    )
    every = math.prod(shape[n] for n in (*columns.names, *member.rows.names))
    return Pieces(
        names,
        tuple(shape[name] for name in names),
        (*local, member.rows.size(member.view) // every),
        (*columns.mesh_axes, ()),
        tuple(range(len(local) + 1)),
    )


def _gather_columns(x: Array, cut: Pieces, columns: int, placement: Placement) -> Array:
    """`[count, columns_local, rows_local]` → `[count, columns, rows_local/devices]`."""
    if not cut.names:
        return x
    count, columns_local, rows_local = x.shape
    part = rows_local // cut.devices
    parts = x.reshape(count, columns_local, cut.devices, part)
    sent = jnp.moveaxis(parts, 2, 1).reshape(count, cut.devices, cut.size)
    moved = all_to_all(sent.astype(placement.wire_dtype(x.dtype)), cut.names, axis=1)
    return cut.assemble(moved, (columns, part)).astype(x.dtype)


def _scatter_columns(y: Array, cut: Pieces, placement: Placement) -> Array:
    """The inverse of `_gather_columns`."""
    if not cut.names:
        return y
    count, _, part = y.shape
    sent = cut.cut(y).astype(placement.wire_dtype(y.dtype))
    moved = all_to_all(sent, cut.names, axis=1).astype(y.dtype)
    parts = moved.reshape(count, cut.devices, cut.size // part, part)
    return jnp.moveaxis(parts, 1, 2).reshape(count, -1, cut.devices * part)
