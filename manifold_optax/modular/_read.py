"""`read`: from a function of parameters to its roles, its atoms and its budget."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from manifold_optax._checks import require_in_range
from manifold_optax._typing import ArrayTree
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._rules import (
    check_geometry_rules,
    check_keys,
    geometry_of,
    GeometryRules,
)
from manifold_optax.modular._computation._graph import Graph
from manifold_optax.modular._computation._trace import trace
from manifold_optax.modular._network import Network
from manifold_optax.modular._uses._roles import (
    conflicts,
    declared_roles,
    described,
    roles_from_use,
)
from manifold_optax.modular._uses._use import uses
from manifold_optax.trees import check_pattern, leaf_path, matches


def read(
    function: Callable[..., Any],
    params: ArrayTree,
    *inputs: Any,
    roles: Mapping[str, Any] | None = None,
    geometry: GeometryRules | None = None,
    output: str | None = None,
    input_rms: float | Mapping[str, float] = 1.0,
    floor: float = 0.0,
) -> Network:
    """Reads a network from the computation of `function(params, *inputs)`.

    The function is traced, not run. What each parameter is follows from its use, with
    no regard to names or frameworks: contracted in a product it is a matrix, looked up
    an embedding, added a bias, multiplied a gain. What the output depends on follows
    from one rule for each primitive. Calls, checkpoints, loops of known length and
    branches are entered.

    Args:
        function: pure function of the parameters and the inputs, such as
            `lambda p, x: nnx.merge(graphdef, p)(x)` or `model.apply`.
        params: pytree of arrays or `jax.ShapeDtypeStruct`s.
        *inputs: pytrees of the same, as the function takes them.
        roles: pattern of paths → axes, label or `mo.Role`, as in `mo.roles`: what the
            user decides, before what the use says. Tied parameters need it.
        geometry: label or pattern → `(manifold, norm)`; see `geometry_of`.
        output: path of the output that counts, such as `"0"` or `"logits"`; `None`: the
            first array of floats that has an axis. What it does not need is not read.
        input_rms: bound of the RMS of the inputs over their last axis, in `(0, inf)`,
            for all float inputs or by pattern of their paths (`"0"`, `"0/image"`). It
            enters `"derived"` sensitivities alone.
        floor: least RMS of what enters a norm layer, in `[0, inf)`, for `"derived"`
            sensitivities; 0: the slope of a norm layer is 1/√ε.

    Returns:
        A `Network`. `print` shows it.

    Raises:
        ValueError: for a parameter that is used in two ways, with both places; for an
            output or an input that does not exist; for roles that differ from what
            names say.
        TypeError: for arguments of another kind.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from manifold_optax import modular
        >>> def mlp(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 2))}
        >>> network = modular.read(mlp, params, jnp.ones((3, 4)))
        >>> [(atom.path, atom.role) for atom in network.atoms]
        [('down', 'readout'), ('up', 'matrix')]
        >>> print(modular.budget(network).shares)
        {'down': (0.5,), 'up': (0.5,)}

    Cost: tracing, and about as long again; independent of the sizes of arrays and of
    the length of loops.
    """
    geometry = geometry or {}
    check_geometry_rules(geometry)
    require_in_range("floor", floor, "[0, inf)")
    graph, paths, outputs = trace(function, params, *inputs)
    place = output_place(graph, outputs, output)
    graph = Graph(graph.inputs, (graph.outputs[place],))
    if "" in paths:
        raise ValueError(
            "params is one array, which has no path; name it, as in {'kernel': array}."
        )
    leaves = dict(zip(paths, graph.inputs, strict=False))
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    used = uses(graph, paths)
    decided = {**(roles or {}), **declared_roles(graph, paths)}
    found = roles_from_use(used, shapes, decided)
    contradictions = conflicts(used, shapes, decided)
    if contradictions:
        raise ValueError("\n".join(contradictions))
    atoms = []
    for path, shape in shapes.items():
        role = found.role_of(path, shape)
        assert role is not None
        pair = geometry_of(path, role.label, role.axes, shape, geometry)
        atoms.append(Atom(path, role.label, role.axes, *pair))
    check_keys("geometry", geometry, atoms, "(manifold, norm), a manifold or a norm")
    return Network(
        function=lambda *args: jax.tree.leaves(function(*args))[place],
        graph=graph,
        shapes=shapes,
        atoms=tuple(atoms),
        roles=found,
        uses={
            path: "; ".join(described(use, len(shapes[path])) for use in ways)
            for path, ways in used.items()
        },
        input_rms=_input_rms(inputs, input_rms),
        floor=float(floor),
    )


def output_place(graph: Graph, paths: tuple[str, ...], wanted: str | None) -> int:
    """The place of the output that counts."""
    floats = [k for k, value in enumerate(graph.outputs) if value.is_float]
    if wanted is not None:
        floats = [k for k in floats if paths[k] == wanted]
    arrays = [k for k in floats if graph.outputs[k].shape]
    for place in (*arrays, *floats):
        return place
    at = "" if wanted is None else f" at {wanted!r}"
    kinds = ", ".join(
        f"{path!r} of {value.dtype}"
        for path, value in zip(paths, graph.outputs, strict=True)
    )
    raise ValueError(
        f"The function has no output of floats{at}; its outputs are: {kinds or 'none'}."
        " output= is the path of the one that counts."
    )


def _input_rms(
    inputs: tuple[Any, ...], given: float | Mapping[str, float]
) -> tuple[float, ...]:
    """A bound of the RMS for every array of the inputs."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(inputs)
    if not isinstance(given, Mapping):
        require_in_range("input_rms", given, "(0, inf)")
        return (float(given),) * len(leaves)
    paths = [leaf_path(keys) for keys, _ in leaves]
    for pattern in given:
        check_pattern("a key of input_rms", pattern)
        if not any(matches(pattern, path) for path in paths):
            raise ValueError(
                f"The key {pattern!r} of input_rms fits no input; the paths of the "
                f"inputs are: {', '.join(map(repr, paths)) or 'none'}."
            )
    found = []
    for path in paths:
        number = next((v for k, v in given.items() if matches(k, path)), 1.0)
        require_in_range(f"input_rms of {path!r}", number, "(0, inf)")
        found.append(float(number))
    return tuple(found)
