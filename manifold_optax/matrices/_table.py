"""A plan as a table: what each device computes and sends."""

import math
from collections.abc import Sequence

from manifold_optax.matrices import _cost
from manifold_optax.matrices._plan import Exchange, Group, Placement

_LEAVES = 4
"""Leaves of a stack that are named; the others are counted."""

_HEADER = ("stack", "matrices", "recipe", "FLOPs", "bytes sent", "leaves")


def table_of(
    groups: Sequence[Group],
    exchanges: Sequence[Exchange],
    placement: Placement | None,
    known: bool,
    owned_flops: int,
) -> str:
    """The table of a plan: per stack and device, and in all for the busiest one.

    `owned_flops` are those of the busiest owner.
    """
    if not groups and not exchanges:
        return ""
    rows = [_row(group, placement, known) for group in groups]
    flops = owned_flops + sum(_flops(group, placement) for group in groups)
    sent = sum(_bytes(group, placement) for group in groups)
    wasted = 0.0
    for exchange in exchanges:
        assert placement is not None
        rows += [_owned_row(g, exchange, placement) for g in exchange.groups]
        alone = sum(_cost.owned_bytes(exchange, placement, g) for g in exchange.groups)
        padded = _cost.owned_bytes(exchange, placement)
        sent, wasted = sent + padded, wasted + padded - alone
    table = [_HEADER, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(_HEADER) - 1)]
    lines = [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]])
        for row in table
    ]
    total = f"busiest device: {amount(flops)} FLOPs, {amount(sent)} bytes sent"
    if wasted > 0:
        total += f", {amount(wasted)} of them padding"
    parts = [len(exchange.parts) for exchange in exchanges]
    if max(parts, default=1) > 1:
        total += f", in {' + '.join(map(str, parts))} parts"
    if not known:
        total = "unknown: no specs on a mesh with Auto axes; left to the compiler"
    return "\n".join([*lines, total])


def _row(group: Group, placement: Placement | None, known: bool) -> tuple[str, ...]:
    recipe: str = group.recipe if known else "unknown"
    if group.shard_axes:
        recipe += f" over {', '.join(group.shard_axes)}"
    if placement is not None and group.replica_axes:
        times = math.prod(placement.mesh.shape[name] for name in group.replica_axes)
        recipe += f", repeated {times} times over {', '.join(group.replica_axes)}"
    return _cells(group, recipe, _flops(group, placement), _bytes(group, placement))


def _owned_row(
    group: Group, exchange: Exchange, placement: Placement
) -> tuple[str, ...]:
    index = exchange.groups.index(group)
    counts = [c.counts[index] for c in exchange.deal.classes]
    few, many = min(counts), max(counts)
    each = str(many) if few == many else f"{few} to {many}"
    recipe = f"owned, {each} each"
    if group.shard_axes:
        recipe += f", over {', '.join(group.shard_axes)}"
    if group.replica_axes:
        recipe += f", shared over {', '.join(group.replica_axes)}"
    sent = _cost.owned_bytes(exchange, placement, group)
    return _cells(group, recipe, many * group.flops, sent)


def _cells(group: Group, recipe: str, flops: int, sent: float) -> tuple[str, ...]:
    names = list(dict.fromkeys(member.view.path for member in group.members))
    leaves = ", ".join(names[:_LEAVES])
    if len(names) > _LEAVES:
        leaves += f" and {len(names) - _LEAVES} more"
    return (
        f"{group.rows} × {group.columns} {group.dtypes[0]}",
        str(sum(math.prod(member.view.batch_shape) for member in group.members)),
        recipe,
        amount(flops),
        amount(sent),
        leaves,
    )


def amount(number: int | float) -> str:
    """Three digits and a decimal prefix."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g}{prefix}"
        number /= 1000
    return f"{number:.3g}T"


def _flops(group: Group, placement: Placement | None) -> int:
    if placement is None or group.recipe == "local":
        return group.count * group.flops
    return _cost.sliced_flops(group, placement.mesh)


def _bytes(group: Group, placement: Placement | None) -> float:
    if placement is None or group.recipe == "local":
        return 0.0
    return _cost.sliced_bytes(group, placement)
