"""The plan of the blocks of a tree: which share a stack, and by which recipe.

Recipes are

- **local**: every device computes the matrices that it holds; no communication;
- **owned**: each matrix is computed whole on one device, to which its pieces travel by
  an all-to-all, and back by another; devices that hold the same matrices share them out
  and gather the results;
- **sliced**: the rows stay cut, sums over them are all-reduces of columns × columns;
- **cooperative**: as sliced, after an all-to-all has moved the cut to the rows.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import PartitionSpec

from manifold_optax._typing import Flops
from manifold_optax.linalg import newton_schulz_flops
from manifold_optax.matrices import _cost
from manifold_optax.matrices._deal import Deal, deal
from manifold_optax.matrices._parts import parts_of
from manifold_optax.matrices._plan import (
    AnyMesh,
    Exchange,
    Group,
    Member,
    NO_NUMBERS,
    Numbers,
    Orientation,
    Placement,
    Plan,
    Recipe,
    Side,
)
from manifold_optax.matrices._table import table_of
from manifold_optax.matrices._view import block_spec, names_of, View


class Facts(NamedTuple):
    """The static facts of a block of a leaf, from which a plan is made."""

    view: View
    dtypes: tuple[str, ...]
    """Those of its leaf in each input tree, then that of the computation."""
    spec: PartitionSpec | None
    """`None` where only the compiler will know it."""
    numbers: Numbers = NO_NUMBERS


def make_plan(
    blocks: Sequence[Facts],
    *,
    orientation: Orientation,
    placement: Placement | None,
    flops: Flops | None = None,
) -> Plan:
    """Groups the blocks of all leaves.

    Args:
        blocks: the blocks, in their order in the tree.
        orientation: how the kernel sees a matrix; but for `"fixed"` both orientations
            of a shape share a stack.
        placement: recipe and mesh; `None`: everything local.
        flops: what the kernel costs; `None`: five steps of Newton–Schulz.

    Raises:
        ValueError: for a sharding that the placement does not cover, naming the leaf.
    """
    # A square matrix is turned so that the side that is cut is its rows; not under a
    # vector of its columns, which would change its meaning with the placement.
    turn = placement is not None and placement.recipe != "owned"
    turn &= all(block.numbers.scalar for block in blocks)
    grouped: dict[tuple[Group, Any], list[Member]] = {}
    for index, block in enumerate(blocks):
        member = _member(index, block, orientation != "fixed", turn, placement)
        recipe, shards, replicas = _recipe(member, placement)
        rows, columns = member.rows.size(block.view), member.columns.size(block.view)
        short, long = sorted((rows, columns))
        cost = (flops or newton_schulz_flops)(short, long)
        empty = Group(
            *(rows, columns, block.dtypes, recipe, shards, replicas, ()),
            flops=cost,
            numbers=block.numbers,
        )
        moved = _moved(member) if recipe == "cooperative" else ()
        grouped.setdefault((empty, moved), []).append(member)
    groups = [
        dataclasses.replace(empty, members=tuple(members))
        for (empty, _), members in grouped.items()
    ]
    if placement is not None and placement.recipe == "auto":
        groups = [better for g in groups for better in _better(g, placement)]
    exchanges, loads = _exchanges(groups, placement)
    rest = tuple(group for group in groups if group.recipe != "owned")
    known = all(block.spec is not None for block in blocks)
    table = table_of(rest, exchanges, placement, known, int(loads.max(initial=0)))
    either = orientation == "either"
    return Plan(rest, exchanges, placement, known, either, table)


def _member(
    index: int,
    block: Facts,
    transposable: bool,
    turn_squares: bool,
    placement: Placement | None,
) -> Member:
    view = block.view
    spec = PartitionSpec(*block_spec(view, block.spec or PartitionSpec()))
    if placement is not None:
        _check(view, spec, placement)
    names = [_names(entry, placement) for entry in spec]
    rows, columns = _sides(view, names, transposable, turn_squares)
    batch = tuple(name for axis in view.batch_axes for name in names[axis])
    count = math.prod(view.batch_shape) // _product(batch, placement)
    return Member(index, view, rows, columns, spec, batch, count)


def _sides(
    view: View,
    names: Sequence[tuple[str, ...]],
    transposable: bool,
    turn_squares: bool,
) -> tuple[Side, Side]:
    """Rows and columns as the kernel sees them.

    The columns are the smaller side; of a square matrix, or without transposition, the
    fan-in. A square matrix may be turned, so that the side that is cut is its rows.
    """

    def side(axes: tuple[int, ...]) -> Side:
        return Side(axes, tuple(names[axis] for axis in axes))

    inner, outer = side(view.in_axes), side(view.out_axes)
    if not transposable or view.fan_in < view.fan_out:
        return outer, inner
    if view.fan_in > view.fan_out:
        return inner, outer
    return (inner, outer) if turn_squares and inner.names else (outer, inner)


def _recipe(
    member: Member, placement: Placement | None
) -> tuple[Recipe, tuple[str, ...], tuple[str, ...]]:
    """Recipe, mesh axes that cut the matrices, mesh axes whose devices hold the same.

    `auto` is `owned` here, and looked at again when the groups are known.
    """
    if placement is None:
        return "local", (), ()
    cutting = {*member.columns.names, *member.rows.names}
    mesh = placement.mesh
    shards = tuple(n for n in mesh.axis_names if n in cutting)
    idle = tuple(
        n
        for n in mesh.axis_names
        if n not in cutting and n not in member.batch_names and mesh.shape[n] > 1
    )
    if placement.recipe == "sliced" and shards:
        recipe: Recipe = "cooperative" if member.columns.names else "sliced"
        _check_rows(member, placement)
        return recipe, shards, idle
    if not shards and (member.batch_names or placement.recipe == "sliced"):
        return "local", (), idle
    shared = idle if placement.replicas == "share" else ()
    if not shards and not shared:
        return "local", (), idle
    return "owned", shards, shared


def _better(group: Group, placement: Placement) -> list[Group]:
    """The group itself, or what `auto` makes of it: one or several sliced groups."""
    if group.recipe != "owned" or not group.shard_axes:
        return [group]
    if not all(_rows_fit(member, placement) for member in group.members):
        return [group]
    cuts: dict[Any, list[Member]] = {}
    for member in group.members:
        cut = _moved(member) if member.columns.names else ()
        cuts.setdefault(cut, []).append(member)
    sliced = [
        dataclasses.replace(
            group,
            recipe="cooperative" if cut else "sliced",
            members=tuple(members),
        )
        for cut, members in cuts.items()
    ]
    (exchange,), _ = _exchanges([group], placement)
    if _cost.prefers_sliced(sliced, exchange, placement):
        return sliced
    return [group]


def _moved(member: Member) -> tuple[Any, ...]:
    """The cut of the columns: one all-to-all moves it for all that share it."""
    sizes = tuple(member.view.shape[axis] for axis in member.columns.axes)
    return (sizes, member.columns.mesh_axes)


def _exchanges(
    groups: Sequence[Group], placement: Placement | None
) -> tuple[tuple[Exchange, ...], np.ndarray]:
    """Owned groups that the same devices hold travel together, by wire dtype.

    Also returns the FLOPs of each device of the mesh, at its owners' work.
    """
    if placement is None:
        return (), np.zeros(0)
    together: dict[Any, list[Group]] = {}
    for group in groups:
        if group.recipe == "owned":
            wires = tuple(placement.wire_dtype(d) for d in group.dtypes[:-1])
            key = (group.shard_axes, group.replica_axes, wires)
            together.setdefault(key, []).append(group)
    loads = np.zeros(tuple(placement.mesh.shape.values()))
    exchanges = []
    for (shards, replicas, _), same in together.items():
        found, loads = _deal(same, (*replicas, *shards), placement.mesh, loads)
        whole = Exchange(tuple(same), found, shards, replicas, (found,))
        most = placement.chunks or _cost.best_chunks(whole, placement)
        parts = parts_of(found, whole.sizes, most)
        exchanges.append(dataclasses.replace(whole, parts=parts))
    return tuple(exchanges), loads


def _deal(
    groups: Sequence[Group],
    names: tuple[str, ...],
    mesh: AnyMesh,
    loads: np.ndarray,
) -> tuple[Deal, np.ndarray]:
    """Deals to the devices along `names`, given the loads of all, and adds to these."""
    axes = [mesh.axis_names.index(name) for name in names]
    front = tuple(range(len(axes)))
    # An owner stands for all devices that differ from it along other mesh axes.
    owners = np.moveaxis(loads, axes, front)
    sizes = owners.shape[: len(axes)]
    start = owners.reshape(math.prod(sizes), -1).max(axis=1)
    found, after = deal(
        [group.count for group in groups],
        [group.flops for group in groups],
        [group.columns * group.rows for group in groups],
        start.tolist(),
    )
    rest = (1,) * (owners.ndim - len(axes))
    added = (np.array(after) - start).reshape(*sizes, *rest)
    return found, np.moveaxis(owners + added, front, axes)


def _check(view: View, spec: PartitionSpec, placement: Placement) -> None:
    """Raises ValueError for a spec that no placement covers."""
    path, shape, mesh = view.path, view.shape, placement.mesh
    if PartitionSpec.UNCONSTRAINED in spec:
        raise ValueError(
            f"The leaf {path!r} has spec {spec}; no placement covers an unconstrained "
            "axis. Give the axes that shard it, or None."
        )
    fused = () if view.window is None else names_of(spec[view.window[0]])
    if any(mesh.shape.get(name, 1) > 1 for name in fused):
        raise ValueError(
            f"The leaf {path!r} with spec {spec} is sharded along the axis on which it "
            "is split into blocks, and no other axis of it can be cut into as many "
            "equal parts. Shard another axis, or split by a pattern of which every "
            "device holds whole periods."
        )
    for size, entry in zip(shape, spec, strict=True):
        names = names_of(entry)
        unknown = [name for name in names if name not in mesh.axis_names]
        if unknown:
            raise ValueError(
                f"The leaf {path!r} with spec {spec} names the mesh axes {unknown}, "
                f"but the mesh of the placement has {mesh.axis_names}."
            )
        if size % math.prod(mesh.shape[name] for name in names):
            raise ValueError(
                f"The leaf {path!r} of shape {shape} with spec {spec} cannot be cut "
                f"into equal parts on the mesh {dict(mesh.shape)}; pad it, or leave "
                "the axis unsharded."
            )


def _check_rows(member: Member, placement: Placement) -> None:
    if not _rows_fit(member, placement):
        rows, columns = member.rows.size(member.view), member.columns.size(member.view)
        raise ValueError(
            f"The leaf {member.view.path!r} of shape {member.view.shape} with spec "
            f"{member.spec} has matrices of {rows} × {columns}, whose {rows} rows "
            "sharding.sliced cannot cut into equal parts for all devices that cut a "
            "matrix. Use sharding.owned, or shard the rows alone."
        )


def _rows_fit(member: Member, placement: Placement) -> bool:
    parts = _product((*member.columns.names, *member.rows.names), placement)
    return member.rows.size(member.view) % parts == 0


def _names(entry: Any, placement: Placement | None) -> tuple[str, ...]:
    """Mesh axes of an entry of a spec, without those of size 1, which cut nothing."""
    if placement is None:
        return ()
    return tuple(n for n in names_of(entry) if placement.mesh.shape[n] > 1)


def _product(names: Sequence[str], placement: Placement | None) -> int:
    if placement is None:
        return 1
    return math.prod(placement.mesh.shape[name] for name in names)
