"""What the state of an optimizer holds about its last step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array

from manifold_optax._typing import ArrayTree
from manifold_optax.diagnostics._measures import MEASURES, MonitorInfo
from manifold_optax.trees import is_absent, leaf_path

FIELDS = ("gap", "tangency", *MEASURES)
"""Names of the fields in which transformations keep numbers about their matrices."""


def collect(state: ArrayTree) -> dict[str, dict[str, Array]]:
    """The numbers that transformations keep about their matrices, by parameter.

    It looks for the fields in `FIELDS`, at any depth: in chains, partitions, wrappers
    such as `optax.MultiSteps`, injected hyperparameters. It reads, so it may run in the
    jitted step (return what it gives) or on the state outside of it.

    Args:
        state: state of any Optax transformation; also as dicts and lists, as Orbax
            restores it without a target.

    Returns:
        For each field that the state has: path of the parameter → one number per
        matrix, float32 `[*batch]`. Where `mo.monitor` has groups: `group/mean`,
        `group/worst` and `group/total` → one number. Where two transformations report
        on one parameter, the later one's key is prefixed with the path of its state.

    Example:
        >>> tx = optax.chain(dual_ascent_spectral(certify=True), optax.sgd(0.1))
        >>> params = {"w": jnp.eye(4, 2)}
        >>> gradient = {"w": jnp.arange(8.0).reshape(4, 2)}
        >>> _, state = jax.jit(tx.update)(gradient, tx.init(params), params)
        >>> float(diagnostics.collect(state)["gap"]["w"]) < 1e-3
        True
    """
    found: dict[str, dict[str, Array]] = {}
    state = jax.tree.map(_named, state, is_leaf=_is_plain)
    for field in FIELDS:
        for where, tree in optax.tree.get_all_with_path(state, field, _is_field):
            leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_absent)
            for keys, leaf in leaves:
                if is_absent(leaf):
                    continue
                numbers = found.setdefault(field, {})
                path = leaf_path(keys)
                if path in numbers:
                    path = f"{jax.tree_util.keystr(where)}: {path}"
                numbers[path] = leaf
    return found


def _is_field(path: tuple[Any, ...], value: Any) -> bool:
    """Whether a match is the field of a state, and not a parameter of that name."""
    del value
    key = path[-1]
    named = isinstance(key, optax.tree_utils.NamedTupleKey)
    return named and key.tuple_name.endswith(("State", "Info"))


class _RestoredState(NamedTuple):
    """`DualAscentState`, whose module is above this one."""

    gap: Any
    tangency: Any


_PLAIN = (MonitorInfo, _RestoredState)
"""What is restored as a dictionary of exactly these fields."""


def _is_plain(node: Any) -> bool:
    fields = set(node) if isinstance(node, Mapping) else set[Any]()
    return any(fields == set(kind._fields) for kind in _PLAIN)


def _named(node: Any) -> Any:
    """A dictionary of fields as the tuple that it was before it was stored."""
    if not _is_plain(node):
        return node
    (kind,) = (kind for kind in _PLAIN if set(node) == set(kind._fields))
    return kind(**node)
