"""Fused leaves that are cut along the axis of their blocks: the cut moves elsewhere.

A device that holds a part of that axis may hold halves of two blocks. Where whole
periods of blocks lie on each device, the view folds them into a batch, and nothing
moves. Otherwise one all-to-all for all such leaves cuts another axis instead, and one
moves the results back.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from manifold_optax._typing import ArrayTree
from manifold_optax.matrices._blocks import Flat
from manifold_optax.matrices._plan import AnyMesh, Placement, Plan
from manifold_optax.matrices._table import amount
from manifold_optax.matrices._view import leaf_axis, names_of, View
from manifold_optax.matrices._wire import all_to_all


class Move(NamedTuple):
    """The cut of a leaf along `source`, moved to `target`."""

    path: str
    mesh: AnyMesh
    names: tuple[str, ...]
    source: int
    target: int
    old: PartitionSpec
    new: PartitionSpec

    @property
    def devices(self) -> int:
        """Number of parts."""
        return math.prod(self.mesh.shape[name] for name in self.names)


Moves = Mapping[int, Move]
"""By the position of the leaf in the tree."""


def moves_of(flat: Flat, views: ArrayTree, placement: Placement | None) -> Moves:
    """The leaves whose cut must move, and where to.

    A leaf without an axis to move to is left out: the plan raises for it.
    """
    if placement is None:
        return {}
    viewed = flat.treedef.flatten_up_to(views)
    found = {}
    for index, arrays in flat.arrays.items():
        (first, *_), path = viewed[index].blocks, flat.paths[index]
        spec = _spec(arrays, path, placement)
        if first.window is None or spec is None or len(spec) > arrays[0].ndim:
            continue
        move = _move(first, path, arrays[0].shape, spec, placement)
        if move is not None:
            found[index] = move
    return found


def _spec(
    arrays: Sequence[Any], path: str, placement: Placement
) -> PartitionSpec | None:
    if placement.specs is not None:
        spec = placement.specs.get(path)
        return None if spec is None else PartitionSpec(*spec)
    specs = [jax.typeof(array).sharding.spec for array in arrays]
    return specs[0] if all(spec == specs[0] for spec in specs) else None


def _move(
    view: View, path: str, shape: Sequence[int], spec: PartitionSpec, place: Placement
) -> Move | None:
    mesh, source = place.mesh, leaf_axis(view)
    cuts = [names_of(entry) for entry in (*spec, *(None,) * (len(shape) - len(spec)))]
    if any(name not in mesh.shape for names in cuts for name in names):
        return None

    def parts(names: Sequence[str]) -> int:
        return math.prod(mesh.shape[name] for name in names)

    devices = parts(cuts[source])
    if devices == 1 or view.repeats % devices == 0 or shape[source] % devices:
        return None
    idle = parts(mesh.axis_names) > math.prod(map(parts, cuts))
    batch = view.leaf_batch_axes
    others = [a for a in range(len(shape)) if a != source and a not in batch]
    # Cut along a batch axis the matrices are whole; but copies of them on other devices
    # would repeat the work, which owners share.
    share = idle and place.replicas == "share"
    for target in (*others, *batch) if share else (*batch, *others):
        if shape[target] % (parts(cuts[target]) * devices) == 0:
            entries: list[Any] = list(cuts)
            entries[target] = (*cuts[target], *cuts[source])
            entries[source] = ()
            new = PartitionSpec(*(_entry(names) for names in entries))
            return Move(path, mesh, cuts[source], source, target, spec, new)
    return None


def _entry(names: tuple[str, ...]) -> Any:
    """An entry of a spec, as it is written by hand."""
    return (names[0] if len(names) == 1 else names) if names else None


def placed_for(placement: Placement | None, moves: Moves) -> Placement | None:
    """The placement with the specs after the moves."""
    if placement is None or placement.specs is None or not moves:
        return placement
    moved = {move.path: move.new for move in moves.values()}
    return dataclasses.replace(placement, specs={**placement.specs, **moved})


def moved(flat: Flat, moves: Moves) -> Flat:
    """All trees' arrays of the leaves that move, cut along their new axes."""
    if not moves:
        return flat
    arrays = [(move, x) for index, move in moves.items() for x in flat.arrays[index]]
    found = iter(_carry(arrays, back=False))
    new = {index: tuple(next(found) for _ in flat.arrays[index]) for index in moves}
    return flat._replace(arrays={**flat.arrays, **new})


