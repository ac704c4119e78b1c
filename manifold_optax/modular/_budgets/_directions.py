"""The steepest unit direction of every atom, in one group per manifold and norm."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from manifold_optax import transforms
from manifold_optax._typing import ArrayTree, Schedule
from manifold_optax.geometry import Euclidean, Manifold, Max, Norm, Spectral
from manifold_optax.matrices import Placement
from manifold_optax.modular._algebra._module import Atom
from manifold_optax.modular._budgets._atom_axes import (
    AtomAxes,
    axes_of_atoms,
    is_matrix,
)
from manifold_optax.modular._budgets._rules import check_geometry, plain_name
from manifold_optax.modular._budgets._scale import has_unit_norm, scale_to_unit_norm
from manifold_optax.optimizers._links import Link
from manifold_optax.roles import OTHER
from manifold_optax.trees import is_absent, leaf_path, map_leaves


@dataclasses.dataclass(frozen=True)
class Group:
    """The atoms of one manifold and one norm, which share stacks and a program.

    Attributes:
        manifold: of their weights.
        norm: of their steps.
        entries: whether they are vectors, whose steps have no axes.
        axes: of all atoms of the network.
    """

    manifold: Manifold
    norm: Norm
    entries: bool
    axes: AtomAxes = dataclasses.field(repr=False)

    @property
    def label(self) -> str:
        """Its label for `hybrid` and `describe`."""
        kind = "vectors" if self.entries else plain_name(self.manifold)
        return f"{kind} under {plain_name(self.norm)}"


@dataclasses.dataclass(frozen=True)
class Groups:
    """The groups of a network; a function from parameters to the labels of `hybrid`.

    Attributes:
        by_path: path of each atom → its group.
        shapes: path of each parameter that was read → shape of its leaf.
    """

    by_path: Mapping[str, Group]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def distinct(self) -> dict[str, Group]:
        """Label → group, in the order of the atoms."""
        return {group.label: group for group in self.by_path.values()}

    def axes_of(self, group: Group) -> AtomAxes:
        """The axes of the atoms of one group; all other leaves are no matrices."""
        own = {path for path, other in self.by_path.items() if other == group}
        kept = {path: axes for path, axes in group.axes.axes.items() if path in own}
        return AtomAxes(kept)

    def __call__(self, params: ArrayTree) -> ArrayTree:
        """The label of each leaf, `"other"` for leaves that are no atoms of a group.

        Raises:
            ValueError: for leaves that were not read, or not with this shape.
        """
        wrong: dict[str, str] = {}

        def label(keys: Any, leaf: Any) -> Any:
            if is_absent(leaf):
                return leaf
            path, shape = leaf_path(keys), tuple(getattr(leaf, "shape", ()))
            if self.shapes.get(path) != shape:
                read = self.shapes.get(path, "nothing")
                wrong[path] = f"{shape} here, {read} when the module was read"
            group = self.by_path.get(path)
            return OTHER if group is None else group.label

        labels = jax.tree_util.tree_map_with_path(label, params, is_leaf=is_absent)
        if wrong:
            raise ValueError(
                "The module was read from other parameters: "
                f"{'; '.join(f'{k!r} is {v}' for k, v in wrong.items())}. "
                "Read it again with the parameters that are trained."
            )
        return labels


def groups_of(atoms: Sequence[Atom], shapes: Mapping[str, tuple[int, ...]]) -> Groups:
    """One group per distinct manifold and norm of the atoms.

    Raises:
        ValueError: for an atom whose manifold and norm no step can be made for.
    """
    axes = axes_of_atoms(atoms)
    by_path = {}
    for atom in atoms:
        geometry = (atom.manifold, atom.norm)
        check_geometry(atom.path, atom.role, tuple(shapes[atom.path]), geometry)
        by_path[atom.path] = Group(*geometry, not is_matrix(atom), axes)
    return Groups(by_path, dict(shapes))


def direction_links(
    group: Group, *, schedule: Schedule | None, placement: Placement | None
) -> tuple[Link, ...]:
    """The links from gradients to steepest directions of norm 1.

    Args:
        group: manifold, norm and axes.
        schedule: coefficients of a Newton–Schulz iteration in place of the exact polar
            factor of a free matrix; `None`: exact.
        placement: which device computes which matrix.
    """
    if group.entries:
        return (("direction", _signs()),)
    manifold, norm = group.manifold, group.norm
    # RmsToRms is Spectral times a number of the shape. Under Spectral tall and wide
    # matrices share stacks, and those on mo.Stiefel may be split among devices.
    free = norm.free_of_shape
    places: Any = {"axes": group.axes, "placement": placement}
    if schedule is not None and (manifold, free) == (Euclidean(), Spectral()):
        direction = transforms.orthogonalize_via_newton_schulz(schedule, **places)
    else:
        direction = transforms.steepest(manifold, free, **places)
    if has_unit_norm(manifold, norm):
        return (("direction", direction),)
    unit = scale_to_unit_norm(manifold, norm, axes=group.axes)
    return (("direction", direction), ("unit_norm", unit))


def _signs() -> optax.GradientTransformationExtraArgs:
    """The steepest direction of vectors under the largest entry."""
    norm = Max()

    def sign(path: str, update: Array) -> Array:
        del path
        # Axes of size 1, not another shape, which Explicit meshes would have to know.
        added = tuple(range(2 - update.ndim))
        return jnp.squeeze(norm.steepest(jnp.expand_dims(update, added)), added)

    def update_fn(
        updates: ArrayTree, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[ArrayTree, Any]:
        del params, extra_args
        return map_leaves(sign, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update_fn)
