"""From blocks of leaves to stacks of matrices, the kernel on each, and back."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from manifold_optax._typing import Kernel
from manifold_optax.matrices._exchange import apply_at_owners, Job
from manifold_optax.matrices._kernel import apply_kernel, over_stack
from manifold_optax.matrices._plan import Exchange, Group, Member, Plan
from manifold_optax.matrices._split import apply_split


class Operands(NamedTuple):
    """Of one block: a batch of matrices per tree, and its carried arrays (or specs)."""

    matrices: tuple[Any, ...]
    carried: tuple[Any, ...]


def run(
    kernel: Kernel, plan: Plan, blocks: Sequence[Operands], outputs: int
) -> list[Operands]:
    """Results of all blocks, in their order and layout."""

    def body(blocks: list[Operands]) -> list[Operands]:
        results: dict[int, Operands] = {}
        for group in plan.groups:
            results.update(_run_group(kernel, group, plan, blocks, outputs))
        for exchange in plan.exchanges:
            results.update(_run_exchange(kernel, exchange, plan, blocks, outputs))
        return [results[index] for index in range(len(blocks))]

    if not plan.communicates:
        return body(list(blocks))
    assert plan.placement is not None
    members = plan.members

    def specs_like(count: int, index: int) -> Operands:
        member = members[index]
        numbers = PartitionSpec(*(member.spec[axis] for axis in member.view.batch_axes))
        return Operands((member.spec,) * count, (numbers,) * len(blocks[index].carried))

    sharded = jax.shard_map(
        body,
        mesh=plan.placement.mesh,
        in_specs=([specs_like(len(b.matrices), i) for i, b in enumerate(blocks)],),
        out_specs=[specs_like(outputs, i) for i in range(len(blocks))],
        check_vma=False,
    )
    there = [specs_like(0, i).carried for i in range(len(blocks))]
    back = [tuple(jax.typeof(c).sharding.spec for c in b.carried) for b in blocks]
    results = sharded(_place(blocks, there, plan.placement.mesh))
    return _place(results, back, plan.placement.mesh)


def _place(
    blocks: Sequence[Operands], specs: Sequence[Sequence[PartitionSpec]], mesh: Any
) -> list[Operands]:
    """`blocks` with their carried arrays laid out by `specs`, on Explicit meshes.

    They leave in the layout in which they came, so that a state has one layout. On
    Auto meshes the compiler does this.
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
    """A group that no exchange moves."""
    stacks, carried = _stacked(group, blocks, _to_stack)
    if group.recipe == "local":
        turn = not (group.tall or plan.either)
        bytes_each = group.short * group.long * jnp.dtype(group.dtypes[-1]).itemsize

        def one(arguments: Any) -> Any:
            matrices, numbers = arguments
            return apply_kernel(
                kernel, matrices, numbers, outputs, group.dtypes, turn=turn
            )

        ys, cs = over_stack(one, stacks, carried, outputs, bytes_each)
    else:
        assert plan.placement is not None
        ys, cs = apply_split(kernel, group, plan.placement, stacks, carried, outputs)
    return _unstacked(group, blocks, ys, cs, _stack_order)


def _run_exchange(
    kernel: Kernel,
    exchange: Exchange,
    plan: Plan,
    blocks: Sequence[Operands],
    outputs: int,
) -> dict[int, Operands]:
    """The groups of an exchange, which travel together."""
    assert plan.placement is not None
    stacked = [_stacked(group, blocks, _to_pieces) for group in exchange.groups]
    inputs = len(stacked[0][0])
    ys, cs = apply_at_owners(
        Job(kernel, inputs, outputs, exchange, plan.placement, plan.either),
        [matrices for matrices, _ in stacked],
        [carried for _, carried in stacked],
    )
    results: dict[int, Operands] = {}
    for group, y, c in zip(exchange.groups, ys, cs, strict=True):
        results.update(_unstacked(group, blocks, y, c, _leaf_order))
    return results


def _stacked(
    group: Group,
    blocks: Sequence[Operands],
    to_rows: Callable[[Group, Member, Any], Array],
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """One array per input tree and per carried tree, over all matrices of a group."""
    own = [(member, blocks[member.index]) for member in group.members]
    matrices = [tuple(to_rows(group, m, x) for x in block.matrices) for m, block in own]
    carried = [tuple(_flat_batch(m, c) for c in block.carried) for m, block in own]

    def join(parts: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
        return tuple(jnp.concatenate(column) for column in zip(*parts, strict=True))

    return join(matrices), join(carried)


def _unstacked(
    group: Group,
    blocks: Sequence[Operands],
    ys: Sequence[Array],
    cs: Sequence[Array],
    order: Callable[[Group, Member], tuple[int, ...]],
) -> dict[int, Operands]:
    """The blocks of a group from its stacks, whose axes stand in `order`."""
    results, start = {}, 0
    for member in group.members:
        block, stop = blocks[member.index], start + member.count
        like = block.matrices[0]
        axes = order(group, member)
        inverse = sorted(range(len(axes)), key=axes.__getitem__)
        sizes = tuple(like.shape[axis] for axis in axes)
        results[member.index] = Operands(
            tuple(
                y[start:stop].reshape(sizes).transpose(inverse).astype(like.dtype)
                for y in ys
            ),
            tuple(
                c[start:stop].reshape(old.shape).astype(old.dtype)
                for c, old in zip(cs, block.carried, strict=True)
            ),
        )
        start = stop
    return results


def _to_stack(group: Group, member: Member, x: Array) -> Array:
    """Block → `[count, *group.shape]`; the sizes are local inside `shard_map`."""
    sizes = [
        math.prod(x.shape[axis] for axis in side) for side in _sides(group, member)
    ]
    return x.transpose(_stack_order(group, member)).reshape(-1, *sizes)


def _stack_order(group: Group, member: Member) -> tuple[int, ...]:
    rows, columns = _sides(group, member)
    return (*member.view.batch_axes, *rows, *columns)


def _sides(group: Group, member: Member) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Leaf axes of the rows and of the columns of a matrix of the stack."""
    long, short = member.long.axes, member.short.axes
    return (long, short) if group.tall else (short, long)


def _to_pieces(group: Group, member: Member, x: Array) -> Array:
    """Block → `[count, size]`, each piece in the leaf's own order of axes."""
    return x.transpose(_leaf_order(group, member)).reshape(member.count, -1)


def _leaf_order(group: Group, member: Member) -> tuple[int, ...]:
    del group
    return (*member.view.batch_axes, *sorted(member.view.matrix_axes))


def _flat_batch(member: Member, x: Array) -> Array:
    return x.reshape(-1, *x.shape[len(member.view.batch_axes) :])
