"""The placements, made from a mesh and partition specs."""

from typing import Any, Literal

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from manifold_optax._typing import ArrayTree
from manifold_optax.matrices import Placement
from manifold_optax.trees import leaf_path


def owned(
    mesh: Mesh | AbstractMesh,
    specs: ArrayTree = None,
    *,
    wire: Any = None,
    replicas: Literal["share", "repeat"] = "share",
    chunks: int | None = 1,
) -> Placement:
    """Computes every matrix whole on one device, its owner.

    All stacks travel together: one all-to-all to the owners and one back. Matrices are
    dealt to owners by cost, so that devices compute equally much if there are enough
    matrices. A leaf that is sharded along batch axes alone (experts) is computed where
    it lies, without communication.

    Args:
        mesh: the mesh over which the parameters are sharded.
        specs: the sharded parameters themselves, or the `PartitionSpec` (or
            `NamedSharding`) of every matrix, as a tree like the parameters or a
            dictionary by path; looked up by path. `None`: read from the arrays at
            update, which works on Explicit meshes.
        wire: `jnp.bfloat16`: matrices of wider dtypes travel in it. That halves the
            bytes and rounds what arrives by up to 4e-3 relative. A retraction ignores
            it. `None`: matrices travel in their own dtypes.
        replicas: what devices do that hold the same matrices (data parallelism).
            `"share"`: each owns some of them, and one all-gather brings the results to
            all. `"repeat"`: all compute everything, without that all-gather.
        chunks: parts in which the matrices travel, each by its own two all-to-alls, so
            that one part is under way while another is multiplied. There are fewer
            where so many would send more bytes, and at most as many as an owner has
            matrices; the plan prints the number. `None`: the number that takes least
            time by the FLOPs and bytes of the plan.

    Returns:
        A placement.

    Raises:
        TypeError: if `mesh` is not a mesh, or if `specs` holds anything but shardings.
        ValueError: if `replicas` is unknown, if `wire` lacks the range of float32, or
            if `chunks` is below 1; at update, if an array lies on another mesh or has a
            sharding that is not covered. The message names the leaf.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> tx = muon(0.02, placement=owned(mesh, {"w": jax.P("data", None)}))
    """
    return Placement("owned", mesh, _by_path(specs), wire, replicas, chunks)


def sliced(
    mesh: Mesh | AbstractMesh, specs: ArrayTree = None, *, wire: Any = None
) -> Placement:
    """Keeps the long side of every matrix cut, and sums over it by all-reduces.

    Use it for matrices that are much longer than the mesh is wide, and for those that
    are too large for one device. An all-reduce sends an array of short × short; five
    steps of Newton–Schulz take one. If mesh axes cut the short side, an all-to-all
    first moves that cut to the long side, and another moves it back; the plan calls
    this cooperative. Devices that hold the same parts repeat the work.

    Sums in parts round differently. Where the direction is not unique, because the
    gradient is rank-deficient or nearly so, the update may be another one of the same
    value; see `docs/sharded_training.md`.

    Args:
        mesh: the mesh over which the parameters are sharded.
        specs: as for `owned`.
        wire: as for `owned`; it narrows those all-to-alls alone.

    Returns:
        A placement.

    Raises:
        ValueError, TypeError: as for `owned`; at update, if a long side cannot be cut
            into equal parts.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> tx = muon(0.02, placement=sliced(mesh, {"w": jax.P("data", None)}))
    """
    return Placement("sliced", mesh, _by_path(specs), wire)


def auto(
    mesh: Mesh | AbstractMesh,
    specs: ArrayTree = None,
    *,
    wire: Any = None,
    replicas: Literal["share", "repeat"] = "share",
    chunks: int | None = None,
) -> Placement:
    """Chooses for every stack the cheaper one of `owned` and `sliced`.

    The choice weighs FLOPs against bytes sent; the plan prints both. Matrices much
    longer than the mesh is wide are sliced, and so are a few large ones that would
    leave most devices idle; all others are owned.

    Args:
        mesh: the mesh over which the parameters are sharded.
        specs: as for `owned`.
        wire: as for `owned`.
        replicas: as for `owned`, for the stacks that are owned.
        chunks: as for `owned`.

    Returns:
        A placement.

    Raises:
        ValueError, TypeError: as for `owned`.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> tx = muon(0.02, placement=auto(mesh, {"w": jax.P("data", None)}))
    """
    return Placement("auto", mesh, _by_path(specs), wire, replicas, chunks)


def _by_path(specs: ArrayTree) -> dict[str, PartitionSpec] | None:
    if specs is None:
        return None

    def is_spec(node: Any) -> bool:
        return isinstance(node, PartitionSpec | NamedSharding)

    if is_spec(specs) or isinstance(specs, str | Mesh | AbstractMesh):
        raise TypeError(
            "specs must be a tree like the parameters, of PartitionSpecs, "
            "NamedShardings or sharded arrays, or a dictionary of them by path; got "
            f"{specs!r}."
        )
    paired, _ = jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)
    found: dict[str, PartitionSpec] = {}
    for keys, leaf in paired:
        spec = getattr(leaf, "sharding", leaf)
        if isinstance(spec, NamedSharding):
            spec = spec.spec
        if not isinstance(spec, PartitionSpec):
            raise TypeError(
                "specs must hold PartitionSpecs, NamedShardings or arrays that have "
                f"one, got {spec!r} at {leaf_path(keys)!r}."
            )
        found[leaf_path(keys)] = spec
    return found
