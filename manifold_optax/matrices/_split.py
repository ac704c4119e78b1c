"""Matrices whose long side stays cut: the kernel sums over it by all-reduces.

Where mesh axes cut the short side, an all-to-all over them first moves the cut to the
long side, and another moves it back. The kernel is batched over the stack, never looped
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


def apply_split(
    call: Call,
    group: Group,
    placement: Placement,
    stacks: tuple[Array, ...],
    numbers: tuple[Array, ...],
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The kernel on stacks `[count, short_local, long_local]` of parts of matrices."""
    cut = _short_cut(group.members[0], placement)

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

    parts = tuple(_gather_short(x, cut, group.short, placement) for x in stacks)
    ys, new = jax.vmap(one)((parts, numbers))
    return tuple(_scatter_short(y, cut, placement) for y in ys), new


def _short_cut(member: Member, placement: Placement) -> Pieces:
    """How the short side is cut; the long side counts as one whole axis."""
    shape = placement.mesh.shape
    names = tuple(n for n in placement.mesh.axis_names if n in member.short.names)
    local = tuple(
        member.view.shape[axis] // math.prod(shape[name] for name in cuts)
        for axis, cuts in zip(member.short.axes, member.short.mesh_axes, strict=True)
    )
    every = math.prod(shape[n] for n in (*member.short.names, *member.long.names))
    return Pieces(
        names,
        tuple(shape[name] for name in names),
        (*local, member.long.size(member.view) // every),
        (*member.short.mesh_axes, ()),
        tuple(range(len(local) + 1)),
    )


def _gather_short(x: Array, cut: Pieces, short: int, placement: Placement) -> Array:
    """`[count, short_local, long_local]` → `[count, short, long_local / devices]`."""
    if not cut.names:
        return x
    count, short_local, long_local = x.shape
    long_part = long_local // cut.devices
    rows = x.reshape(count, short_local, cut.devices, long_part)
    sent = jnp.moveaxis(rows, 2, 1).reshape(count, cut.devices, cut.size)
    moved = all_to_all(sent.astype(placement.wire_dtype(x.dtype)), cut.names, axis=1)
    return cut.assemble(moved, (short, long_part)).astype(x.dtype)


def _scatter_short(y: Array, cut: Pieces, placement: Placement) -> Array:
    """The inverse of `_gather_short`."""
    if not cut.names:
        return y
    count, _, long_part = y.shape
    sent = cut.cut(y).astype(placement.wire_dtype(y.dtype))
    moved = all_to_all(sent, cut.names, axis=1).astype(y.dtype)
    rows = moved.reshape(count, cut.devices, cut.size // long_part, long_part)
    return jnp.moveaxis(rows, 1, 2).reshape(count, -1, cut.devices * long_part)
