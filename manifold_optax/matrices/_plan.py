"""Which matrices share a stack, and where each stack is computed.

A plan is made of static facts alone (shapes, dtypes, partition specs, a mesh), so it
can be printed and tested without a device.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from manifold_optax._checks import require_one_of
from manifold_optax.matrices._view import block_spec, View

AnyMesh: TypeAlias = Mesh | AbstractMesh
Recipe: TypeAlias = Literal["local", "owned", "split"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Which device computes which matrix; made by `mo.sharding.owned` and `split`."""

    recipe: Recipe
    mesh: AnyMesh
    specs: Mapping[str, PartitionSpec] | None = None

    def __post_init__(self) -> None:
        """Checks the recipe."""
        require_one_of("recipe", self.recipe, ("owned", "split"))


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a matrix: the leaf axes that it merges and the mesh axes of each."""

    axes: tuple[int, ...]
    mesh_axes: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All mesh axes that split this side."""
        return tuple(name for names in self.mesh_axes for name in names)

    def size(self, view: View) -> int:
        """Size of this side of a whole matrix."""
        return math.prod(view.shape[axis] for axis in self.axes)


@dataclasses.dataclass(frozen=True)
class Member:
    """A block of a leaf in a stack, and how its sides lie in it."""

    index: int
    view: View
    short: Side
    long: Side
    spec: PartitionSpec


@dataclasses.dataclass(frozen=True)
class Group:
    """Matrices of one shape, dtype and layout: one stack, one compiled kernel."""

    short: int
    long: int
    dtype: Any
    recipe: Recipe
    exchange_axes: tuple[str, ...]
    members: tuple[Member, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All groups of a tree; `str(plan)` is a table."""

    groups: tuple[Group, ...]
    mesh: AnyMesh | None
    known: bool
    """False where an automatically sharded program is left to the compiler."""

    def __str__(self) -> str:
        """One line per stack: shape, dtype, number of matrices, recipe, leaves."""
        lines = []
        for group in self.groups:
            count = sum(math.prod(m.view.batch_shape) for m in group.members)
            names = ", ".join(dict.fromkeys(m.view.path for m in group.members))
            where = group.recipe if self.known else "unknown"
            if group.exchange_axes:
                where += f" over {', '.join(group.exchange_axes)}"
            lines.append(
                f"{group.long} × {group.short} {group.dtype}: {count} matrices, "
                f"{where}: {names}"
            )
        return "\n".join(lines)


def make_plan(
    blocks: Sequence[tuple[View, Any, PartitionSpec | None]],
    *,
    transposable: bool,
    turn_squares: bool,
    placement: Placement | None,
) -> Plan:
    """Groups the blocks of all leaves.

    Args:
        blocks: view, compute dtype and partition spec of each block; the spec is `None`
            where it is not known.
        transposable: whether both orientations of a matrix share a stack.
        turn_squares: whether a square matrix may be transposed so that the side that
            is split is the long one; not where a vector of the short side is carried,
            which would change its meaning with the placement.
        placement: recipe and mesh; `None`: everything local.

    Raises:
        ValueError: for a sharding that the placement does not cover, naming the leaf.
    """
    mesh = None if placement is None else placement.mesh
    grouped: dict[tuple[Any, ...], list[Member]] = {}
    for index, (view, dtype, spec) in enumerate(blocks):
        padded = PartitionSpec(*block_spec(view, spec or PartitionSpec()))
        turn = turn_squares and placement is not None and placement.recipe == "split"
        short, long = _sides(view, padded, transposable, turn)
        member = Member(index, view, short, long, padded)
        recipe, names = _recipe(member, placement)
        layout = _layout(member) if recipe == "owned" else ()
        sizes = (short.size(view), long.size(view))
        key = (*sizes, str(dtype), recipe, names, layout)
        grouped.setdefault(key, []).append(member)
    groups = tuple(
        Group(short, long, dtype, recipe, names, tuple(members))
        for (short, long, dtype, recipe, names, _), members in grouped.items()
    )
    return Plan(groups, mesh, all(spec is not None for _, _, spec in blocks))


def _sides(
    view: View, spec: PartitionSpec, transposable: bool, turn_squares: bool
) -> tuple[Side, Side]:
    """Short and long side; the fan-in is `short` when square or not transposable."""

    def side(axes: tuple[int, ...]) -> Side:
        return Side(axes, tuple(_names(spec[axis]) for axis in axes))

    inner, outer = side(view.in_axes), side(view.out_axes)
    if not transposable or view.fan_in < view.fan_out:
        return inner, outer
    if view.fan_in > view.fan_out:
        return outer, inner
    return (outer, inner) if turn_squares and inner.names else (inner, outer)


def _recipe(
    member: Member, placement: Placement | None
) -> tuple[Recipe, tuple[str, ...]]:
    sharded = member.short.names + member.long.names
    if placement is None:
        return "local", ()
    path, spec = member.view.path, member.spec
    if PartitionSpec.UNCONSTRAINED in spec:
        raise ValueError(
            f"The leaf {path!r} has spec {spec}; no placement covers an unconstrained "
            "axis. Give the axes that shard it, or None."
        )
    _check_fits(member, placement.mesh)
    if member.view.window is not None and spec[member.view.window[0]] is not None:
        raise ValueError(
            f"The leaf {path!r} with spec {spec} is sharded along the axis on which it "
            "is split into blocks; no placement covers that. Shard another axis."
        )
    if not sharded:
        return "local", ()
    if placement.recipe == "split" and member.short.names:
        raise ValueError(
            f"The leaf {path!r} of shape {member.view.shape} with spec {spec} is "
            "sharded along its short side, which sharding.split does not cover. Use "
            "sharding.owned, or shard the long side."
        )
    mesh = placement.mesh
    ordered = tuple(name for name in mesh.axis_names if name in sharded)
    return placement.recipe, ordered


def _check_fits(member: Member, mesh: AnyMesh) -> None:
    """Raises ValueError for unknown mesh axes and for parts of unequal size."""
    path, spec, shape = member.view.path, member.spec, member.view.shape
    for size, names in zip(shape, map(_names, spec), strict=True):
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


def _layout(member: Member) -> tuple[Any, ...]:
    """What the assembly of a matrix from its shards depends on."""
    return tuple(
        (tuple(member.view.shape[axis] for axis in side.axes), side.mesh_axes)
        for side in (member.short, member.long)
    )


def _names(entry: Any) -> tuple[str, ...]:
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def explicit_placement(leaves: Sequence[Any]) -> Placement | None:
    """`owned` over the mesh of the first leaf that carries an Explicit mesh, if any."""
    for leaf in leaves:
        mesh = jax.typeof(leaf).sharding.mesh
        if any(kind == jax.sharding.AxisType.Explicit for kind in mesh.axis_types):
            return Placement("owned", mesh)
    return None
