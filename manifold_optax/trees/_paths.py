"""What is a leaf, and its normalised path."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from manifold_optax._typing import ArrayTree


def is_absent(node: Any) -> bool:
    """Whether a tree has no array at `node`: `None` or `optax.MaskedNode`."""
    return node is None or isinstance(node, optax.MaskedNode)


def leaf_path(keys: Sequence[Any]) -> str:
    """Normalised path of a leaf: `layers/0/kernel`, without the `value` of Flax nnx.

    Only the attribute `value` that nnx appends to a variable goes; a dictionary's key
    `"value"` (of attention) stays.
    """
    keys = tuple(keys)
    if len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys = keys[:-1]
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def leaves_by_path(tree: ArrayTree) -> dict[str, Any]:
    """The leaves of a tree by normalised path, `None` and masks among them.

    Raises:
        ValueError: if two leaves have one path.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_absent)
    leaves: dict[str, Any] = {}
    for keys, leaf in flat:
        path = leaf_path(keys)
        if path in leaves:
            raise ValueError(f"Two leaves have one path, {path!r}; rename one of them.")
        leaves[path] = leaf
    return leaves


def join_paths(module: str, leaf: str) -> str:
    """Path of a leaf below a module; the module of the whole tree is `""`."""
    return f"{module}/{leaf}" if module else leaf
