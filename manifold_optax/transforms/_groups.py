"""Numbers per matrix, reduced over groups of parameters."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from manifold_optax._typing import ArrayTree
from manifold_optax.diagnostics import COUNTS
from manifold_optax.roles import MATRIX, NOT_MATRICES, Roles
from manifold_optax.trees import check_pattern, is_absent, leaves_by_path, matches

Groups: TypeAlias = Roles | Mapping[str, str] | None
"""`mo.Roles`, whose labels are the groups; or pattern of paths → name of its group."""

LEAST_IS_WORST = ("stable_rank",)
"""Measures of which the smallest is the worst of a group; of all others the largest."""


def check_groups(groups: Any) -> None:
    """Raises TypeError or ValueError unless `groups` are groups."""
    if groups is None or (isinstance(groups, Roles) and not isinstance(groups, type)):
        return
    if not isinstance(groups, Mapping) or not groups:
        raise TypeError(
            "groups must be a dict {pattern of paths: name of the group} with at least "
            f"one entry, mo.Roles, or None; got {groups!r}."
        )
    for pattern, name in groups.items():
        check_pattern("groups", pattern)
        if not isinstance(name, str):
            raise TypeError(
                f"The name of the group {pattern!r} must be a string, got {name!r}."
            )


def groups_of(tree: ArrayTree, groups: Groups) -> dict[str, str]:
    """Path of each leaf → the name of its group; absent leaves have none.

    Raises:
        ValueError: for a leaf in no group, naming it, and for a pattern that matches
            no leaf.
    """
    leaves = leaves_by_path(tree)
    if isinstance(groups, Mapping):
        idle = [p for p in groups if not any(matches(p, path) for path in leaves)]
        if idle and leaves:
            raise ValueError(
                f"The patterns {idle} of groups match no parameter; a pattern must "
                f"match whole components of a path. The paths are: {', '.join(leaves)}."
            )
    return {
        path: _group_of(path, tuple(leaf.shape), groups)
        for path, leaf in leaves.items()
        if not is_absent(leaf)
    }


def reduced(
    found: Mapping[str, ArrayTree], like: ArrayTree, groups: Groups
) -> dict[str, Any]:
    """Numbers per matrix, as they are kept: reduced where there are groups.

    Args:
        found: name of each measure → tree of its numbers.
        like: the tree of matrices, which decides what is in a group.
        groups: what `mo.monitor` takes.

    Returns:
        For each name the tree as it is; with groups `{group: {"mean", "worst"}}`, and
        `{group: {"total"}}` for counts.

    Raises:
        ValueError: as `groups_of`.
    """
    if groups is None:
        return dict(found)
    known = groups_of(like, groups)
    if not known:
        # `optax.tree.map_params` makes a state of no parameters, like the real one.
        known = {name: name for name in _declared(groups)}
    return {name: _of_groups(name, tree, known) for name, tree in found.items()}


def filled(new: Any, old: Any) -> Any:
    """`new` where there is something, else `old`: a matrix or group without update."""
    return _merge(lambda value, _: value, new, old)


def added(new: Any, old: Any) -> Any:
    """`old + new`, and `old` where `new` has nothing."""
    return _merge(lambda value, before: before + value, new, old)


def _merge(both: Callable[[Any, Any], Any], new: Any, old: Any) -> Any:
    def of_leaf(value: Any, before: Any) -> Any:
        return before if value is None else both(value, before)

    return jax.tree.map(of_leaf, new, old, is_leaf=lambda node: node is None)


def _of_groups(name: str, tree: ArrayTree, known: Mapping[str, str]) -> Any:
    by_group: dict[str, list[Any]] = {group: [] for group in known.values()}
    for path, leaf in leaves_by_path(tree).items():
        if not is_absent(leaf) and leaf.size:
            by_group[known[path]].append(leaf)
    return {group: _of_group(name, leaves) for group, leaves in by_group.items()}


def _of_group(name: str, leaves: list[Any]) -> dict[str, Any]:
    # Leaf by leaf: on a mesh their batches may lie along different axes.
    total = sum((jnp.sum(leaf) for leaf in leaves), jnp.zeros((), jnp.float32))
    if name in COUNTS:
        return {"total": total}
    pick, pair = jnp.max, jnp.maximum
    if name in LEAST_IS_WORST:
        pick, pair = jnp.min, jnp.minimum
    count = sum(leaf.size for leaf in leaves)
    worst = functools.reduce(pair, map(pick, leaves), *(() if leaves else (total,)))
    return {"mean": total / max(count, 1), "worst": worst}


def _declared(groups: Any) -> list[str]:
    """All groups that are named, whether or not a parameter is in them."""
    if isinstance(groups, Mapping):
        return list(groups.values())
    labels = [role.label for _, role in groups.rules]
    if isinstance(groups.default, Roles):
        labels += _declared(groups.default)
    else:
        labels.append(MATRIX if groups.default is None else groups.default.label)
    return [label for label in labels if label not in NOT_MATRICES]


def _group_of(path: str, shape: tuple[int, ...], groups: Groups) -> str:
    if isinstance(groups, Roles):
        role = groups.role_of(path, shape)
        if role is not None:
            return role.label
    elif groups is not None:
        for pattern, name in groups.items():
            if matches(pattern, path):
                return name
    raise ValueError(
        f"The parameter {path!r} of shape {shape} is in no group: add a pattern for it "
        "to groups."
    )
