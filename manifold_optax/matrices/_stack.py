"""From blocks of leaves to stacks of matrices, the kernel on each, and back."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from manifold_optax._typing import AxisName, Kernel
from manifold_optax.matrices._exchange import apply_at_owners
from manifold_optax.matrices._plan import Group, Member, Plan

_CHUNK_BYTES = 1 << 28
"""Bound of the working memory of one batched call on an accelerator, 256 MiB."""

_KERNEL_COPIES = 8
"""Matrices of working memory that a kernel is assumed to need per matrix."""


class Operands(NamedTuple):
    """Of one block: a batch of matrices per tree, and its carried arrays (or specs)."""

    matrices: tuple[Any, ...]
    carried: tuple[Any, ...]


def run(
    kernel: Kernel, plan: Plan, blocks: Sequence[Operands], outputs: int
) -> list[Operands]:
    """Results of all blocks, in their order and layout."""
    members = {m.index: m for group in plan.groups for m in group.members}
    specs = [members[index].spec for index in range(len(blocks))]

    def body(blocks: list[Operands]) -> list[Operands]:
        results: dict[int, Operands] = {}
        for group in plan.groups:
            results.update(_run_group(kernel, group, plan, blocks, outputs))
        return [results[index] for index in range(len(blocks))]

    if all(entry is None for spec in specs for entry in spec):
        return body(list(blocks))

    def specs_like(count: int, index: int) -> Operands:
        batch = members[index].view.batch_axes
        numbers = PartitionSpec(*(specs[index][axis] for axis in batch))
        return Operands(
            (specs[index],) * count, (numbers,) * len(blocks[index].carried)
        )

    sharded = jax.shard_map(
        body,
        mesh=plan.mesh,
        in_specs=([specs_like(len(b.matrices), i) for i, b in enumerate(blocks)],),
        out_specs=[specs_like(outputs, i) for i in range(len(blocks))],
        check_vma=False,
    )
    there = [specs_like(0, i).carried for i in range(len(blocks))]
    back = [tuple(jax.typeof(c).sharding.spec for c in b.carried) for b in blocks]
    results = sharded(_place(blocks, there, plan.mesh))
    return _place(results, back, plan.mesh)


def _place(
    blocks: Sequence[Operands], specs: Sequence[Sequence[PartitionSpec]], mesh: Any
) -> list[Operands]:
    """`blocks` with their carried arrays laid out by `specs`, on Explicit meshes.

    They come as `init` made them, most often replicated, and leave so again, so that a
    state has one layout. On Auto meshes the compiler does this.
    """
    if AxisType.Explicit not in mesh.axis_types:
        return list(blocks)

    def lay_out(block: Operands, specs: Sequence[PartitionSpec]) -> Operands:
        carried = tuple(
            jax.sharding.reshard(c, NamedSharding(mesh, spec))
            for c, spec in zip(block.carried, specs, strict=True)
        )
        return block._replace(carried=carried)

    return [lay_out(block, s) for block, s in zip(blocks, specs, strict=True)]


def _run_group(
    kernel: Kernel, group: Group, plan: Plan, blocks: Sequence[Operands], outputs: int
) -> dict[int, Operands]:
    own = [blocks[member.index] for member in group.members]
    pairs = list(zip(group.members, own, strict=True))
    matrices = [tuple(_to_stack(m, x) for x in b.matrices) for m, b in pairs]
    carried = [tuple(_flat_batch(m, c) for c in b.carried) for m, b in pairs]
    stacks, numbers = _concatenate(matrices), _concatenate(carried)
    axis_name = group.exchange_axes if group.recipe == "split" else None

    def apply(stacks: Any, numbers: Any) -> Any:
        return _apply(kernel, stacks, numbers, axis_name, outputs)

    if group.recipe == "owned" and plan.mesh is not None:
        ys, cs = apply_at_owners(apply, group, plan.mesh, stacks, numbers)
    else:
        ys, cs = apply(stacks, numbers)

    results, start = {}, 0
    for member, block in pairs:
        shape = block.matrices[0].shape
        stop = start + math.prod(shape[axis] for axis in member.view.batch_axes)
        results[member.index] = Operands(
            tuple(_from_stack(member, y[start:stop], shape) for y in ys),
            tuple(
                c[start:stop].reshape(old.shape)
                for c, old in zip(cs, block.carried, strict=True)
            ),
        )
        start = stop
    return results


def _apply(
    kernel: Kernel, stacks: Any, numbers: Any, axis_name: AxisName, outputs: int
) -> Any:
    """`kernel` on each matrix of the stacks `[count, short, long]`.

    Stacks keep the long side last in memory (Gram products are then row times row) and
    are handed to the kernel transposed.
    """

    def one(arguments: Any) -> Any:
        xs, carried = arguments
        ys, new = kernel(*(x.mT for x in xs), *carried, axis_name=axis_name)
        if len(ys) != outputs or len(new) != len(carried):
            raise ValueError(
                f"The kernel must return {outputs} matrices and {len(carried)} carried "
                f"arrays, got {len(ys)} and {len(new)}."
            )
        cast = tuple(n.astype(c.dtype) for n, c in zip(new, carried, strict=True))
        return tuple(y.mT for y in ys), cast

    count, short, long = stacks[0].shape
    if count == 1:
        first = jax.tree.map(lambda x: x[0], (stacks, numbers))
        return jax.tree.map(lambda x: x[None], one(first))
    if jax.default_backend() == "cpu":
        # One matrix at a time stays in the cache: faster than a batched product.
        return jax.lax.map(one, (stacks, numbers))
    bytes_each = _KERNEL_COPIES * short * long * stacks[0].dtype.itemsize
    chunk = max(1, min(count, _CHUNK_BYTES // bytes_each))
    if chunk == count:
        return jax.vmap(one)((stacks, numbers))
    return jax.lax.map(one, (stacks, numbers), batch_size=chunk)


def _concatenate(parts: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
    """One stack per tree, of the parts of all members."""
    return tuple(jnp.concatenate(column) for column in zip(*parts, strict=True))


def _permutation(member: Member) -> tuple[int, ...]:
    return (*member.view.batch_axes, *member.short.axes, *member.long.axes)


def _to_stack(member: Member, x: Array) -> Array:
    """Block → `[count, short, long]`; the sizes are local inside `shard_map`."""
    short = math.prod(x.shape[axis] for axis in member.short.axes)
    long = math.prod(x.shape[axis] for axis in member.long.axes)
    return x.transpose(_permutation(member)).reshape(-1, short, long)


def _from_stack(member: Member, x: Array, shape: tuple[int, ...]) -> Array:
    order = _permutation(member)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return x.reshape(tuple(shape[axis] for axis in order)).transpose(inverse)


def _flat_batch(member: Member, x: Array) -> Array:
    return x.reshape(-1, *x.shape[len(member.view.batch_axes) :])
