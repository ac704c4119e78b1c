"""Where the arrays of an optimizer's state lie, from where the parameters lie."""

from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from manifold_optax._checks import require_instance
from manifold_optax._typing import ArrayTree
from manifold_optax.matrices._plan import check_mesh
from manifold_optax.trees import leaf_path


def state_shardings(
    tx: optax.GradientTransformation, params: ArrayTree, *, mesh: Mesh | None = None
) -> ArrayTree:
    """Returns the shardings of the state of `tx.init(params)`, without making it.

    An average lies as its parameter does. Numbers per matrix lie along the batch axes.
    Everything else, such as a count, is replicated. Give the result to the compiler,
    which then never builds a whole average on one device:

        jax.jit(tx.init, out_shardings=state_shardings(tx, params))(params)

    The layouts are read from an abstract run of `tx.init` on a mesh with Explicit axes,
    where JAX carries them from array to array; `mesh` itself may have Auto axes. A leaf
    that is not derived from a parameter gets the layout of the parameter whose shape it
    has and whose path its own path ends in, if there is one.

    Args:
        tx: the transformation. Its `init` must run with Explicit axes; one that only
            makes zeros and copies does.
        params: tree of arrays with `NamedSharding`s, or of `jax.ShapeDtypeStruct`s with
            them. `None` and `optax.MaskedNode` pass through.
        mesh: the mesh of the state. `None`: that of the parameters.

    Returns:
        A tree of `NamedSharding`s of the structure of `tx.init(params)`.

    Raises:
        TypeError: if `mesh` is not a mesh.
        ValueError: if the parameters are not laid out over one mesh; names the leaf.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> layout = jax.NamedSharding(mesh, jax.P("data", None))
        >>> params = {"w": jax.device_put(jnp.eye(4), layout)}
        >>> shardings = state_shardings(optax.trace(0.9), params)
        >>> shardings.trace["w"].spec == jax.P("data", None)
        True
        >>> state = jax.jit(optax.trace(0.9).init, out_shardings=shardings)(params)
    """
    require_instance("tx", tx, optax.GradientTransformation)
    if mesh is not None:
        check_mesh(mesh)
    paired, treedef = jax.tree_util.tree_flatten_with_path(params)
    mesh, specs = _mesh(paired, mesh), [leaf.sharding.spec for _, leaf in paired]
    explicit = AbstractMesh(
        mesh.axis_sizes,
        mesh.axis_names,
        axis_types=(AxisType.Explicit,) * len(mesh.axis_names),
    )
    abstract = [
        jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(explicit, spec)
        )
        for (_, leaf), spec in zip(paired, specs, strict=True)
    ]
    with jax.sharding.use_abstract_mesh(explicit):
        state = jax.eval_shape(tx.init, treedef.unflatten(abstract))
    known = [
        (keys, leaf.shape, spec)
        for (keys, leaf), spec in zip(paired, specs, strict=True)
    ]

    def of_leaf(keys: Any, leaf: Any) -> NamedSharding:
        like = _like(keys, leaf, known)
        # Nothing known, or replicated: made from a shape alone, which has no layout.
        derived = PartitionSpec() if leaf.sharding is None else leaf.sharding.spec
        spec = derived if any(derived) else like or PartitionSpec()
        return NamedSharding(mesh, _as_jax_writes(mesh, leaf.ndim, spec, like))

    return jax.tree_util.tree_map_with_path(of_leaf, state)


def _mesh(paired: Sequence[tuple[Any, Any]], mesh: Mesh | None) -> Mesh:
    """The mesh given, or that of the leaves, which must all lie on one like it."""
    placed = [
        isinstance(getattr(leaf, "sharding", None), NamedSharding) for _, leaf in paired
    ]
    if paired and not any(placed):
        raise ValueError(
            "No parameter is laid out over a mesh; shard them first, for example with "
            "jax.device_put(params, shardings), or give jax.ShapeDtypeStructs with "
            "NamedShardings."
        )
    for (keys, leaf), is_placed in zip(paired, placed, strict=True):
        if not is_placed:
            raise ValueError(
                f"The parameter {leaf_path(keys)!r} has the sharding "
                f"{getattr(leaf, 'sharding', None)}, but others lie on a mesh; put it "
                "there too, by NamedSharding(mesh, PartitionSpec()) if on every device."
            )
        own = leaf.sharding.mesh
        if mesh is None and isinstance(own, Mesh):
            mesh = own
        if mesh is not None and own.shape_tuple != mesh.shape_tuple:
            raise ValueError(
                f"The parameter {leaf_path(keys)!r} lies on a mesh {dict(own.shape)}, "
                f"but the state must lie on {dict(mesh.shape)}; they must agree."
            )
    if mesh is None:
        raise ValueError(
            "The parameters name no mesh of devices; give mesh=, that of the state."
        )
    return mesh


def _like(
    keys: tuple[Any, ...],
    leaf: Any,
    known: Sequence[tuple[tuple[Any, ...], tuple[int, ...], PartitionSpec]],
) -> PartitionSpec | None:
    """Spec of the parameter that a state leaf has the shape and the path of."""
    same = [
        (len(path), spec)
        for path, shape, spec in known
        if shape == leaf.shape and keys[len(keys) - len(path) :] == path
    ]
    return max(same, key=lambda found: found[0])[1] if same else None


def _as_jax_writes(
    mesh: Mesh, rank: int, spec: PartitionSpec, like: PartitionSpec | None
) -> PartitionSpec:
    """`spec` in the form that the results of a compiled update have.

    A trailing `None` changes no layout, but a spec with it is unequal to one without,
    and `jit` keeps one program for each. On Explicit meshes results come with an entry
    for each axis, on Auto meshes as inputs of their shape are written, else without
    trailing `None`s.
    """
    entries = [*spec, *(None,) * (rank - len(spec))]
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        return PartitionSpec(*entries)
    if like is not None and entries == [*like, *(None,) * (rank - len(like))]:
        return like
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)
