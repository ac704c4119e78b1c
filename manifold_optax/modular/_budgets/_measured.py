"""A budget whose sensitivities are measured at given parameters and inputs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from manifold_optax._checks import (
    require_concrete,
    require_one_of,
    require_static_steps,
)
from manifold_optax._typing import ArrayTree
from manifold_optax.linalg._scaling import widen
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._budget import (
    Addition,
    Budget,
    budget_of,
    check_module,
    check_tare,
    MassRules,
    MEASURED,
    ReadModule,
    sharing_atoms,
)
from manifold_optax.modular._budgets._directions import (
    direction_links,
    Groups,
    groups_of,
)
from manifold_optax.modular._budgets._scale import grid_of
from manifold_optax.optimizers import hybrid
from manifold_optax.trees import is_absent, leaf_path

DRAWS = 4
"""Random directions per slice. The standard deviation of one draw was 3 to 12 % of the
mean, that of the mean of four 2 to 7 % (measured on MLPs of width 32 and 128)."""


@runtime_checkable
class ReadFunction(ReadModule, Protocol):
    """A network that can be run."""

    @property
    def function(self) -> Any:
        """`(params, *inputs) -> output`, as it was read."""
        ...


def measured_budget(
    module: ReadFunction,
    params: ArrayTree,
    *batch: Any,
    key: Array | None = None,
    draws: int = DRAWS,
    vectors: bool = False,
    masses: MassRules | None = None,
    tare: Mapping[str, float] | None = None,
    addition: Addition = "independent",
) -> Budget:
    """Shares one learning rate by estimates of the sensitivities, at the start.

    The sensitivity of the output to a parameter is estimated as `RMS(J·d)/RMS(f)`: the
    first-order change of the output `f` along a steepest direction `d` of unit norm,
    relative to the output, in the mean over directions of Gaussian gradients. It is no
    bound: the worst direction may change the output more, and so may later parameters.

    A parameter of mass `m` of a total `M` has the share `√(m/M)/s`: the output moves by
    the learning rate if the changes that come from different parameters are
    independent, so that their squares add. With that the best learning rate of plain
    and of residual networks moved least with depth (`experiments transfer`).

    Args:
        module: what `read` returns.
        params: the parameters that were read, initialized and on their manifolds.
        *batch: the inputs of the network, of a typical batch.
        key: for the random gradients; `None`: `jax.random.key(0)`.
        draws: number of directions for each parameter, at least 1.
        vectors: whether biases and gains have shares, as for `budget`.
        masses: label or pattern of paths → mass of each layer, as for `budget`.
        tare: label or pattern of paths → mass of a group, as for `budget`.
        addition: `"independent"`, or `"worst"`: changes add up as in `budget`, and the
            share is `(m/M)/s`.

    Returns:
        A `Budget` of the kind `"measured"`. If the output is a tree, its floating
        leaves count as one long vector.

    Raises:
        TypeError: for arguments of another kind.
        ValueError: as `budget`; for parameters of other paths or shapes than were
            read; for traced arrays; and where the output is zero or not finite.

    Example:
        >>> def forward(params, x):
        ...     return jax.nn.relu(x @ params["up"]) @ params["down"]
        >>> params, x = {"up": jnp.eye(4), "down": jnp.eye(4)}, jnp.ones((2, 4))
        >>> module = mo.modular.read(forward, params, x)
        >>> found = measured_budget(module, params, x)
        >>> tx = mo.modular_optimizer(module, 0.1, budget=found)

    Cost: `draws` forward derivatives of the network for each parameter and slice, in
    one compiled program.
    """
    check_module("module", module)
    if not isinstance(module, ReadFunction):
        raise TypeError(
            "A measured budget runs the network, but module has no function: read it "
            f"by mo.modular.read(forward, params, *inputs); got {module!r}."
        )
    require_concrete("measured_budget", "shares", params, batch, key)
    require_static_steps("draws", draws)
    require_one_of("addition", addition, ("independent", "worst"))
    if not draws:
        raise ValueError(f"draws must be at least 1, got {draws!r}.")
    atoms = sharing_atoms(module, vectors=vectors, masses=masses)
    check_tare(tare, atoms)
    key = jax.random.key(0) if key is None else key
    found = _sensitivities(module, atoms, params, batch, key=key, draws=draws)
    return budget_of(MEASURED, atoms, found, tare=tare, addition=addition)


@dataclasses.dataclass(frozen=True)
class _Leaves:
    """Where the parameters that are measured lie in the tree of all parameters."""

    paths: tuple[str, ...]
    places: tuple[int, ...]
    """Number of each among the leaves of the tree."""

    @classmethod
    def of(cls, params: ArrayTree, paths: Sequence[str]) -> "_Leaves":
        flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_absent)
        every = {leaf_path(keys): place for place, (keys, _) in enumerate(flat)}
        missing = [path for path in paths if path not in every]
        if missing:
            raise ValueError(
                f"The module was read from other parameters: {missing} are missing "
                "here. Give the whole tree that was read."
            )
        return cls(tuple(paths), tuple(every[path] for path in paths))

    def taken(self, tree: ArrayTree) -> list[Array]:
        """The leaves that are measured."""
        leaves = jax.tree.leaves(tree, is_leaf=is_absent)
        return [leaves[place] for place in self.places]

    def alone(self, tree: ArrayTree) -> ArrayTree:
        """The tree with `None` in place of all other leaves."""
        leaves, structure = jax.tree.flatten(tree, is_leaf=is_absent)
        own = set(self.places)
        kept = [leaf if k in own else None for k, leaf in enumerate(leaves)]
        return structure.unflatten(kept)

    def put(self, tree: ArrayTree, new: Sequence[Array]) -> ArrayTree:
        """The tree with these leaves in place of its own."""
        leaves, structure = jax.tree.flatten(tree, is_leaf=is_absent)
        for place, leaf in zip(self.places, new, strict=True):
            leaves[place] = leaf
        return structure.unflatten(leaves)


def _sensitivities(
    module: ReadFunction,
    atoms: tuple[Atom, ...],
    params: ArrayTree,
    batch: tuple[Any, ...],
    *,
    key: Array,
    draws: int,
) -> dict[str, tuple[float, ...]]:
    """Path → estimate for each slice."""
    counts = module.slices
    groups = groups_of(atoms, module.shapes)
    groups(params)
    leaves = _Leaves.of(params, [atom.path for atom in atoms])
    direction = _direction_program(groups, leaves, params)
    rows = [
        np.arange(counts[path]).reshape(
            grid_of(path, module.shapes[path], counts[path])
        )
        for path in leaves.paths
    ]
    change = _change_program(module.function, leaves, rows)
    sums = {path: np.zeros(counts[path]) for path in leaves.paths}
    size = 0.0
    for one in jax.random.split(key, draws):
        directions = direction(one, params)
        for which, path in enumerate(leaves.paths):
            for row in range(counts[path]):
                moved, size = map(
                    float, change(params, batch, directions, (which, row))
                )
                sums[path][row] += moved / draws
    if not 0 < size < float("inf"):
        raise ValueError(
            "A measured budget is relative to the size of the output, but the root "
            f"mean square of the output on this batch is {size}. Take parameters and a "
            "batch for which it is not zero: a readout that starts at zero, for "
            "example, must be drawn at random for the measurement."
        )
    return {path: tuple(map(float, total / size)) for path, total in sums.items()}


def _direction_program(groups: Groups, leaves: _Leaves, params: ArrayTree) -> Any:
    """`(key, params) -> directions`: a random unit direction of each parameter."""
    chains = {
        label: optax.named_chain(*direction_links(group, schedule=None, placement=None))
        for label, group in groups.distinct.items()
    }
    tx = hybrid(chains, others=optax.set_to_zero(), labels=groups)
    # Outside of the program, where weights off their manifold are seen and named.
    state = tx.init(leaves.alone(params))

    # Compiled here, unlike elsewhere in the library: callers cannot compile
    # `measured_budget` as a whole, because it returns numbers of Python.
    @jax.jit
    def directions(key: Array, params: ArrayTree) -> list[Array]:
        points = leaves.taken(params)
        keys = jax.random.split(key, len(points))
        drawn = [
            jax.random.normal(own, leaf.shape, jnp.float32).astype(leaf.dtype)
            for own, leaf in zip(keys, points, strict=True)
        ]
        alone = leaves.alone(params)
        gradient = leaves.alone(leaves.put(params, drawn))
        return leaves.taken(tx.update(gradient, state, alone)[0])

    return directions


def _change_program(function: Any, leaves: _Leaves, rows: Sequence[np.ndarray]) -> Any:
    """`(params, batch, directions, (which, row)) -> [RMS of the change, RMS]`.

    `rows` number the slices of each parameter and broadcast with it.
    """

    @jax.jit
    def change(
        params: ArrayTree, batch: Any, directions: list[Array], index: tuple[Any, Any]
    ) -> Array:
        # Traced indices, so that one program serves all parameters and all slices.
        which, row = index
        tangents = [
            jnp.where((which == place) & (own == row), leaf, jnp.zeros_like(leaf))
            for place, (leaf, own) in enumerate(zip(directions, rows, strict=True))
        ]

        def output(points: list[Array]) -> list[Array]:
            found = function(leaves.put(params, points), *batch)
            return [x for x in jax.tree.leaves(found) if _is_floating(x)]

        values, moved = jax.jvp(output, (leaves.taken(params),), (tangents,))
        return jnp.stack([_rms(moved), _rms(values)])

    return change


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)


def _rms(leaves: Sequence[Array]) -> Array:
    """Root mean square of all entries of all leaves, in at least float32."""
    squares = [jnp.sum(jnp.square(widen(leaf))) for leaf in leaves]
    return jnp.sqrt(sum(squares, jnp.zeros(())) / max(1, sum(x.size for x in leaves)))
