"""Leaves ↔ stacks of matrices: view, plan, map.

`map_matrices` is the only way of a transformation into the matrices of a tree.
"""

from manifold_optax.matrices._map import map_matrices, per_matrix, plan_matrices
from manifold_optax.matrices._plan import Placement, Plan
from manifold_optax.matrices._view import (
    Axes,
    bare,
    boxed_like,
    is_absent,
    joined,
    LAST_TWO,
    leaf_path,
    normalized_axis,
    Split,
    split_axis,
    View,
    views_of,
)

__all__ = (
    "LAST_TWO",
    "Axes",
    "Placement",
    "Plan",
    "Split",
    "View",
    "bare",
    "boxed_like",
    "is_absent",
    "joined",
    "leaf_path",
    "map_matrices",
    "normalized_axis",
    "per_matrix",
    "plan_matrices",
    "split_axis",
    "views_of",
)
