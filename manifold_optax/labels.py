"""Which parameter gets which optimizer: labels by path, for `optax.partition`.

Labels depend on path, rank and sizes alone, never on values or dtypes:
`optax.partition` labels the parameters at `init` and the updates at `update`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from manifold_optax._typing import ArrayTree
from manifold_optax.trees import check_pattern, is_absent, leaf_path, matches

MATRIX = "matrix"
"""Label of the weights of hidden linear maps."""

OTHER = "other"
"""Label of everything else: embeddings, heads, vectors, norm scales."""

_KERNEL = re.compile(r"(kernel|weights?|w([\dqkvo_]\w*)?)")
"""Names under which Flax, Equinox, Haiku and plain dictionaries keep linear maps."""

_VECTOR = re.compile(
    r"(^|/)((bias|b\d*|scale|offset|gain|gamma|beta|mean|var)$"
    r"|(\w*norm\w*|ln(_?\w+)?)(/|$))",
    re.IGNORECASE,
)
"""Names of vectors and of norm layers, whose vectors may be called `weight`; they stay
vectors when layers are stacked to `[layers, size]`."""

_INPUT_OR_OUTPUT = re.compile(
    r"(^|/)(\w*embed\w*|(\w+_)?emb|wte|wpe|lm_head|head|\w*logits\w*"
    r"|readout|classifier|output_(proj\w*|layer))(/|$)",
    re.IGNORECASE,
)
"""Path parts of embeddings and readouts: their rows or columns are indexed by tokens or
classes, and Muon's authors leave them to AdamW (K. Jordan et al., 2024)."""


def label_by_path(
    rules: Mapping[str, str],
    default: str | Callable[[ArrayTree], ArrayTree] | None = None,
) -> Callable[[ArrayTree], ArrayTree]:
    """Labels each parameter by the first regular expression that its path contains.

    A path is `layers/0/kernel`: keys joined by `/`, without the `value` that Flax nnx
    appends.

    Args:
        rules: regular expression → label; the first that is found in the path wins.
        default: label of the rest, or a function that labels the rest, such as
            `label_matrices`: it is given the tree with `None` for the leaves that a
            rule labels. `None`: a parameter without a label is an error.

    Returns:
        A function from a tree to its labels, for `optax.partition` and `hybrid`.

    Raises:
        ValueError: (the function returned) for a rule that no path matches, listing the
            paths, and for a path that neither a rule nor the default labels.

    Example:
        >>> labels = label_by_path({r"kernel$": "matrix"}, default="other")
        >>> labels({"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}})
        {'dense': {'bias': 'other', 'kernel': 'matrix'}}

        The rules say what `label_matrices` cannot tell, and it labels the rest:

        >>> labels = label_by_path({r"query$": "heads"}, default=label_matrices)
        >>> labels({"query": jnp.ones((4, 2, 3)), "out": {"kernel": jnp.ones((6, 4))}})
        {'out': {'kernel': 'matrix'}, 'query': 'heads'}
    """
    for pattern in rules:
        check_pattern("a rule of label_by_path", pattern)

    def label(path: str, leaf: Any) -> str | None:
        del leaf
        for pattern, name in rules.items():
            if matches(pattern, path):
                return name
        if default is None:
            raise ValueError(
                f"No rule labels the parameter {path!r}; the rules are {list(rules)}. "
                "Add one, or a default."
            )
        return None if callable(default) else default

    def labels(tree: ArrayTree) -> ArrayTree:
        labelled, paths = _label(label, tree)
        unused = [
            pattern
            for pattern in rules
            if not any(matches(pattern, path) for path in paths)
        ]
        if unused and jax.tree.leaves(tree):
            raise ValueError(
                f"The rules {unused} match no parameter. The paths are: "
                f"{', '.join(paths)}."
            )
        return _label_rest(default, labelled, tree) if callable(default) else labelled

    return labels


def label_matrices(params: ArrayTree) -> ArrayTree:
    """Labels the hidden linear maps `"matrix"` and everything else `"other"`, strictly.

    `"other"`: leaves with fewer than two axes; leaves named like a vector (`bias`,
    `scale`, …) or in a norm layer (`norm`, `ln_1`, …), whatever their rank; everything
    in an embedding or a readout (`embed`, `tok_emb`, `lm_head`, `readout`, …); matrices
    with one row or column. `"matrix"`: leaves with two axes named like a linear map
    (`kernel`, `weight`, `w1`, `wq`, …). It goes by common names: read the result once.

    Args:
        params: tree of arrays (or of their shapes).

    Returns:
        A tree of labels.

    Raises:
        ValueError: for a leaf that this cannot tell: an unknown name, or more than two
            axes (convolutions, experts, scanned layers and heads look alike). The
            message names it; label it with `label_by_path`.

    Example:
        >>> label_matrices({"w1": jnp.ones((4, 2)), "b1": jnp.ones(2)})
        {'b1': 'other', 'w1': 'matrix'}
    """
    return _label(_role, params)[0]


def _role(path: str, leaf: Any) -> str:
    name = path.rsplit("/", 1)[-1]
    shape = tuple(getattr(leaf, "shape", ()))
    if len(shape) < 2 or _VECTOR.search(path) or _INPUT_OR_OUTPUT.search(path):
        return OTHER
    if len(shape) == 2 and _KERNEL.fullmatch(name):
        return MATRIX if min(shape) > 1 else OTHER
    raise ValueError(
        f"Cannot tell from its path and shape what the parameter {path!r} of shape "
        f"{shape} is. Say so: hybrid(..., labels=label_by_path({{r'{path}$': "
        f"'{MATRIX}'}}, default=label_matrices)), or '{OTHER}' in its place; anything "
        "but a two-axis (fan_in, fan_out) kernel needs axes=, and a label of its own "
        "where the axes of the others differ. In mo.muon_clip: groups={'name': "
        f"mo.MatrixGroup(r'{path}$', axes=…)}}."
    )


def _label_rest(
    default: Callable[[ArrayTree], ArrayTree], labelled: ArrayTree, tree: ArrayTree
) -> ArrayTree:
    """`labelled`, and where it has `None` the labels that `default` gives.

    `default` does not see the other leaves, so that it need not know what they are.
    """

    def keep(name: Any, leaf: Any) -> Any:
        return leaf if name is None else None

    def choose(keys: Any, name: Any, leaf: Any, rest: Any) -> Any:
        if name is not None or leaf is None:
            return name
        if rest is None:
            raise ValueError(
                f"Neither a rule nor the default labels {leaf_path(keys)!r}; the "
                "function that is the default must label every leaf that it is given."
            )
        return rest

    rest = default(jax.tree.map(keep, labelled, tree, is_leaf=is_absent))
    return jax.tree_util.tree_map_with_path(
        choose, labelled, tree, rest, is_leaf=is_absent
    )


def _label(
    of_leaf: Callable[[str, Any], str | None], tree: ArrayTree
) -> tuple[ArrayTree, list[str]]:
    """Labels of a tree, and its paths; `None` has a path, no label; masks neither."""
    paths: list[str] = []

    def label(keys: Any, leaf: Any) -> Any:
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        paths.append(leaf_path(keys))
        return None if leaf is None else of_leaf(paths[-1], leaf)

    return jax.tree_util.tree_map_with_path(label, tree, is_leaf=is_absent), paths
