"""Blocks of leaves as stacks of matrices, and the kernel on each stack."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from manifold_optax.linalg._device import by_platform
from manifold_optax.matrices._exchange import apply_at_owners, Job
from manifold_optax.matrices._kernel import apply_kernel, Call, over_stack
from manifold_optax.matrices._plan import Exchange, Group, Member, Plan
from manifold_optax.matrices._sliced import apply_sliced


class Operands(NamedTuple):
    """A batch of matrices per tree of one block, and its numbers (or their specs)."""

    matrices: tuple[Any, ...]
    numbers: tuple[Any, ...]


def run(call: Call, plan: Plan, blocks: Sequence[Operands]) -> list[Operands]:
    """Results of all blocks, in their order; numbers lie along their batch axes."""

    def body(blocks: list[Operands]) -> list[Operands]:
        results: dict[int, Operands] = {}
        for group in plan.groups:
            results.update(_run_group(call, group, plan, blocks))
        for exchange in plan.exchanges:
            results.update(_run_exchange(call, exchange, plan, blocks))
        return [results[index] for index in range(len(blocks))]

    mesh = plan.placement.mesh if plan.placement is not None else None
    if not plan.communicates:
        return by_platform(body, list(blocks), mesh=mesh)
    assert mesh is not None
    members = plan.members

    def specs_of(index: int, matrices: int, numbers: int) -> Operands:
        member = members[index]
        along = PartitionSpec(*(member.spec[axis] for axis in member.view.batch_axes))
        return Operands((member.spec,) * matrices, (along,) * numbers)

    read = [
        specs_of(index, len(block.matrices), len(block.numbers))
        for index, block in enumerate(blocks)
    ]
    sharded = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(read,),
        out_specs=[
            specs_of(index, call.count_of("matrix"), call.count_of("number"))
            for index in range(len(blocks))
        ],
        check_vma=False,
    )
    return by_platform(sharded, _place(blocks, read, mesh), mesh=mesh)


def _place(
    blocks: Sequence[Operands], specs: Sequence[Operands], mesh: Any
) -> list[Operands]:
    """`blocks` with their numbers laid out by `specs`, on Explicit meshes.

    On Auto meshes the compiler does this.
    """
    if AxisType.Explicit not in mesh.axis_types:
        return list(blocks)

    def lay_out(block: Operands, specs: Operands) -> Operands:
        numbers = tuple(
            jax.sharding.reshard(number, NamedSharding(mesh, spec))
            for number, spec in zip(block.numbers, specs.numbers, strict=True)
        )
        return block._replace(numbers=numbers)

    return [lay_out(block, s) for block, s in zip(blocks, specs, strict=True)]


def _run_group(
    call: Call, group: Group, plan: Plan, blocks: Sequence[Operands]
) -> dict[int, Operands]:
    """Computes a group that no exchange moves."""
    stacks, numbers = _stacked(group, blocks, _to_stack)
    if group.recipe == "local":
        turn = not (group.upright or plan.either)
        bytes_each = group.columns * group.rows * jnp.dtype(group.dtypes[-1]).itemsize
        written = group.numbers.written

        def one(arguments: Any) -> Any:
            matrices, own = arguments
            return apply_kernel(call, matrices, own, written, group.dtypes, turn=turn)

        outputs = call.count_of("matrix")
        ys, new = over_stack(one, stacks, numbers, outputs, written, bytes_each)
    else:
        assert plan.placement is not None
        ys, new = apply_sliced(call, group, plan.placement, stacks, numbers)
    return _unstacked(group, blocks, ys, new, _stack_order)


def _run_exchange(
    call: Call, exchange: Exchange, plan: Plan, blocks: Sequence[Operands]
) -> dict[int, Operands]:
    """Computes the groups of an exchange, which travel together."""
    assert plan.placement is not None
    stacked = [_stacked(group, blocks, _to_pieces) for group in exchange.groups]
    inputs = len(stacked[0][0])
    ys, new = apply_at_owners(
        Job(call, inputs, exchange, plan.placement, plan.either),
        [matrices for matrices, _ in stacked],
        [numbers for _, numbers in stacked],
    )
    results: dict[int, Operands] = {}
    for group, y, number in zip(exchange.groups, ys, new, strict=True):
        results.update(_unstacked(group, blocks, y, number, _leaf_order))
    return results


def _stacked(
    group: Group,
    blocks: Sequence[Operands],
    to_rows: Callable[[Group, Member, Any], Array],
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """One array per input tree and per tree of numbers, over a group's matrices."""
    own = [(member, blocks[member.index]) for member in group.members]
    matrices = [tuple(to_rows(group, m, x) for x in block.matrices) for m, block in own]
    numbers = [tuple(_flat_batch(m, c) for c in block.numbers) for m, block in own]

    def join(parts: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
        return tuple(jnp.concatenate(column) for column in zip(*parts, strict=True))

    return join(matrices), join(numbers)


def _unstacked(
    group: Group,
    blocks: Sequence[Operands],
    ys: Sequence[Array],
    numbers: Sequence[Array],
    order: Callable[[Group, Member], tuple[int, ...]],
) -> dict[int, Operands]:
    """The blocks of a group from its stacks, whose axes stand in `order`."""
    results, start = {}, 0
    for member in group.members:
        like, stop = blocks[member.index].matrices[0], start + member.count
        axes = order(group, member)
        inverse = sorted(range(len(axes)), key=axes.__getitem__)
        sizes = tuple(like.shape[axis] for axis in axes)
        batch = tuple(like.shape[axis] for axis in member.view.batch_axes)
        results[member.index] = Operands(
            tuple(
                y[start:stop].reshape(sizes).transpose(inverse).astype(like.dtype)
                for y in ys
            ),
            tuple(n[start:stop].reshape(*batch, *n.shape[1:]) for n in numbers),
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
    first, second = _sides(group, member)
    return (*member.view.batch_axes, *first, *second)


def _sides(group: Group, member: Member) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Leaf axes of the two sides of a matrix, in their order in the stack."""
    rows, columns = member.rows.axes, member.columns.axes
    return (rows, columns) if group.upright else (columns, rows)


def _to_pieces(group: Group, member: Member, x: Array) -> Array:
    """Block → `[count, size]`, each piece in the leaf's own order of axes."""
    return x.transpose(_leaf_order(group, member)).reshape(member.count, -1)


def _leaf_order(group: Group, member: Member) -> tuple[int, ...]:
    del group
    return (*member.view.batch_axes, *sorted(member.view.matrix_axes))


def _flat_batch(member: Member, x: Array) -> Array:
    return x.reshape(-1, *x.shape[len(member.view.batch_axes) :])
