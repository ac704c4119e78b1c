"""The owner exchange: whole matrices on one device each, by two all-to-alls.

Inside `jax.shard_map` every device holds one piece of every matrix. The first
all-to-all sends all pieces of a matrix to the device that owns it, the second sends the
pieces of the result back; nothing is communicated in between. Devices that hold the
same pieces (replicas) each send a part of the matrices, and gather the results. The
numbers per matrix are the same everywhere: the owner reads its own, and one gathering
of these small arrays brings back what it writes.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax.matrices._deal import Deal
from manifold_optax.matrices._kernel import (
    apply_kernel,
    batched,
    Call,
    chunk_size,
    in_chunks,
    Shapes,
)
from manifold_optax.matrices._pieces import Pieces, pieces_of
from manifold_optax.matrices._plan import Exchange, Group, Placement
from manifold_optax.matrices._wire import all_gather, all_to_all, device_index

Stacks: TypeAlias = list[tuple[Array, ...]]
"""Arrays with one leading axis over the matrices of a group, for each group."""


class Job(NamedTuple):
    """What is done to the matrices of an exchange."""

    call: Call
    inputs: int
    exchange: Exchange
    placement: Placement
    either: bool
    """Whether the kernel takes matrices in either orientation."""

    @property
    def outputs(self) -> int:
        """Number of matrices that the kernel returns."""
        return self.call.count_of("matrix")

    @property
    def written(self) -> list[Shapes]:
        """Shapes of the numbers that the kernel writes, for each group."""
        return [group.numbers.written for group in self.exchange.groups]

    @property
    def wires(self) -> list[Any]:
        """Dtypes in which the matrices of each input tree travel."""
        dtypes = self.exchange.groups[0].dtypes[:-1]
        return [self.placement.wire_dtype(dtype) for dtype in dtypes]


class _Part(NamedTuple):
    """A part of an exchange, which travels by itself."""

    deal: Deal
    firsts: tuple[int, ...]
    """Position in the stack of each group of its first matrix of the part."""


def apply_at_owners(job: Job, stacks: Stacks, numbers: Stacks) -> tuple[Stacks, Stacks]:
    """Applies the kernel to whole matrices at their owners.

    No part of the exchange waits for another, so that one may travel while the matrices
    of another are multiplied.

    Args:
        job: kernel, groups, owners and mesh of the enclosing `shard_map`.
        stacks: pieces `[count, size]`, one array per input tree.
        numbers: arrays `[count, …]` that the kernel reads, the same on all owners.

    Returns:
        Pieces of the results, one array per output tree, and the numbers that the
        kernel writes, `[count, …]`.
    """
    parts = _parts(job.exchange)
    found = [_apply_part(job, part, stacks, numbers) for part in parts]
    outs = _joined([matrices for matrices, _ in found])
    if "number" not in job.call.returns:
        return outs, [() for _ in stacks]
    names = (*job.exchange.replica_axes, *job.exchange.shard_axes)
    rows = [row for _, row in found]
    everyone = all_gather(jnp.concatenate(rows)[None], names)
    ends = itertools.accumulate(len(row) for row in rows)
    shapes = job.written
    written = [
        _uncolumns(part.deal.unpack(own, _widths(shapes)), shapes)
        for part, own in zip(
            parts, jnp.split(everyone, list(ends)[:-1], axis=1), strict=True
        )
    ]
    return outs, _joined(written)


def _parts(exchange: Exchange) -> list[_Part]:
    stacks = range(len(exchange.groups))
    firsts, parts = [0 for _ in stacks], []
    for deal in exchange.parts:
        parts.append(_Part(deal, tuple(firsts)))
        firsts = [firsts[stack] + deal.count(stack) for stack in stacks]
    return parts


def _apply_part(
    job: Job, part: _Part, stacks: Stacks, numbers: Stacks
) -> tuple[Stacks, Array]:
    """Sends a part to its owners, computes it there, and sends the results back.

    Returns:
        Pieces of the results, and one row of the numbers that this device wrote.
    """
    exchange, deal = job.exchange, part.deal
    shards, replicas = exchange.shard_axes, exchange.replica_axes
    devices = math.prod(job.placement.mesh.shape[name] for name in shards)
    joint = jnp.result_type(*job.wires)

    own = [
        [x[first : first + deal.count(stack)] for x in group]
        for stack, (group, first) in enumerate(zip(stacks, part.firsts, strict=True))
    ]
    sent = deal.pack([_columns(group, joint) for group in own])
    first = device_index(replicas) * devices
    mine = jax.lax.dynamic_slice_in_dim(sent, first, devices)
    received = all_to_all(mine, shards)

    branches = [
        functools.partial(_compute_class, job, part, which)
        for which in range(len(deal.classes))
    ]
    owner = jnp.asarray(first + device_index(shards))
    if not deal.in_order:
        owner = jnp.asarray(deal.positions)[owner]
    if len(branches) == 1:
        results, row = branches[0](received, numbers, owner)
    else:
        firsts = jnp.asarray([c.first for c in deal.classes[1:]])
        which = jnp.sum(owner >= firsts)
        results, row = jax.lax.switch(which, branches, received, numbers, owner)

    if not job.outputs:
        return [() for _ in stacks], row
    back = all_gather(all_to_all(results, shards), replicas)
    sizes = [group[0].shape[1] for group in stacks]
    unpacked = deal.unpack(back, [job.outputs * size for size in sizes])
    shapes = [((size,),) * job.outputs for size in sizes]
    return _uncolumns(unpacked, shapes), row


def _joined(parts: Sequence[Stacks]) -> Stacks:
    """The stacks of all parts, in the order of their matrices."""
    if len(parts) == 1:
        return parts[0]
    return [
        tuple(jnp.concatenate(arrays) for arrays in zip(*of_group, strict=True))
        for of_group in zip(*parts, strict=True)
    ]


def _compute_class(
    job: Job, part: _Part, which: int, received: Array, numbers: Stacks, owner: Array
) -> tuple[Array, Array]:
    """What an owner of class `which` makes of its buffer `[senders, width]`.

    Returns:
        Results `[senders, width]`, and one row of numbers, float32.
    """
    deal, groups, wire = part.deal, job.exchange.groups, job.wires[0]
    own = deal.classes[which]
    sizes = [_cuts(job, group)[0][0].size for group in groups]
    width = deal.width([job.outputs * size for size in sizes])
    # A result takes the place of what it was made of: no second buffer.
    in_place = job.outputs <= job.inputs and wire == received.dtype
    results = received if in_place else jnp.zeros((len(received), width), wire)
    rows, read, write = [], 0, 0
    for index, (group, count) in enumerate(zip(groups, own.counts, strict=True)):
        if count == 0:
            continue
        start = part.firsts[index] + deal.start(which, index)
        start = start + (owner - own.first) * count
        lot = _Lot(group, sizes[index], count, start, read, write)
        mine = tuple(
            jax.lax.dynamic_slice_in_dim(c, start, count) for c in numbers[index]
        )
        source = None if in_place else received
        results, new = _compute_lot(job, lot, source, results, mine)
        rows += [_columns(new, jnp.float32).reshape(-1)] if new else []
        read += count * job.inputs * lot.size
        write += count * job.outputs * lot.size
    row = jnp.concatenate([*rows, jnp.zeros(0, jnp.float32)])
    filled = jnp.pad(row, (0, deal.width(_widths(job.written)) - len(row)))
    return results[:, :width], filled


class _Lot(NamedTuple):
    """The matrices of one group that an owner has, and where its buffers hold them."""

    group: Group
    size: int
    """Entries of a piece of a matrix."""
    matrices: int
    """How many there are."""
    start: Array
    """Position of the first one in the stack of the group."""
    read: int
    """Column of the first one among what was received."""
    write: int
    """Column of its result."""


def _compute_lot(
    job: Job,
    lot: _Lot,
    source: Array | None,
    results: Array,
    numbers: tuple[Array, ...],
) -> tuple[Array, tuple[Array, ...]]:
    """`results`, with those of the lot in their columns, and the numbers it writes.

    `source` holds what was received; `None` where `results` does.
    """
    senders, group = len(results), lot.group
    itemsize = jnp.dtype(group.dtypes[-1]).itemsize
    chunk = chunk_size(lot.matrices, group.columns * group.rows * itemsize)

    def advance(first: Any, size: int, state: Any) -> Any:
        results, written = state
        columns = jax.lax.dynamic_slice_in_dim(
            results if source is None else source,
            lot.read + first * job.inputs * lot.size,
            size * job.inputs * lot.size,
            axis=1,
        )
        pieces = columns.reshape(senders, size, job.inputs, lot.size)
        own = [jax.lax.dynamic_slice_in_dim(c, first, size) for c in numbers]
        ys, new = batched(
            functools.partial(_compute_one, job, lot),
            (first + jnp.arange(size), jnp.moveaxis(pieces, 0, 2), tuple(own)),
        )
        rows = jnp.moveaxis(ys, 2, 0).reshape(senders, size * job.outputs * lot.size)
        column = lot.write + first * job.outputs * lot.size
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
        return (
            jax.lax.dynamic_update_slice_in_dim(
                results, rows.astype(results.dtype), column, axis=1
            ),
            tuple(update(c, n, first) for c, n in zip(written, new, strict=True)),
        )

    blank = tuple(
        jnp.zeros((lot.matrices, *shape), jnp.float32)
        for shape in group.numbers.written
    )
    return in_chunks(advance, lot.matrices, chunk, (results, blank))


def _compute_one(job: Job, lot: _Lot, arguments: Any) -> Any:
    """The kernel on matrix number `index`, from pieces `[inputs, senders, size]`."""
    index, pieces, numbers = arguments
    group = lot.group
    cuts, which_cut = _cuts(job, group)

    def by_cut(functions: Sequence[Any], x: Array) -> Array:
        if len(functions) == 1:
            return functions[0](x)
        return jax.lax.switch(jnp.asarray(which_cut)[lot.start + index], functions, x)

    assemble = [lambda p, c=c: c.assemble(p, group.shape) for c in cuts]
    matrices = tuple(by_cut(assemble, pieces))
    turn = not (group.upright or job.either)
    ys, new = apply_kernel(
        job.call, matrices, numbers, group.numbers.written, group.dtypes, turn=turn
    )
    if not ys:
        return jnp.zeros((0, *pieces.shape[1:]), group.dtypes[0]), new
    return by_cut([c.cut for c in cuts], jnp.stack(ys)), new


def _cuts(job: Job, group: Group) -> tuple[list[Pieces], list[int]]:
    """The different cuts of a group, and which of them each of its matrices has."""
    mesh, names = job.placement.mesh, job.exchange.shard_axes
    of_members = [
        pieces_of(member, names, mesh, upright=group.upright)
        for member in group.members
    ]
    different = list(dict.fromkeys(of_members))
    which = [
        [different.index(pieces)] * member.count
        for pieces, member in zip(of_members, group.members, strict=True)
    ]
    return different, list(itertools.chain.from_iterable(which))


def _columns(arrays: Sequence[Array], dtype: Any) -> Array:
    """Arrays `[count, …]` side by side, `[count, width]`."""
    flat = [x.reshape(len(x), math.prod(x.shape[1:])).astype(dtype) for x in arrays]
    return jnp.concatenate(flat, axis=1)


def _uncolumns(
    stacks: Sequence[Array], shapes: Sequence[Sequence[tuple[int, ...]]]
) -> Stacks:
    """The inverse of `_columns`, for each group."""
    groups: Stacks = []
    for stack, group in zip(stacks, shapes, strict=True):
        ends = itertools.accumulate(math.prod(shape) for shape in group)
        parts = jnp.split(stack, list(ends)[:-1], axis=1) if group else []
        groups.append(
            tuple(p.reshape(len(p), *s) for p, s in zip(parts, group, strict=True))
        )
    return groups


def _widths(shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[int]:
    return [sum(math.prod(shape) for shape in group) for group in shapes]