def moved_back(leaves: dict[int, Array], moves: Moves) -> dict[int, Array]:
    """Results at the positions of `moves`, cut as their leaves came."""
    arrays = [(move, leaves[index]) for index, move in moves.items()]
    return dict(zip(moves, _carry(arrays, back=True), strict=True))


def as_shapes(flat: Flat) -> Flat:
    """The same without data, for a plan."""

    def shape_of(x: Any) -> jax.ShapeDtypeStruct:
        sharding = jax.typeof(x).sharding
        where = None if sharding.mesh.empty else sharding
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    shapes = {i: tuple(map(shape_of, own)) for i, own in flat.arrays.items()}
    return flat._replace(arrays=shapes)


def with_moves(plan: Plan, flat: Flat, moves: Moves) -> Plan:
    """The plan, whose table names what moves besides."""
    lines = [plan.table]
    for index, move in moves.items():
        leaf = flat.arrays[index][0]
        held = math.prod(
            move.mesh.shape[name] for entry in move.old for name in names_of(entry)
        )
        sent = 2 * leaf.size * leaf.dtype.itemsize / held * (1 - 1 / move.devices)
        lines.append(
            f"{move.path} is cut along its blocks: {amount(sent)} bytes more move the "
            f"cut to axis {move.target} and back"
        )
    return dataclasses.replace(plan, table="\n".join(lines))


def _carry(arrays: Sequence[tuple[Move, Any]], *, back: bool) -> list[Any]:
    """Each array with its cut moved, those of one dtype and cut together."""
    together: dict[Any, list[int]] = {}
    found: list[Any] = [x for _, x in arrays]
    for position, (move, x) in enumerate(arrays):
        if isinstance(x, jax.ShapeDtypeStruct):
            sharding = NamedSharding(move.mesh, move.old if back else move.new)
            keeps = x.sharding is not None
            found[position] = x.update(sharding=sharding) if keeps else x
            continue
        together.setdefault((move.names, x.dtype), []).append(position)
    for positions in together.values():
        own = [arrays[position][0] for position in positions]
        sent = [arrays[position][1] for position in positions]
        for position, x in zip(positions, _together(own, sent, back), strict=True):
            found[position] = x
    return found


def _together(moves: Sequence[Move], arrays: Sequence[Array], back: bool) -> Any:
    """One all-to-all for arrays of one dtype that the same mesh axes cut."""
    devices, names = moves[0].devices, moves[0].names
    ways = [(m.target, m.source)[:: -1 if back else 1] for m in moves]

    def body(parts: list[Array]) -> list[Array]:
        split = [
            _split(x, axis, devices) for x, (axis, _) in zip(parts, ways, strict=True)
        ]
        rows = [x.reshape(devices, -1) for x in split]
        sizes = [row.shape[1] for row in rows]
        received = all_to_all(jnp.concatenate(rows, axis=1), names)
        stops = [sum(sizes[: k + 1]) for k in range(len(sizes) - 1)]
        return [
            _merge(row.reshape(x.shape), axis)
            for row, x, (_, axis) in zip(
                jnp.split(received, stops, axis=1), split, ways, strict=True
            )
        ]

    specs = [[m.old for m in moves], [m.new for m in moves]][:: -1 if back else 1]
    run = jax.shard_map(
        body,
        mesh=moves[0].mesh,
        in_specs=(specs[0],),
        out_specs=specs[1],
        check_vma=False,
    )
    return run(list(arrays))


def _split(x: Array, axis: int, parts: int) -> Array:
    """`x` in equal parts along `axis`, stacked."""
    shape = x.shape
    split = x.reshape(*shape[:axis], parts, shape[axis] // parts, *shape[axis + 1 :])
    return jnp.moveaxis(split, axis, 0)


def _merge(parts: Array, axis: int) -> Array:
    """Stacked parts joined along `axis`."""
    moved = jnp.moveaxis(parts, 0, axis)
    shape = moved.shape
    return moved.reshape(*shape[:axis], -1, *shape[axis + 2 :])
