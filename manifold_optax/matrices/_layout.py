"""Where the arrays of a tree lie: from placements and from the types of the arrays."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from manifold_optax.matrices._plan import AnyMesh, check_placement, Placement
from manifold_optax.matrices._view import block_spec, folded_spec, names_of, View


def resolved(placement: Placement | None, arrays: Sequence[Any]) -> Placement | None:
    """The placement given, or what the arrays' types say; none inside `shard_map`."""
    check_placement(placement)
    kinds = jax.sharding.get_abstract_mesh().axis_types
    inside = jax.sharding.AxisType.Manual in kinds
    if inside and placement is not None:
        raise ValueError(
            "A placement was given inside shard_map or pmap, where each device already "
            "computes for itself; leave placement=None there."
        )
    if inside or placement is not None:
        return placement
    return _explicit_placement(arrays)


def spec_of(
    view: View, arrays: Sequence[Any], placement: Placement | None
) -> PartitionSpec | None:
    """Partition spec of a block; `None` where only the compiler will know it."""
    path = view.path
    sharding, *others = (jax.typeof(x).sharding for x in arrays)
    if placement is not None:
        _check_mesh(sharding.mesh, placement.mesh, path)
    if placement is not None and placement.specs is not None:
        if path not in placement.specs:
            known = ", ".join(sorted(placement.specs))
            raise ValueError(f"The placement has no spec for {path!r}; it has {known}.")
        spec = PartitionSpec(*placement.specs[path])
        return _checked_spec(
            folded_spec(view, spec, placement.mesh.shape), sharding, view
        )
    if any(other.spec != sharding.spec for other in others):
        raise ValueError(
            f"The update and the parameter at {path!r} are sharded differently: "
            f"{sharding.spec} and {[other.spec for other in others]}. Reshard one."
        )
    automatic = jax.sharding.AxisType.Auto in sharding.mesh.axis_types
    if automatic and placement is not None:
        raise ValueError(
            f"There are no specs, and {path!r} lies on a mesh with Auto axes, whose "
            "layout is not visible: give placement=mo.sharding.owned(mesh, specs) with "
            "the partition specs of the parameters."
        )
    return None if automatic else sharding.spec


def _check_mesh(mesh: Any, placed: AnyMesh, path: str) -> None:
    """Raises ValueError where an array lies on another mesh than the placement's."""
    same = (mesh.shape, mesh.axis_types) == (placed.shape, placed.axis_types)
    explicit = jax.sharding.AxisType.Explicit in (*mesh.axis_types, *placed.axis_types)
    if not same and (explicit or not mesh.empty):
        raise ValueError(
            f"The array at {path!r} lies on the mesh {mesh}, the placement is for "
            f"{placed}; make the placement with the mesh of the arrays, or put them on "
            "its mesh."
        )


def _checked_spec(spec: PartitionSpec, sharding: Any, view: View) -> PartitionSpec:
    """`spec`, which must be that of the array where its type says one."""
    visible = [
        name
        for name, kind in zip(
            sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True
        )
        if kind == jax.sharding.AxisType.Explicit
    ]

    def seen(spec: PartitionSpec) -> list[tuple[str, ...]]:
        entries = (names_of(entry) for entry in block_spec(view, spec))
        return [tuple(n for n in names if n in visible) for names in entries]

    if visible and seen(spec) != seen(sharding.spec):
        raise ValueError(
            f"The array at {view.path!r} has the spec {sharding.spec}, the placement "
            f"gives {spec}; on Explicit meshes leave the specs out."
        )
    return spec


def _explicit_placement(leaves: Sequence[Any]) -> Placement | None:
    """`owned` over the mesh of the first leaf that carries an Explicit mesh, if any."""
    for leaf in leaves:
        mesh = jax.typeof(leaf).sharding.mesh
        if any(kind == jax.sharding.AxisType.Explicit for kind in mesh.axis_types):
            return Placement("owned", mesh)
    return None
