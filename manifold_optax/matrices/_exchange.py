"""The owner exchange: whole matrices on one device each, by two all-to-alls.

Inside `jax.shard_map` every device holds one piece of every matrix. The first
all-to-all sends all pieces of a matrix to the device that owns it, the second sends the
pieces of the result back; nothing is communicated in between. Devices that hold the
same pieces (replicas) each send a part of the matrices, and gather the results. What is
carried per matrix is the same everywhere: the owner reads its own, and one gathering of
these small arrays brings back what it returns.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from manifold_optax._typing import Kernel
from manifold_optax.matrices._kernel import apply_kernel, over_stack
from manifold_optax.matrices._pieces import Pieces, pieces_of
from manifold_optax.matrices._plan import Exchange, Group, Placement
from manifold_optax.matrices._wire import all_gather, all_to_all, device_index

Stacks: TypeAlias = list[tuple[Array, ...]]
"""For each group of an exchange, arrays with one leading axis over its matrices."""


class Job(NamedTuple):
    """What is done to the matrices of an exchange."""

    kernel: Kernel
    inputs: int
    outputs: int
    exchange: Exchange
    placement: Placement


def apply_at_owners(job: Job, stacks: Stacks, carried: Stacks) -> tuple[Stacks, Stacks]:
    """The kernel on whole matrices at their owners.

    Args:
        job: kernel, groups, owners and mesh of the enclosing `shard_map`.
        stacks: pieces `[count, size]`, one array per input tree.
        carried: arrays `[count, …]`, the same on all owners.

    Returns:
        Pieces of the results, one array per output tree, and carried arrays as before.
    """
    exchange, deal = job.exchange, job.exchange.deal
    shards, replicas = exchange.shard_axes, exchange.replica_axes
    devices = math.prod(job.placement.mesh.shape[name] for name in shards)
    wires = [job.placement.wire_dtype(x.dtype) for x in stacks[0]]
    joint = jnp.result_type(*wires)

    sent = deal.pack([_columns(group, joint) for group in stacks])
    first = device_index(replicas) * devices
    mine = jax.lax.dynamic_slice_in_dim(sent, first, devices)
    received = all_to_all(mine, shards)

    branches = [
        functools.partial(_compute_class, job, which, wires[0])
        for which in range(len(deal.classes))
    ]
    owner = jnp.asarray(first + device_index(shards))
    if len(branches) == 1:
        results, numbers = branches[0](received, carried, owner)
    else:
        firsts = jnp.asarray([c.first for c in deal.classes[1:]])
        which = jnp.sum(owner >= firsts)
        results, numbers = jax.lax.switch(which, branches, received, carried, owner)

    outs: Stacks = [() for _ in stacks]
    if job.outputs:
        back = all_gather(all_to_all(results, shards), replicas)
        sizes = [group[0].shape[1:] for group in stacks]
        outs = _uncolumns(
            deal.unpack(back, [job.outputs * size for (size,) in sizes]),
            [(size,) * job.outputs for size in sizes],
        )
    if not any(carried):
        return outs, carried
    everyone = all_gather(numbers[None], (*replicas, *shards))
    shapes = [tuple(c.shape[1:] for c in group) for group in carried]
    return outs, _uncolumns(deal.unpack(everyone, _widths(shapes)), shapes)


def _compute_class(
    job: Job, which: int, wire: Any, received: Array, carried: Stacks, owner: Array
) -> tuple[Array, Array]:
    """What an owner of class `which` makes of its buffer `[senders, width]`.

    Returns:
        Results `[senders, width]` in dtype `wire`, and one row of numbers.
    """
    deal, groups = job.exchange.deal, job.exchange.groups
    own = deal.classes[which]
    results, numbers, offset = [], [], 0
    shapes = [tuple(c.shape[1:] for c in group) for group in carried]
    dtype = jnp.result_type(*(c for group in carried for c in group), jnp.float32)
    for index, (group, count) in enumerate(zip(groups, own.counts, strict=True)):
        if count == 0:
            continue
        start = deal.start(which, index) + (owner - own.first) * count
        mine = tuple(
            jax.lax.dynamic_slice_in_dim(c, start, count) for c in carried[index]
        )
        ys, cs = _compute_group(job, group, received, offset, start, (count, mine))
        results.append(jnp.moveaxis(ys.astype(wire), 1, 0).reshape(len(received), -1))
        numbers.append(_columns(cs, dtype).reshape(-1) if cs else jnp.zeros(0, dtype))
        offset += count * _cuts(job, group)[0][0].size * job.inputs
    sizes = [job.outputs * _cuts(job, group)[0][0].size for group in groups]
    return (
        _filled(results, deal.width(sizes), (len(received),), wire),
        _filled(numbers, deal.width(_widths(shapes)), (), dtype),
    )


def _compute_group(
    job: Job,
    group: Group,
    received: Array,
    offset: int,
    start: Array,
    own: tuple[int, tuple[Array, ...]],
) -> tuple[Array, tuple[Array, ...]]:
    """The kernel on the `count` matrices of a group from `offset` in the buffer on.

    Returns:
        Pieces `[count, senders, outputs · size]` and carried arrays `[count, …]`.
    """
    cuts, which_cut = _cuts(job, group)
    size, senders, count = cuts[0].size, len(received), own[0]

    def by_cut(index: Array, functions: Sequence[Any], x: Array) -> Array:
        if len(functions) == 1:
            return functions[0](x)
        return jax.lax.switch(jnp.asarray(which_cut)[start + index], functions, x)

    def one(arguments: Any) -> Any:
        index, numbers = arguments
        width = job.inputs * size
        piece = jax.lax.dynamic_slice_in_dim(
            received, offset + index * width, width, axis=1
        )
        pieces = jnp.moveaxis(piece.reshape(senders, job.inputs, size), 1, 0)
        assemble = [lambda p, c=c: c.assemble(p, group.short, group.long) for c in cuts]
        matrices = tuple(by_cut(index, assemble, pieces))
        ys, new = apply_kernel(job.kernel, matrices, numbers, job.outputs, group.dtypes)
        if not ys:
            return jnp.zeros((senders, 0), group.dtypes[0]), new
        back = by_cut(index, [c.cut for c in cuts], jnp.stack(ys))
        return jnp.moveaxis(back, 1, 0).reshape(senders, job.outputs * size), new

    itemsize = jnp.dtype(group.dtypes[-1]).itemsize
    return over_stack(
        one, (jnp.arange(count), own[1]), group.short * group.long * itemsize
    )


def _cuts(job: Job, group: Group) -> tuple[list[Pieces], list[int]]:
    """The different cuts of a group, and which of them each of its matrices has."""
    mesh, names = job.placement.mesh, job.exchange.shard_axes
    of_members = [pieces_of(member, names, mesh) for member in group.members]
    different = list(dict.fromkeys(of_members))
    which = [
        [different.index(pieces)] * member.count
        for pieces, member in zip(of_members, group.members, strict=True)
    ]
    return different, list(itertools.chain.from_iterable(which))


def _columns(arrays: Sequence[Array], dtype: Any) -> Array:
    """Arrays `[count, …]` side by side, `[count, width]`."""
    flat = [x.reshape(len(x), -1).astype(dtype) for x in arrays]
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
            tuple(p.reshape(-1, *s) for p, s in zip(parts, group, strict=True))
        )
    return groups


def _widths(shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[int]:
    return [sum(math.prod(shape) for shape in group) for group in shapes]


def _filled(
    parts: Sequence[Array], width: int, lead: tuple[int, ...], dtype: Any
) -> Array:
    """`parts` joined along the last axis, with zeros up to `width`."""
    joined = jnp.concatenate([*parts, jnp.zeros((*lead, 0), dtype)], axis=-1)
    return jnp.pad(joined, [(0, 0)] * len(lead) + [(0, width - joined.shape[-1])])
