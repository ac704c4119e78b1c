"""Leaves ↔ stacks of matrices: view, plan, map.

`map_matrices` is the only way of a transformation into the matrices of a tree.
"""

from manifold_optax.matrices._blocks import view_leaves, Views
from manifold_optax.matrices._kernel import Result
from manifold_optax.matrices._map import map_matrices, map_views, plan_matrices
from manifold_optax.matrices._per_matrix import per_matrix
from manifold_optax.matrices._plan import Orientation, Placement, Plan
from manifold_optax.matrices._view import (
    Axes,
    joined,
    LAST_TWO,
    normalized_axis,
    Split,
    split_axis,
    View,
    views_of,
)

__all__ = (
    "LAST_TWO",
    "Axes",
    "Orientation",
    "Placement",
    "Plan",
    "Result",
    "Split",
    "View",
    "Views",
    "joined",
    "map_matrices",
    "map_views",
    "normalized_axis",
    "per_matrix",
    "plan_matrices",
    "split_axis",
    "view_leaves",
    "views_of",
)
