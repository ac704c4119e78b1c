"""All parameters of a model: which label each one has, and how it is matrices."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax

from manifold_optax._typing import ArrayTree
from manifold_optax.matrices import Axes, STACKED
from manifold_optax.matrices._axes import check_axes
from manifold_optax.roles._names import role_by_name
from manifold_optax.roles._role import MATRIX, NOT_MATRICES, Role
from manifold_optax.roles._unknown import unknown_parameters
from manifold_optax.trees import check_pattern, is_absent, leaf_path, matches


@dataclasses.dataclass(frozen=True)
class Roles:
    """What each parameter of a model is, by its path; immutable and hashable.

    Make one with `roles`. It stands wherever labels are wanted (it is a function from a
    tree to its labels, for `hybrid` and `optax.partition`) and wherever `axes` are.

    Attributes:
        rules: pairs of a pattern and a role; the first whose pattern matches wins.
        default: what no rule matches: a role, other roles, or `None`, the strict
            reading of names.
        chosen: the labels whose leaves are matrices here; `None`: all (see `only`).
    """

    rules: tuple[tuple[str, Role], ...] = ()
    default: "Role | Roles | None" = None
    chosen: tuple[str, ...] | None = None

    def __call__(self, tree: ArrayTree) -> ArrayTree:
        """Labels of a tree of arrays or shapes.

        `None` has no label and masks stay, but a rule may match the path of a `None`.

        Raises:
            ValueError: for parameters that neither a rule nor their name tells, all of
                them in one message, and for rules that match no parameter.
        """
        paths: list[str] = []
        unknown: dict[str, tuple[int, ...]] = {}

        def label(keys: Any, leaf: Any) -> Any:
            if isinstance(leaf, optax.MaskedNode):
                return leaf
            path = leaf_path(keys)
            paths.append(path)
            if leaf is None:
                return None
            role = self.role_of(path, _shape(leaf))
            if role is None:
                unknown[path] = _shape(leaf)
                return None
            return role.label

        labels = jax.tree_util.tree_map_with_path(label, tree, is_leaf=is_absent)
        if unknown:
            raise ValueError(unknown_parameters(unknown))
        idle = [
            pattern
            for pattern, _ in self.rules
            if not any(matches(pattern, path) for path in paths)
        ]
        if idle and jax.tree.leaves(tree):
            raise ValueError(
                f"The rules {idle} of mo.roles match no parameter; a pattern must "
                f"match whole components of a path. The paths are: {', '.join(paths)}."
            )
        return labels

    def role_of(self, path: str, shape: tuple[int, ...]) -> Role | None:
        """The role of the parameter at `path`; `None` if nothing tells it."""
        for pattern, role in self.rules:
            if matches(pattern, path):
                return role
        if isinstance(self.default, Roles):
            return self.default.role_of(path, shape)
        return role_by_name(path, shape) if self.default is None else self.default

    def axes_of(self, path: str, shape: tuple[int, ...]) -> Axes | None:
        """How the parameter at `path` is a batch of matrices; `None` if it is none.

        Raises:
            ValueError: if nothing tells what it is, and for a matrix of more than two
                axes without declared axes.
        """
        role = self.role_of(path, shape)
        if role is None:
            raise ValueError(unknown_parameters({path: shape}))
        if self.chosen is not None and role.label not in self.chosen:
            return None
        if role.axes is not None or role.label in NOT_MATRICES:
            return role.axes
        if len(shape) == 2:
            named = role_by_name(path, shape)
            return STACKED if named is None or named.axes is None else named.axes
        raise ValueError(
            f"The parameter {path!r} of shape {shape} has the label {role.label!r}, "
            "but nothing says which of its axes are the matrix: give its rule "
            f"mo.Role({role.label!r}, axes), or one of the labels {NOT_MATRICES}."
        )

    def only(self, *labels: str) -> "Roles":
        """The same roles, in which the leaves of these labels alone are matrices.

        For a model with several manifolds: `project(params, Stiefel(),
        axes=roles.only("matrix"))`.
        """
        return dataclasses.replace(self, chosen=tuple(labels))


def roles(
    rules: "Mapping[str, Axes | str | Role] | None" = None,
    *,
    default: str | Role | Roles | None = None,
) -> Roles:
    """What each parameter of a model is, said once and used everywhere.

    The result answers two questions: which label a parameter has, so that it is the
    `labels` of `hybrid` and of `optax.partition`; and how it is a batch of matrices, so
    that it is the `axes` of every transformation, optimizer, `project` and
    `initializers`.

    Args:
        rules: pattern of paths (see `trees.matches`) → what the parameter is. The
            first pattern that matches wins. A value is one of:
            axes: `STACKED`, `OUT_IN`, `CONV`, `HEADS`, `HEADS_OUT`, a `Split`, or
            `optax.contrib.MuonDimensionNumbers`; the label is then `"matrix"`;
            a label: `"embedding"`, `"readout"`, `"vector"`, `"router"`, `"other"` are
            no matrices, any other label is one;
            a `Role(label, axes)`, for a label of your own with its axes.
        default: what no rule matches: a label, a `Role`, other `Roles`, or `None`, the
            strict reading of names. It relies on the naming conventions of Flax, Haiku,
            Equinox and PyTorch, and refuses what a name and a rank do not tell; check
            the result once with `describe`.

    Returns:
        `Roles`: immutable, hashable, callable on a tree. It depends on paths and
        shapes alone, never on values or dtypes.

    Raises:
        TypeError: if `rules` is not a mapping, or a value is of another kind.
        ValueError: for an invalid pattern. The `Roles` raise it for parameters that
            cannot be told, listing all of them, and for rules that match nothing.

    Example:
        >>> model = roles({"query/kernel": HEADS, "position": "embedding"})
        >>> params = {
        ...     "query": {"kernel": jnp.ones((8, 2, 4))},
        ...     "up": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)},
        ...     "position": jnp.ones((5, 8)),
        ... }
        >>> print(jax.tree.map(str, model(params)))
        {'position': 'embedding', 'query': {'kernel': 'matrix'}, 'up': {'bias': \
'vector', 'kernel': 'matrix'}}
        >>> tx = hybrid(muon(0.02, axes=model), labels=model)
    """
    rules = {} if rules is None else rules
    if not isinstance(rules, Mapping):
        raise TypeError(
            "rules must be a dict {pattern of paths: axes, label or mo.Role}, got "
            f"{rules!r}."
        )
    for pattern in rules:
        check_pattern("a rule of mo.roles", pattern)
    known = tuple((p, _role(f"the rule {p!r}", value)) for p, value in rules.items())
    if default is None or isinstance(default, Roles):
        return Roles(known, default)
    return Roles(known, _role("default", default))


def _role(what: str, value: Any) -> Role:
    if isinstance(value, str):
        return Role(value)
    if isinstance(value, Role):
        if not isinstance(value.label, str):
            raise TypeError(f"The label of {what} must be a string, got {value!r}.")
        return value if value.axes is None else Role(value.label, _checked(what, value))
    return Role(MATRIX, _checked(what, Role(MATRIX, value)))


def _checked(what: str, role: Role) -> Axes:
    try:
        return check_axes(role.axes)
    except TypeError as error:
        raise TypeError(
            f"The value of {what} must be axes, a label or a mo.Role. {error}"
        ) from None


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))
