"""The placements, made from a mesh and partition specs."""

from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from manifold_optax._typing import ArrayTree
from manifold_optax.matrices import leaf_path, Placement


def owned(mesh: Mesh | AbstractMesh, specs: ArrayTree = None) -> Placement:
    """Every matrix is computed whole on one device: two all-to-alls per stack.

    Batch axes stay where they are. A matrix that no mesh axis cuts is computed where it
    lies, without communication.

    Args:
        mesh: the mesh over which the parameters are sharded.
        specs: `PartitionSpec` (or `NamedSharding`) of every matrix, as a tree like the
            parameters or a dictionary by path; looked up by path. `None`: read from the
            arrays, which works on Explicit meshes.

    Returns:
        A placement.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> tx = muon(0.02, placement=owned(mesh, {"w": jax.P("data", None)}))
    """
    return Placement("owned", mesh, _by_path(specs))


def split(mesh: Mesh | AbstractMesh, specs: ArrayTree = None) -> Placement:
    """The long side of every matrix stays sharded: all-reduces of the short side.

    For matrices that are much longer than the mesh is wide, and for those that are too
    large for one device. The short side must not be sharded.

    Args:
        mesh: the mesh over which the parameters are sharded.
        specs: as for `owned`.

    Returns:
        A placement.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> tx = muon(0.02, placement=split(mesh, {"w": jax.P("data", None)}))
    """
    return Placement("split", mesh, _by_path(specs))


def _by_path(specs: ArrayTree) -> dict[str, PartitionSpec] | None:
    if specs is None:
        return None

    def is_spec(node: Any) -> bool:
        return isinstance(node, PartitionSpec | NamedSharding)

    paired, _ = jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)
    found: dict[str, PartitionSpec] = {}
    for keys, spec in paired:
        if not is_spec(spec):
            raise TypeError(
                f"specs must hold PartitionSpecs or NamedShardings, got {spec!r} at "
                f"{leaf_path(keys)!r}."
            )
        found[leaf_path(keys)] = spec.spec if isinstance(spec, NamedSharding) else spec
    return found
