"""What a transformation reports of the matrices that it will change."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.core import Tracer

from manifold_optax._reports import report
from manifold_optax._typing import ArrayTree
from manifold_optax.matrices._axes import AxesLike
from manifold_optax.matrices._plan import Placement
from manifold_optax.matrices._view import View, views_of
from manifold_optax.trees import is_absent, leaf_path


class MatrixReport(NamedTuple):
    """The leaves that one transformation changes, and how it reads them."""

    name: str
    """Name of the transformation: `"orthogonalize_via_newton_schulz"`."""
    views: Mapping[str, tuple[View, ...]]
    """Path of each leaf → its batches of matrices."""
    axes: AxesLike
    placement: Placement | None
    planned: bool
    """Whether matrices are stacked and placed, as `map_matrices` does."""


def check_matrices(
    name: str,
    params: ArrayTree,
    axes: AxesLike,
    *,
    placement: Placement | None = None,
    planned: bool = True,
) -> MatrixReport:
    """Reads every leaf of `params` as matrices, and reports that.

    For the `init` of a transformation, so that what does not fit is known before the
    first step.

    Raises:
        TypeError: for a leaf that is not a real floating array.
        ValueError: for a leaf that `axes` do not fit. Both name the leaf.
    """
    views = {}
    flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_absent)
    for keys, leaf in flat:
        if is_absent(leaf):
            continue
        path = leaf_path(keys)
        views[path] = views_of(leaf, path, axes)
    fact = MatrixReport(name, views, axes, placement, planned)
    report(fact)
    return fact


def is_concrete(leaf: Any) -> bool:
    """Whether the entries of a leaf are known here: an array, not traced or a shape."""
    return isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
